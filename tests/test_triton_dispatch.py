"""The Triton overloads of the ops: schemas, who is chosen, what is said when they cannot run."""

import functools
import importlib.util

import pytest
import torch
from contrastive import needs_library
from programs import ROOT, run_python
from torch._subclasses import FakeTensorMode

from mcr_fast import env
from mcr_fast.ops import _backend, _linear_layer, registry, regularizer
from mcr_fast.ops import _limits as limits
from mcr_fast.ops._limits import Call
from mcr_fast.ops.registry import OPS, schemas, with_kernels

SCHEMAS = schemas()
TRITON_OPS = with_kernels("triton")

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@needs_library
@pytest.mark.parametrize("name", SCHEMAS)
def test_schema_is_that_of_the_library(name):
    compiled = getattr(torch.ops.mcr_fast, name).default._schema
    assert str(torch._C.parse_schema(f"mcr_fast::{name}{SCHEMAS[name]}")) == str(compiled)


@pytest.mark.parametrize("op", TRITON_OPS)
def test_overload_has_fake_and_kernels(op):
    assert (ROOT / "kernels" / f"{op}.py").exists()
    for name in (f"mcr_fast::{op}_fwd.triton", f"mcr_fast::{op}_bwd.triton"):
        for key in ("CUDA", "Autograd"):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(name, key)


def test_each_kernel_stands_in_the_registry():
    stems = {path.stem for path in (ROOT / "kernels").glob("[a-z]*.py")}
    assert set(TRITON_OPS) <= stems
    assert stems & set(OPS) == set(TRITON_OPS)


TOYS = """
import torch
import mcr_fast
from mcr_fast.ops import _backend
from mcr_fast.ops._dispatch import register
from mcr_fast.ops.registry import OPS, Op

for op, backends in {"toy": (), "triton": ("triton",), "all": ("cpu", "triton", "cuda")}.items():
    OPS[op] = Op("(Tensor x) -> Tensor", "(Tensor grad, Tensor x) -> Tensor", backends=backends)
    _backend._UNAVAILABLE[op] = _backend._why_unavailable(op)  # as its import does for each row
    register(
        op,
        differentiable=1,
        forward_fake=torch.empty_like,
        backward_fake=lambda grad, x: torch.empty_like(x),
        setup=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
        backward=lambda ctx, run, grad: (run(grad, *ctx.saved_tensors),),
    )
    print(mcr_fast.backends()[op]["serves"]["cpu"], end=" ")
    print(_backend.resolve(op, None, torch.device("cpu")), op in mcr_fast.env.report())
"""


def test_a_row_is_all_that_an_op_needs_to_be_known():
    """Without a kernel too: an op may begin with its reference."""
    assert run_python("-c", TOYS).stdout == "reference reference True\n" * 3


