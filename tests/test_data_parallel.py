"""DistributedDataParallel and FSDP around fusions and models: gradients are averaged, once."""

import functools

import parallel_cases as cases
import pytest
import torch
from parallel_cases import KINDS, PLANS, WORLD
from ranks import run_in_ranks

pytestmark = pytest.mark.process("beside")

# What is tried in each process, with every kind of fusion: a function of the rank and the kind.
OF_MODEL = {
    "loss inside": (cases.ddp_model, {}),
    "static graph": (cases.ddp_model, {"static_graph": True}),
    "unused parameters": (cases.ddp_model, {"find_unused_parameters": True}),
    "views of buckets": (cases.ddp_model, {"gradient_as_bucket_view": True}),
    "logits given": (cases.ddp_model, {"given": True}),
    "loss outside": (cases.ddp_model, {"inside": False}),
    "loss outside, logits given": (
        cases.ddp_model,
        {"inside": False, "given": True, "find_unused_parameters": True},
    ),
    "no_sync": (cases.ddp_no_sync, {}),
    "fsdp1": (cases.fsdp1, {}),
    "fsdp1, flat": (cases.fsdp1_flat, {}),
    "compiled inside": (cases.ddp_compiled, {"around": False}),
    "compiled around": (cases.ddp_compiled, {"around": True}),
}
OF_FUSION = {
    "its own": (cases.ddp_fusion, {}),
    "its own, static graph": (cases.ddp_fusion, {"static_graph": True}),
    "its own, unused parameters": (cases.ddp_fusion, {"find_unused_parameters": True}),
    "its own, compiled": (cases.ddp_fusion, {"compiled": True}),
    "replicated": (cases.replicated, {}),
}
SHARDED = {
    f"{plan}, {where}": (cases.fsdp, {"plan": plan, "inside": where == "inside"})
    for plan in PLANS
    for where in ("inside", "outside")
} | {
    "sharded, logits given": (cases.fsdp, {"plan": "each part", "given": True}),
    "sharded fusion, logits given": (cases.fsdp, {"plan": "the fusion", "given": True}),
    "sharded, accumulated": (cases.fsdp_accumulated, {}),
    "sharded, compiled": (cases.fsdp_compiled, {}),
}
MIXED = {
    "bfloat16": (cases.fsdp_mixed, {"output_dtype": None}),
    "bfloat16 to float32": (cases.fsdp_mixed, {"output_dtype": torch.float32}),
    "all bfloat16": (cases.fsdp_mixed, {"output_dtype": torch.bfloat16}),
}
REFUSED = {
    "tensor parallel": (cases.refusal, {"how": "tensor parallel"}),
    "sharded by fsdp1": (cases.refusal, {"how": "fsdp1"}),
    "not gathered": (cases.refusal, {"how": "not gathered"}),
}
FIXES = {
    "tensor parallel": "parallelize_module",
    "sharded by fsdp1": "shard with fully_shard",
    "not gathered": "fully_shard(fusion)",
}
ALL = OF_MODEL | OF_FUSION | SHARDED | MIXED | REFUSED
ONCE = {
    ("uneven", "linear"): functools.partial(cases.ddp_join, kind="linear"),
    ("uneven", "gated"): functools.partial(cases.ddp_join, kind="gated"),
    ("parallel encoders", "linear"): functools.partial(
        cases.tensor_parallel_encoders, kind="linear"
    ),
    ("used twice", "gated"): functools.partial(cases.double_use, kind="gated"),
    **{("head", how): functools.partial(cases.ceb_head, how=how) for how in cases.HEADS},
}


def quick(name):
    """The kinds that a quick test tries something with: others with each, all of them somewhere."""
    first = [*ALL].index(name)
    count = 1 if "compiled" in name else 2
    return [KINDS[(first + 3 * i) % len(KINDS)] for i in range(count)]


def tries(names):
    """Parameters of a test: names, each with every kind of fusion."""
    return [
        pytest.param(name, kind, marks=() if kind in quick(name) else pytest.mark.slow)
        for name in names
        for kind in KINDS
        # no parameter whose name has a dot can be distributed
        if (name, kind) != ("tensor parallel", "weight_norm")
    ]


def work(rank, world, is_quick):
    functions = dict(ONCE) if is_quick else {}
    for param in tries(ALL):
        name, kind = param.values
        if is_quick == (not param.marks):
            functions[name, kind] = functools.partial(ALL[name][0], kind=kind, **ALL[name][1])
    found = {}
    for key, function in functions.items():
        try:
            found[key] = function(rank)
        except Exception as error:  # the test of this try tells it
            found[key] = f"{type(error).__name__}: {error}"
    return found


