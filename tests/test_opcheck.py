"""Every op that is registered, whatever registered it, passes all of torch.library.opcheck."""

import random

import fuzz_ops
import pytest
import torch
import torch._functorch.config
from contrastive import needs_library
from tiers import sample
from torch.testing._internal.optests.generate_tests import OpCheckError

from mcr_fast.ops.registry import BLOCKS, INNER, OPS

pytestmark = needs_library
ops = torch.ops.mcr_fast
CHECKS = (
    *("test_schema", "test_autograd_registration", "test_faketensor"),
    "test_aot_dispatch_dynamic",
)


@pytest.fixture(autouse=True)
def shared_memory_is_an_error():
    """Elsewhere torch warns of outputs that share memory, unless the environment has CI."""
    option = "error_on_custom_op_aliasing"
    known = hasattr(torch._functorch.config, option)  # which is newer than the oldest torch
    with torch._functorch.config.patch({option: True} if known else {}):
        yield


def registered() -> list[str]:
    """The overloads of the namespace, as torch knows them."""
    names = torch._C._dispatch_get_all_op_names()
    return sorted(name.split("::")[1] for name in names if name.startswith("mcr_fast::"))


def variants(name: str, call: list) -> list[tuple]:
    """A call of an op, and calls that leave out or ask for something else."""
    found = [tuple(call)]
    if name.endswith("_fwd") and isinstance(call[-1], bool):  # want_grad
        found.append((*call[:-1], not call[-1]))
    if name == "linear_permuted_divergence_bwd":
        grad, *units, _, wanted = call[:6]
        of_logits = torch.randn_like(units[-1])
        found.append((None, *units, of_logits, [1, 0, 1], *call[6:]))
        found.append((grad, *units, of_logits, [0] * len(wanted), *call[6:]))
    if name == "regularizer_bwd":
        found.append((None, None, None, *call[3:]))
        found.append((call[0], None, *call[2:9], [0, 1, 0], *call[10:]))
    return found


def arguments() -> dict[str, list[tuple]]:
    """By the name of an op: what it is called with."""
    calls = fuzz_ops.calls(random.Random(0))
    given = {name: variants(name, call) for name, call in calls.items()}
    table = torch.stack([torch.randperm(6) for _ in range(2)])[None]
    inputs = [torch.randn(4, 2), torch.randn(3)]
    attached = (torch.rand(()), inputs, [torch.randn_like(x) for x in inputs])
    return given | {
        "checked_donors": [(None, table), (torch.randperm(6), torch.tensor([[1, 3]]))],
        "attach_gradients": [attached],
        "attach_gradients_bwd": [attached],
    }


def test_what_takes_no_tensor():
    """There is nothing to differentiate, nor can the last check compare words."""
    for op, call in ((ops.build_info, ()), (ops.cpu_capability, ("",))):
        torch.library.opcheck(op.default, call, test_utils=CHECKS[:3])


def leaves(x):
    """The same with tensors that require gradients."""
    if isinstance(x, torch.Tensor):
        return x.clone().requires_grad_() if x.is_floating_point() else x
    return [leaves(y) for y in x] if isinstance(x, list) else x


def check_all(name: str) -> None:
    """Every call of an overload, without gradients and with."""
    stem, _, overload = name.partition(".")
    op = getattr(getattr(ops, stem), overload or "default")
    torch.manual_seed(0)
    for call in arguments()[stem]:
        torch.library.opcheck(op, call, test_utils=CHECKS)
        if stem.endswith("_fwd") and call[-1] is False:
            continue  # whoever wants gradients asks for them
        wanting = tuple(map(leaves, call))
        if stem in BLOCKS:
            with pytest.raises(RuntimeError, match="is not differentiable"):
                op(*wanting)
            continue
        checks = CHECKS[:3] if stem.endswith("_bwd") else CHECKS
        torch.library.opcheck(op, wanting, test_utils=checks)
        if checks is not CHECKS:  # the last one differentiates it
            with pytest.raises(OpCheckError, match="cannot be differentiated twice"):
                torch.library.opcheck(op, wanting, test_utils=CHECKS[3])


OF_WORDS = ("build_info", "cpu_capability")
OVERLOADS = [x for x in registered() if not x.endswith(".triton") and x not in OF_WORDS]


def of_backend(backend: str) -> list[str]:
    """The ops that it has kernels for."""
    rows = [op for op, row in (OPS | INNER).items() if backend in row.backends]
    blocks = [op for op, row in BLOCKS.items() if backend in row.backends]
    return [f"{op}_{way}" for op in rows for way in ("fwd", "bwd")] + blocks


@pytest.mark.parametrize("name", OVERLOADS)
def test_an_op(name):
    check_all(name)


@pytest.mark.process("emulated")
@pytest.mark.parametrize("name", sample(of_backend("cuda"), 3))
def test_the_kernels_of_cuda(name):
    check_all(name)


@pytest.mark.slow
@pytest.mark.process("interpreted")
@pytest.mark.parametrize("name", of_backend("triton"))
def test_the_kernels_of_triton(name):
    check_all(f"{name}.triton")


@pytest.mark.process("interpreted")
def test_none_of_triton_is_forgotten():
    found = {name.removesuffix(".triton") for name in registered() if name.endswith(".triton")}
    assert found == set(of_backend("triton"))