@pytest.fixture
def _on_cuda(monkeypatch):
    """As with a torch built for CUDA and Triton installed; an op's kernel is not called."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    found = {op: _backend._why_unavailable(op) for op in OPS}
    monkeypatch.setattr(_backend, "_UNAVAILABLE", found)


needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


@needs_triton
@pytest.mark.usefixtures("_on_cuda")
@pytest.mark.parametrize("op", TRITON_OPS)
def test_cuda_tensors_take_triton(op):
    assert _backend.resolve(op, None, CUDA, torch.float16) == "triton"
    assert _backend.resolve(op, "triton", CUDA) == "triton"
    assert _backend.backends()[op]["serves"]["cuda"] == "triton"
    with pytest.raises(RuntimeError, match="takes CUDA tensors, got tensors on cpu.*INTERPRET"):
        _backend.resolve(op, "triton", CPU)


@needs_triton
@pytest.mark.usefixtures("_on_cuda")
@pytest.mark.parametrize("op", TRITON_OPS)
def test_float64_goes_to_the_reference(op):
    assert _backend.resolve(op, None, CUDA, torch.float64) == "reference"
    with pytest.raises(RuntimeError, match="computes in float32, got float64"):
        _backend.resolve(op, "triton", CUDA, torch.float32, torch.float64)


@needs_triton
@pytest.mark.usefixtures("_on_cuda")
def test_too_many_classes_go_to_the_reference():
    limit = limits.TRITON_CLASSES
    chosen = functools.partial(_backend.resolve, "row_divergence")
    assert chosen(None, CUDA, torch.float32, call=Call(limit)) == "triton"
    assert chosen(None, CUDA, torch.float32, call=Call(limit + 1)) == "reference"
    message = f"at most {limit} classes, got {limit + 1}; use backend='reference' or None"
    with pytest.raises(ValueError, match=message):
        chosen("triton", CUDA, torch.float32, call=Call(limit + 1))


@pytest.fixture
def _both_here(monkeypatch):
    """As with Triton and the CUDA library, whose ops are those that the registry says."""
    found = {}
    for op, row in OPS.items():
        kernels = OPS[row.made_of or op].backends
        found[op] = {} if "cuda" in kernels else {"cuda": _backend._why_unavailable(op)["cuda"]}
    monkeypatch.setattr(_backend, "_UNAVAILABLE", found)


def pairs(rows=4096, permutations=32, divergence="jsd", donors="cyclic", weighs=False, subsets=2):
    subsets = tuple(range(1, 1 + subsets))
    return limits.Pairs(rows, permutations, subsets, divergence, donors, weighs)


BAND = Call(1000, modalities=2, pairs=pairs())
SMALL = Call(6, modalities=2, pairs=pairs(rows=32))
# calls that CUDA C++ takes, and what it says of those that it does not
TAKEN = {
    "nt_xent": [Call(1024, 4096), Call(2, 1), Call(0, 8)],
    "permuted_divergence": [
        *(SMALL, BAND, BAND._replace(size=4096), BAND._replace(shared=125440)),
        SMALL._replace(shared=48 << 10),
        *(BAND._replace(pairs=pairs(rows=64)), BAND._replace(pairs=pairs(donors="exhaustive"))),
        *(BAND._replace(pairs=pairs(weighs=True)), BAND._replace(pairs=pairs(subsets=1))),
        # small ones of any kind
        Call(192, modalities=8, pairs=pairs(2, 5, "mse", "own", True, 254)),
        Call(6, modalities=2, pairs=pairs(256, 32, "binary_jsd", "table", True)),
        Call(5000, modalities=3, pairs=pairs(rows=0, divergence="mse")),  # nothing at all
    ],
}
REFUSED = {
    "nt_xent": {
        "takes at most 1024 rows, got 5000; use backend='triton' or None": Call(5000, 8),
        "takes at most 4096 columns, got 4097; use backend='triton'": Call(8, 4097),
        "takes at least 1 column, got 0; use backend='triton'": Call(8, 0),
    },
    "permuted_divergence": {
        "takes at most 8 modalities, got 9; use backend='reference' or None": BAND._replace(
            modalities=9
        ),
        "beyond small batches two modalities, got 3; use backend='triton' or None": Call(
            1000, modalities=3, pairs=pairs(subsets=6)
        ),
        "divergence='jsd', got 'mse'; use backend='triton'": BAND._replace(
            pairs=pairs(divergence="mse")
        ),
        "cyclic or exhaustive donors that the modalities share, got a table": BAND._replace(
            pairs=pairs(donors="table")
        ),
        "share, got each modality's own; use backend='triton'": BAND._replace(
            pairs=pairs(donors="own")
        ),
        "at least 64 rows, got 63": BAND._replace(pairs=pairs(rows=63)),
        # Turing, and what is no data centre's of later ones
        "may have 125440 bytes of shared memory, got 101376; use backend='triton'": BAND._replace(
            shared=101376
        ),
        "at most 4096 classes, got 4097; use backend='reference'": BAND._replace(size=4097),
        # as many pairs as that weigh something are no small batch
        "two modalities, got 4; use backend='triton'": Call(
            5, modalities=4, pairs=pairs(256, 32, weighs=True, subsets=14)
        ),
    },
}


@needs_triton
@pytest.mark.usefixtures("_both_here")
@pytest.mark.parametrize("op", TAKEN)
def test_what_cuda_takes_it_is_given(op):
    for call in TAKEN[op]:
        assert _backend.resolve(op, None, CUDA, call=call) == "cuda", call
        assert _backend.resolve(op, "cuda", CUDA, call=call) == "cuda", call


@needs_triton
@pytest.mark.usefixtures("_both_here")
@pytest.mark.parametrize(
    ("op", "message"), [(op, message) for op, calls in REFUSED.items() for message in calls]
)
def test_what_cuda_refuses_names_who_takes_it(op, message):
    call, other = REFUSED[op][message], "triton"
    if "'reference'" in message:
        other = "reference"
    assert _backend.resolve(op, None, CUDA, call=call) == other
    assert _backend.resolve(op, other, CUDA, call=call) == other
    with pytest.raises(ValueError, match=f"^backend='cuda' of {op} .*{message}"):
        _backend.resolve(op, "cuda", CUDA, call=call)


@pytest.mark.usefixtures("_both_here")
@pytest.mark.parametrize("op", ["row_divergence", "reconstruction_loss"])
def test_ops_without_a_cuda_kernel_name_the_backend_that_has_one(op):
    with pytest.raises(RuntimeError, match="no cuda kernel; use backend='triton' or None"):
        _backend.resolve(op, "cuda", CUDA)


@needs_triton
@pytest.mark.usefixtures("_both_here")
def test_without_the_one_the_other_takes_what_it_can(monkeypatch):
    op = "permuted_divergence"
    table, many = BAND._replace(pairs=pairs(donors="table")), Call(5000, modalities=2)

    def chosen(*missing, call):
        monkeypatch.setitem(_backend._UNAVAILABLE, op, dict.fromkeys(missing, "not here"))
        return _backend.resolve(op, None, CUDA, call=call)

    assert [chosen("cuda", call=call) for call in (SMALL, BAND, table)] == ["triton"] * 3
    assert [chosen("triton", call=call) for call in (SMALL, BAND)] == ["cuda"] * 2
    assert chosen("triton", call=table) == chosen("triton", "cuda", call=SMALL) == "reference"
    assert chosen(call=many._replace(pairs=pairs())) == "reference"


@pytest.mark.parametrize(
    ("order", "donors", "expected"),
    [
        (None, None, ("exhaustive", 8)),
        (torch.arange(9), torch.ones(1, 5), ("cyclic", 5)),
        (torch.arange(9), torch.ones(2, 5), ("own", 5)),
        (None, torch.ones(1, 4, 9), ("table", 4)),
        (None, torch.ones(2, 4, 9), ("own", 4)),
    ],
)
def test_pairs_are_read_off_the_arguments(order, donors, expected):
    def found(*tensors, exclude="none"):
        options = ((1, 2), "greedy", "shared", "jsd", exclude)
        return limits.pairs_of(9, (order, donors, None, *tensors, *options))

    assert found(None, None) == limits.Pairs(9, expected[1], (1, 2), "jsd", expected[0], False)
    weigh = (found(None, torch.ones(9)), found(torch.ones(9, 2) > 0, None))
    assert all(pairs.weighs for pairs in (*weigh, found(None, None, exclude="self")))


# N, D, C, donors: the backend that has the whole step in one op, and whether CUDA C++ has the
# divergences of the layer in one
STEPS = {
    (32, 512, 6, "cyclic"): ("cuda", True),
    (512, 512, 174, "cyclic"): ("cuda", True),
    (4096, 512, 174, "cyclic"): (None, True),  # too many rows for its contrastive loss
    (4096, 512, 174, "table"): ("triton", False),
    (60, 64, 1000, "cyclic"): ("triton", False),  # too few rows for a band, too many classes
}


@needs_triton
@pytest.mark.usefixtures("_both_here")
@pytest.mark.parametrize("sizes", STEPS)
def test_one_backend_takes_a_step_if_it_takes_all_of_it(sizes, monkeypatch):
    for module in (regularizer, _linear_layer):
        monkeypatch.setattr(module, "_SERVED_ON_CUDA", True)
    n, d, c, kind = sizes
    with FakeTensorMode():
        latents = [torch.empty(n, d, device=CUDA) for _ in range(2)]
        weight = torch.empty(c, 2 * d, device=CUDA)
    table = kind == "table"
    order, donors = None if table else torch.arange(n), torch.ones(1, 31, *[n] * table)
    arguments = (order, donors, None, None, None, (1, 2), "greedy", "shared", "jsd", "none")
    found = (
        regularizer.serves(latents, weight, arguments, "nt_xent", None),
        _linear_layer.takes(latents, weight, arguments, None),
    )
    assert found == STEPS[sizes]


@needs_triton
@pytest.mark.usefixtures("_both_here")
def test_a_compiler_chooses_by_sizes_that_stay_dynamic():
    """One graph for all sizes that one backend takes, and nothing that breaks it."""
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    @functools.partial(torch.compile, fullgraph=True, dynamic=True, backend=count)
    def chosen(x, order, donors, z):
        arguments = (order, donors, None, None, None, (1, 2), "greedy", "shared", "jsd", "none")
        call = Call(x.shape[2], modalities=2, pairs=limits.pairs_of(x.shape[1], arguments))
        of_pairs = _backend.resolve("permuted_divergence", None, CUDA, x.dtype, call=call)
        of_rows = _backend.resolve("nt_xent", None, CUDA, x.dtype, call=Call(*z.shape))
        return x * (of_pairs == "cuda"), z * (of_rows == "cuda")

    def taken(rows, classes, permutations, embeddings):
        inputs = torch.ones(2, rows, classes), torch.arange(rows), torch.ones(1, permutations)
        return [bool(t.any()) for t in chosen(*inputs, torch.ones(embeddings, 7))]

    torch._dynamo.reset()
    assert taken(200, 300, 50, 400) == [True, True]
    assert taken(201, 310, 51, 410) == [True, True]
    assert len(graphs) == 1
    assert taken(60, 300, 50, 1030) == [False, False]
    assert taken(61, 310, 51, 1031) == [False, False]
    assert len(graphs) == 2


@pytest.mark.usefixtures("_both_here")
def test_choice_by_size(monkeypatch):
    op = "permuted_divergence"
    order = ((28, ("cuda", "triton")), (None, ("triton", "cuda")))
    monkeypatch.setitem(registry.CHOICE, op, order)

    def chosen(classes: int | None, dtype: torch.dtype = torch.float32) -> str:
        return _backend.resolve(op, None, CUDA, dtype, call=Call(classes))

    assert [chosen(c) for c in (6, 28, 29, 4096)] == ["cuda"] * 2 + ["triton"] * 2
    assert chosen(6, torch.float64) == "reference"
    assert chosen(6) == chosen(None)
    monkeypatch.setitem(_backend._UNAVAILABLE, op, {"cuda": "not here"})
    assert chosen(6) == "triton"


def test_choice_names_ops_and_ends():
    for key, rows in registry.CHOICE.items():
        named = OPS[key.removesuffix(" 16-bit")].backends
        assert {"triton", "cuda"} <= set(named), "where there is a choice"
        bounds = [most for most, _ in rows]
        assert bounds[-1] is None
        assert bounds[:-1] == sorted(bounds[:-1])
        assert all(set(order) <= {"triton", "cuda"} for _, order in rows)


@pytest.mark.skipif(bool(torch.version.cuda), reason="this torch has CUDA")
@pytest.mark.parametrize("op", TRITON_OPS)
def test_torch_without_cuda(op):
    if importlib.util.find_spec("triton") is not None:
        with pytest.raises(RuntimeError, match="not built for CUDA.*TRITON_INTERPRET=1"):
            _backend.resolve(op, "triton", CPU)
    assert _backend.resolve(op, None, CUDA) == "reference"


def test_triton_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install triton" in str(env.why_no_triton())


@needs_triton
def test_interpreter_takes_cpu_tensors_when_asked():
    code = (
        "import sys, torch; from mcr_fast.ops._backend import resolve; cpu = torch.device('cpu');"
        f"ops = {list(TRITON_OPS)};"
        "print({resolve(op, 'triton', cpu) for op in ops} == {'triton'},"
        "'triton' in {resolve(op, None, cpu) for op in ops}, 'triton' in sys.modules)"
    )
    result = run_python("-c", code, TRITON_INTERPRET="1")
    assert result.stdout.split() == ["True", "False", "False"]
