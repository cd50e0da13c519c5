"""No input reads or writes outside of a tensor: each case is refused or gives NaN, compiled or not.

The cases run in processes of their own, where a crash is a failed test and not the end of pytest.
"""

from pathlib import Path

import pytest
from contrastive import needs_library
from programs import run_python

from mcr_fast import env

pytestmark = pytest.mark.process("beside")
HERE = Path(__file__).resolve().parent

# what generates code takes seconds a case: one of each kind
FEW = ("table far", "cyclic shift far", "rows far", "MCRLoss, label far")


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("plain",), id="plain"),
        pytest.param(("eager",), id="eager", marks=pytest.mark.slow),
        pytest.param(("inductor", *FEW), id="inductor", marks=pytest.mark.slow),
    ],
)
def test_refused_or_nan(arguments):
    lines = run_python(str(HERE / "bad_inputs.py"), *arguments).stdout.splitlines()
    outcomes = {tuple(line.split(" | ")[:2]): line.split(" | ")[2] for line in lines}
    assert len(outcomes) >= 2 * len(FEW)
    accepted = {k: v for k, v in outcomes.items() if v != "NaN" and not v.startswith("refused: ")}
    assert not accepted
    if env.cpu_library_loaded():
        words = outcomes["None", "table far"]
        assert "every row of permutations must be a permutation of 0..7" in words
        assert "permutations[1] is [0, 1, " in words


@needs_library
@pytest.mark.parametrize("count", [400, pytest.param(2000, marks=pytest.mark.slow)])
def test_ops_called_with_anything_do_not_crash(count):
    calls = run_python(str(HERE / "fuzz_ops.py"), "0", str(count)).stdout
    refused, returned = (int(word) for word in calls.split()[:2])
    assert refused + returned == count
    assert min(refused, returned) > count / 10, "it reaches behind the checks, and meets them"