class Found:
    """By name and kind: what each rank found. All that is quick runs at once, and all that is not:
    one process more takes longer to start than to try it.
    """

    def __init__(self):
        self.by_tier = {}

    def __call__(self, *key):
        is_quick = key in ONCE or key[1] in quick(key[0])
        if is_quick not in self.by_tier:
            self.by_tier[is_quick] = run_in_ranks(functools.partial(work, is_quick=is_quick), WORLD)
        return [found[key] for found in self.by_tier[is_quick]]


@pytest.fixture(scope="module")
def found():
    return Found()


def wanted_and_found(results, kind, averaged, **how):
    """By rank: each gradient of a process on its own, or their mean, and the one that was found."""
    apart = [cases.alone(kind, rank, **how) for rank in range(WORLD)]
    for rank, result in enumerate(results):
        assert isinstance(result, dict), result
        pairs = {}
        for name, wanted in apart[rank].items():
            if wanted is not None:
                grad, sharded = result[name]
                if sharded or averaged(name):
                    wanted = sum(grads[name] for grads in apart) / WORLD
                pairs[name] = wanted, grad
        yield rank, pairs


def check(*arguments, **how):
    for rank, pairs in wanted_and_found(*arguments, **how):
        for name, (wanted, grad) in pairs.items():
            error = (grad - wanted).norm() / wanted.norm().clamp(min=1e-30)
            assert error < 1e-9, (name, rank, float(error))


@pytest.mark.parametrize(("name", "kind"), tries(OF_MODEL))
def test_a_model_has_the_mean_gradient(name, kind, found):
    check(found(name, kind), kind, lambda _: True, inside=OF_MODEL[name][1].get("inside", True))


@pytest.mark.parametrize(("name", "kind"), tries(OF_FUSION))
def test_a_fusion_of_its_own_has_the_mean_gradient(name, kind, found):
    check(found(name, kind), kind, lambda parameter: parameter.startswith("fusion"))


@pytest.mark.parametrize(("name", "kind"), tries(SHARDED))
def test_sharded_parts_have_the_mean_gradient(name, kind, found):
    check(found(name, kind), kind, lambda _: False, inside=SHARDED[name][1].get("inside", True))


@pytest.mark.parametrize(("name", "kind"), tries(MIXED))
def test_mixed_precision_of_units_counts(name, kind, found):
    """Within the rounding of bfloat16, which is far from what a wrong factor would do."""
    for _, pairs in wanted_and_found(found(name, kind), kind, lambda _: True):
        error = sum((grad - wanted).norm() ** 2 for wanted, grad in pairs.values()).sqrt()
        assert error < 2e-2 * sum(wanted.norm() ** 2 for wanted, _ in pairs.values()).sqrt()


@pytest.mark.parametrize(("name", "kind"), tries(REFUSED))
def test_other_ways_to_spread_a_fusion_are_refused(name, kind, found):
    for answer in found(name, kind):
        assert answer.startswith("fusion's "), answer
        assert FIXES[name] in answer


def test_encoders_may_be_tensor_parallel(found):
    for parallel, whole in found("parallel encoders", "linear"):
        for name, (grad, _) in whole.items():
            torch.testing.assert_close(parallel[name][0], grad)


@pytest.mark.parametrize("kind", ["linear", "gated"])
def test_uneven_ranks_can_join(kind, found):
    """After its last batch a rank counts as one with zero gradient."""
    (first,), (early, late) = found("uneven", kind)
    apart = [cases.alone(kind, rank) for rank in range(WORLD)]
    for name, grad in apart[1].items():
        mean = (apart[0][name] + grad) / WORLD
        torch.testing.assert_close([first[name][0], early[name][0]], [mean, mean])
        torch.testing.assert_close(late[name][0], grad / WORLD)


def test_a_fusion_that_ddp_took_for_unused_is_torchs_error(found):
    """The way out is to give the logits of DDP's own forward, as a test above does."""
    for error in found("used twice", "gated"):
        assert "marked" in error
        assert "ready" in error


@pytest.mark.parametrize("how", cases.HEADS)
def test_heads_of_ceb_that_drift_are_told_once(how, found):
    (ours, said), (theirs, _) = found("head", how)
    assert len(said) == (how == "alone")
    drift = max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))
    assert (drift > 1e-4) == (how == "alone")
    if said:
        assert "mcr.ceb_head = DistributedDataParallel(mcr.ceb_head)" in said[0]
