"""The whole of `python -m bench gpu` with stand-ins for a GPU, killed at random moments."""

import itertools
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep

import pytest

pytest.importorskip("tabulate")
pytest.importorskip("matplotlib")
pytest.importorskip("triton")

from emulated import build
from suite import processes
from test_bench_gpu_suite import CONFTEST, TESTS

from bench import results
from bench.gpu.record import CHECKS, PLOT, SIZES, SUMMARY, TARGETS, TIMES
from bench.gpu.rows import ACCELERATED
from mcr_fast.ops.registry import OPS, with_kernels

pytestmark = pytest.mark.process("beside")
HERE = Path(__file__).resolve().parent
PHASES = ["floors", "quick check", "ours", "full check", "peers", "sizes", "torch.compile"]
# enough for all on a busy machine; what a kill leaves does not depend on it
BUDGET = 900


class Rehearsal:
    """A run of the command in a process group of its own, and what it has said."""

    def __init__(self, folder, *arguments):
        self.out, self.lines, self.start = folder / "out", [], monotonic()
        suite = folder / "suite"
        suite.mkdir()
        (suite / "conftest.py").write_text(CONFTEST)
        (suite / "test_suite.py").write_text(TESTS.format(names=names()))
        (folder / "pytest.ini").write_text("[pytest]\naddopts =\n")
        environment = os.environ | {
            "REHEARSAL_SUITE": str(folder),
            "REHEARSAL_EMULATED": "" if processes.missing("emulated") else "1",
            "PYTHONPATH": str(HERE.parent),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(folder),  # so that every process has the folder's name
        }
        command = [sys.executable, HERE / "rehearsal.py", "bench", "gpu", "--out", self.out]
        command += ["--budget", BUDGET, *arguments]
        self.process = subprocess.Popen(
            [str(word) for word in command],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def follow(self, lines=None):
        """Read what it says, so many lines or all."""
        self.lines += list(itertools.islice(self.process.stdout, lines))

    def kill(self):
        """As a device machine's limit does."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.follow()


@pytest.fixture(scope="module", autouse=True)
def emulator():
    """There when the rehearsal starts: compiling it takes longer than a row may."""
    if not processes.missing("emulated"):
        build.build()


def names():
    pairs = [(op, b) for op in (*with_kernels("triton"), "gather_add") for b in ACCELERATED]
    kinds = ("a", "b", "wrong", "slow_a", "slow_b", "slow_crash")
    served = [(op, b) for op, b in pairs if b in OPS.get(op, OPS["row_divergence"]).backends]
    return [f"{b}-{op}-{kind}-bound" for op, b in served for kind in kinds]


def said(lines, pattern):
    return [found.groups() for line in lines if (found := re.match(rf" *\d+ s  {pattern}", line))]


def check_everything_said_is_there(run):
    """Each line that was printed is in its file, and each file is whole."""
    out = {path.name for path in run.out.iterdir()} if run.out.exists() else set()
    assert len(out) <= 8, out
    tables = {name: results.read(run.out / name) for name in (CHECKS, TARGETS, TIMES, SIZES)}
    for name, rows in tables.items():
        for row in rows:
            assert None not in row, name  # too many cells
            assert None not in row.values(), name  # too few
    timed = {(row["mode"], row["provider"], row["p50_ms"]) for row in tables[TIMES]}
    measured = said(run.lines, r".*  (\w+)  (\w+): ([\d.e-]+) ms$")
    assert {*measured} <= timed
    figures = {(row["what"], row["measured"], row["unit"]) for row in tables[TARGETS]}
    assert {*said(run.lines, r"([^:]*): ([\d.]+) (T\S+)$")} <= figures
    counts = [int(count) for (count,) in said(run.lines, r"(\d+) checks: ")]
    assert len(tables[CHECKS]) >= max(counts, default=0)
    done = said(run.lines, r"([\w. ]+): done")
    assert [name for (name,) in done] == PHASES[: len(done)]
    if done:
        assert (run.out / SUMMARY).read_text().endswith("\n")
        assert tables[TARGETS]
    if PLOT in out:
        import matplotlib.image

        assert matplotlib.image.imread(run.out / PLOT).ndim == 3
    return len(measured) + max(counts, default=0)


def check_nothing_runs(folder):
    """Whoever was started is gone, but for a moment, which is longer on a busy machine."""
    end = monotonic() + 60
    while left := [p for p in Path("/proc").glob("[0-9]*/cmdline") if named(p, folder)]:
        assert monotonic() < end, left
        sleep(0.1)


def named(path, folder):
    try:
        return str(folder).encode() in path.read_bytes()
    except OSError:
        return False


@pytest.mark.slow
def test_a_whole_rehearsal(tmp_path):
    run = Rehearsal(tmp_path)
    run.follow()
    print("".join(run.lines))
    assert run.process.wait() == 1  # some items are wrong
    assert monotonic() - run.start < BUDGET
    assert check_everything_said_is_there(run) > 200
    assert [name for (name,) in said(run.lines, r"([\w. ]+): done")] == PHASES
    assert "said nothing" not in (run.out / SUMMARY).read_text()
    check_nothing_runs(tmp_path)


@pytest.mark.parametrize(
    ("seed", "arguments"),
    [
        pytest.param(0, ("--quick", "--op", "reconstruction_loss"), id="quick"),
        pytest.param(1, (), id="whole", marks=pytest.mark.slow),
    ],
)
def test_killed_at_a_random_moment(seed, arguments, tmp_path):
    draw = random.Random(seed)
    lines, seconds = draw.randint(3, 20 if arguments else 150), draw.uniform(0, 2)
    print(f"seed {seed}: killed {seconds:.2f} s after {lines} lines")
    run = Rehearsal(tmp_path, *arguments)
    run.follow(lines)
    sleep(seconds)
    run.kill()
    print("".join(run.lines))
    check_everything_said_is_there(run)
    check_nothing_runs(tmp_path)
