"""A wrapped fusion has the gradient of the fusion inside, or is refused in words.

Whatever somebody puts around an additive fusion, its projections stay the modalities' own.
"""

import contextlib
import copy
import functools

import pytest
import torch
from called import C, D, agrees, doubles, gradients, mcr, table_of
from inputs import make_latents
from tiers import sample
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.nn.utils import parametrizations, parametrize, prune

from mcr_fast import AdditiveFusion

pytestmark = pytest.mark.process("beside")

ROWS = 5
ROUTINGS = [("greedy", "routed"), ("independent", "shared")]
compiled = functools.partial(torch.compile, backend="eager")


@pytest.fixture(scope="module", autouse=True)
def _one_process(tmp_path_factory):
    store = torch.distributed.FileStore(str(tmp_path_factory.mktemp("ranks") / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


# Fusions

HEAD = (nn.Tanh, lambda: nn.Linear(6, C))
FUSIONS = {
    "linear": lambda layer: layer,
    "from_linear": lambda layer: AdditiveFusion.from_linear(layer, [D, D]),
    "from_sequential": lambda layer: AdditiveFusion.from_sequential(
        nn.Sequential(layer, *(make() for make in HEAD)), [D, D]
    ),
    "additive": lambda layer: AdditiveFusion(
        [nn.Linear(D, C) for _ in range(2)], nn.Parameter(torch.randn(C))
    ),
    "additive head": lambda layer: AdditiveFusion(
        [nn.Linear(D, 6) for _ in range(2)], None, nn.Sequential(*(make() for make in HEAD))
    ),
    "sequential": lambda layer: nn.Sequential(layer, *(make() for make in HEAD)),
}
JOINED = ("linear", "sequential")  # called with the concatenation


class LowRank(nn.Module):
    """What is added to a frozen weight."""

    def __init__(self, out, inputs):
        super().__init__()
        self.down, self.up = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.randn(out, 2))

    def forward(self, weight):
        return weight + self.up @ self.down


def _low_rank(layer):
    layer.weight.requires_grad_(False)
    parametrize.register_parametrization(layer, "weight", LowRank(*layer.weight.shape))
    return layer


WEIGHTS = {
    "weight norm": parametrizations.weight_norm,
    "old weight norm": nn.utils.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "old spectral norm": nn.utils.spectral_norm,
    "low rank": _low_rank,
    "pruned": lambda layer: prune.random_unstructured(layer, "weight", amount=0.3),
}
BY_HOOK = ("old weight norm", "old spectral norm", "pruned")


def make(kind, weight=None, dtype=torch.float64):
    torch.manual_seed(0)
    layer = nn.Linear(2 * D, C if kind in ("linear", "from_linear") else 6)
    return FUSIONS[kind](layer if weight is None else WEIGHTS[weight](layer)).to(dtype)


# Wrappers


class Forwarding(nn.Module):
    """Somebody's own."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, z):
        return self.inner(z)


def _function(fusion):
    joined = isinstance(fusion, (nn.Linear, nn.Sequential))
    return lambda z: fusion(torch.cat(z, -1) if joined else z)


def _compiled_in_place(fusion):
    fusion.compile(backend="eager")
    return fusion


def _hooked(fusion):
    fusion.register_forward_hook(lambda module, args, output: None)
    return fusion


def _fabric_of(**options):
    lightning = pytest.importorskip("lightning.fabric")
    return lightning.Fabric(accelerator="cpu", devices=1, **options)


def _fabric(fusion):
    return _fabric_of().setup_module(fusion)


def _in_lightning_module(fusion):
    module = pytest.importorskip("lightning").LightningModule()
    module.fusion = fusion
    return module.fusion


def _accelerated(fusion, **options):
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(True)
    try:
        return accelerate.Accelerator(cpu=True, **options).prepare(fusion)
    finally:
        accelerate.state.AcceleratorState._reset_state(True)


def _function_of_ddp(fusion):
    inner = DDP(fusion, static_graph=True)
    joined = isinstance(fusion, (nn.Linear, nn.Sequential))
    return lambda z: inner(torch.cat(z, -1) if joined else z)


def _traced(fusion):
    latents = make_latents(3, 2, ROWS, dtype=next(fusion.parameters()).dtype)
    joined = isinstance(fusion, (nn.Linear, nn.Sequential))
    return torch.jit.trace(fusion, torch.cat(latents, 1) if joined else (latents,))


def _sharded(fusion):
    return fully_shard(fusion, mesh=init_device_mesh("cpu", (1,)))


WRAPPERS = {
    "ddp": DDP,
    "ddp, static graph": functools.partial(DDP, static_graph=True),
    "data parallel": nn.DataParallel,
    "compiled": compiled,
    "compiled in place": _compiled_in_place,
    "compiled in ddp": lambda fusion: DDP(compiled(fusion)),
    "ddp compiled": lambda fusion: compiled(DDP(fusion)),
    "checkpointed": checkpoint_wrapper,
    "fully_shard": _sharded,
    "fully_shard compiled": lambda fusion: compiled(_sharded(fusion)),
    "partial": functools.partial,
    "forward": lambda fusion: fusion.forward,
    "__call__": lambda fusion: fusion.__call__,
    "function": _function,
    "function compiled": lambda fusion: compiled(_function(fusion)),
    "function of ddp": _function_of_ddp,
    "hooked": _hooked,
    "traced": _traced,
    "forwarding module": Forwarding,
    "forwarding module compiled": lambda fusion: compiled(Forwarding(fusion)),
    "fabric": _fabric,
    "lightning module": _in_lightning_module,
    "accelerate": _accelerated,
}
# A module over joined latents that nobody can look into is called with the list.
EXPLAINED = {("traced", "sequential")} | {
    (f"forwarding module{how}", kind) for how in ("", " compiled") for kind in JOINED
}


def result(fusion, parameters, routing, dtype=torch.float64):
    latents = make_latents(2, 2, ROWS, dtype=dtype)
    out, grads = gradients(fusion, latents, routing, parameters)
    grads = [g.full_tensor() if hasattr(g, "full_tensor") else g for g in grads]
    return out, [g.clone() for g in grads]


def agrees_with_what_it_wraps(kind, wrap, weight=None):
    for routing in ROUTINGS:
        plain, inner = make(kind, weight), make(kind, weight)
        expected, wanted = result(plain, [*plain.parameters()], routing)
        fusion = wrap(inner)
        # fully_shard has made other parameters of them
        out, grads = result(fusion, [*inner.parameters()], routing)
        torch.testing.assert_close(out.divergences, expected.divergences)
        torch.testing.assert_close(out.logits, expected.logits)
        torch.testing.assert_close(grads, wanted)
        for ours, theirs in zip(inner.buffers(), plain.buffers(), strict=True):
            torch.testing.assert_close(ours, theirs)  # a step of spectral norm, and no other


SLOW_TO_COMPILE = ("function compiled", "forwarding module compiled", "ddp compiled")


def combinations():
    for wrapper in WRAPPERS:
        for i, kind in enumerate(FUSIONS):
            slow = wrapper in SLOW_TO_COMPILE and i % 3 != 0
            yield pytest.param(wrapper, kind, marks=pytest.mark.slow if slow else ())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(("wrapper", "kind"), [*combinations()])
def test_a_wrapped_fusion_has_its_gradient(wrapper, kind):
    torch._dynamo.reset()
    explained = (wrapper, kind) in EXPLAINED
    words = pytest.raises(TypeError, match="fusion could not be called with the list")
    with words if explained else contextlib.nullcontext():
        agrees_with_what_it_wraps(kind, WRAPPERS[wrapper])


AROUND_WEIGHTS = [n for n in WRAPPERS if "compiled" not in n and n != "traced"]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # the old weight and spectral norm
@pytest.mark.parametrize(
    ("wrapper", "kind", "weight"),
    sample(
        [
            (wrapper, kind, weight)
            for wrapper in AROUND_WEIGHTS
            for kind in ("linear", "from_linear", "from_sequential")
            for weight in WEIGHTS
            if (wrapper, kind) not in EXPLAINED
            # forward alone computes no weight anew
            and not ((wrapper, kind) == ("forward", "linear") and weight in BY_HOOK)
        ],
        5,
    ),
)
def test_a_computed_weight_in_a_wrapper_is_the_modalities_own(wrapper, kind, weight):
    agrees_with_what_it_wraps(kind, WRAPPERS[wrapper], weight)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("kind", "weight"), [("linear", "pruned"), ("from_linear", "low rank")])
def test_traced_computed_weights_are_refused(kind, weight):
    with pytest.raises(TypeError, match="fusion is TorchScript of a linear layer that computes"):
        agrees_with_what_it_wraps(kind, _traced, weight)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["additive", "from_sequential"])
def test_a_function_of_a_traced_fusion_is_refused(kind):
    traced = _traced(make(kind))
    with pytest.raises(TypeError, match="fusion calls TorchScript of an AdditiveFusion"):
        result(lambda z: traced(z), [], ROUTINGS[1])


@pytest.mark.parametrize("kind", FUSIONS)
@pytest.mark.parametrize("system", ["fabric", "accelerate"])
def test_mixed_precision_of_a_wrapper_counts(system, kind):
    """What calling computes, within the rounding of bfloat16: far from another's factor."""
    for routing in ROUTINGS:
        plain, inner = make(kind, dtype=torch.float32), make(kind, dtype=torch.float32)
        expected, wanted = result(plain, [*plain.parameters()], routing, torch.float32)
        if system == "fabric":
            fabric = _fabric_of(precision="bf16-mixed")
            fusion = fabric.setup_module(inner)
        else:
            fusion, fabric = _accelerated(inner, mixed_precision="bf16"), None
        latents = make_latents(2, 2, ROWS, dtype=torch.float32)
        loss = mcr(2, strategy=routing[0], clean_path=routing[1])
        out = loss(latents, None, fusion=fusion, permutations=table_of())
        fabric.backward(out.mipd) if fabric else out.mipd.backward()
        called = fusion(torch.cat(latents, 1) if kind in JOINED else latents)
        torch.testing.assert_close(out.logits, called, rtol=1e-3, atol=1e-3)
        found = [x.grad for x in (*latents, *inner.parameters())]
        error = sum(
            (g - w).norm() ** 2 for g, w in zip(found, wanted, strict=True) if g is not None
        )
        assert error.sqrt() < 4e-2 * sum(w.norm() ** 2 for w in wanted).sqrt()
        torch.testing.assert_close(out.divergences, expected.divergences, rtol=4e-2, atol=1e-4)


# Functions of the user's around an additive fusion

AROUND = {
    "outputs": (lambda f, z: 2 * f(z).tanh(), (0, 1)),
    "inputs": (lambda f, z: f([3 * z[0], z[1].tanh()]), (0, 1)),
    "order": (lambda f, z: f([z[1], z[0]]), (1, 0)),
    "mixed inputs": (lambda f, z: f([z[0] + z[1], z[1]]), (None, 1)),
    "twice": (lambda f, z: f(z) * f([z[0], -z[1]]), (0, 1)),
    "twice, in both orders": (lambda f, z: f(z) * f([z[1], z[0]]), (None, None)),
}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("form", ["function", "module", "compiled"])
def test_projections_belong_to_the_modality_that_they_are_given(form, around):
    torch._dynamo.reset()
    additive = doubles(make("additive head"))
    function, owners = AROUND[around]
    call = functools.partial(function, additive)
    owned = [(p, None) for p in additive.head.parameters()]
    for m, owner in enumerate(owners):
        owned += [(p, owner) for p in additive.projections[m].parameters()]
    fusion = {
        "function": lambda: lambda z: call(z),
        "module": lambda: Around(additive, function),
        "compiled": lambda: compiled(lambda z: call(z)),
    }[form]()
    agrees(fusion, call, owned, routings=ROUTINGS)


class Around(nn.Module):
    def __init__(self, inner, function):
        super().__init__()
        self.inner, self.function = inner, function

    def forward(self, z):
        return self.function(self.inner, z)


def test_looking_at_a_function_leaves_no_trace():
    """Neither a draw of the global generator, nor statistics, nor hooks."""
    additive = AdditiveFusion(
        [nn.Sequential(nn.BatchNorm1d(D), nn.Linear(D, C)) for _ in range(2)]
    ).double()
    twin, latents = copy.deepcopy(additive), make_latents(2, 2, ROWS)
    loss = mcr(2, strategy="independent", fusion_mode="own")
    state = torch.get_rng_state()
    loss(latents, None, fusion=lambda z: additive(z), permutations=table_of())
    assert torch.equal(state, torch.get_rng_state())
    loss(latents, None, fusion=_hooked(twin), permutations=table_of())
    for ours, theirs in zip(additive.buffers(), twin.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in additive.modules())
