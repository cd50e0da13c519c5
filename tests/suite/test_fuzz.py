"""Random problems of every op on every backend, the same ones in every run.

On the emulator the constants from which on large problems take paths of their own are drawn too, so
that small ones take them all.
"""

from functools import partial

import masks
import pytest
import torch
from contrastive import make_rows
from divergences import DTYPES, make_batch
from divergences import make_rows as make_held_rows

from mcr_fast._names import DIVERGENCES, OF_LOGITS
from mcr_fast.ops._limits import SMALL_PAIR_CLASSES
from mcr_fast.ops.registry import OPS
from suite import backends, checks
from suite.backends import Backend
from suite.subjects import Divergence, Embeddings, Reconstruction, Subject

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

# problems in `make test`, and in all
QUICK = {"cpu": 20, "triton": 2, "cuda": 12}
SLOW = {"cpu": 200, "triton": 12, "cuda": 100}
UPSTREAM = st.sampled_from((1.0, -2.5))
MASKS, MASKABLE = st.sampled_from(masks.MASKS), st.sampled_from(OF_LOGITS)
SEEDS = st.integers(0, 2**16)
# both sides of every limit, and the teams of csrc with one step and several, whole and ragged
FEW_CLASSES = st.integers(1, 70) | st.sampled_from((1, 31, 32, 33, 48, 49, 64, 65))
MANY_CLASSES = (96, 101, 128, 174, 192, 193, 250, 400, 520, 700, 1025)


def dtypes(on: Backend, wide: bool = False) -> st.SearchStrategy:
    if on.process == "interpreted" and not wide:  # bfloat16 is cut off there, not rounded
        return st.sampled_from((torch.float32, torch.float16))
    return st.sampled_from(DTYPES[: 4 if wide and on.name == "cpu" else 3])


def classes(on: Backend, small: bool = False) -> st.SearchStrategy:
    if on.name == "triton":
        return FEW_CLASSES
    most = SMALL_PAIR_CLASSES if small and on.name == "cuda" else None
    return FEW_CLASSES | st.sampled_from([c for c in MANY_CLASSES if most is None or c <= most])


def knobs(on: Backend, **values: tuple[int, ...]) -> st.SearchStrategy:
    """Any of the emulator's, each left alone or one of the values."""
    chosen = values if on.process == "emulated" else {}
    return st.fixed_dictionaries({}, optional={k: st.sampled_from(v) for k, v in chosen.items()})


@st.composite
def pairs(draw, on: Backend) -> dict:
    slow = on.process == "interpreted"
    modalities = draw(st.sampled_from((2, 3) if slow else (2, 2, 2, 3, 4, 8)))
    scheme = draw(st.sampled_from(("cyclic", "table", "exhaustive")))
    options = {
        "subsets": "single" if modalities == 8 else draw(st.sampled_from(("single", "all"))),
        "strategy": draw(st.sampled_from(("greedy", "independent", "collaborative"))),
        "clean_path": draw(st.sampled_from(("shared", "routed", "detached"))),
        "divergence": draw(st.sampled_from(("jsd", *DIVERGENCES))),
        "exclude": draw(st.sampled_from(("none", "self", "same_label"))),
    }
    width = draw(classes(on, small=True))
    most = 5 if slow else 9 if width > 100 or modalities > 2 else 40
    rows = draw(st.integers(1, most))
    # squares of 1e4 have no float16 gradient
    scales = (0.01, 0.15, 1.5, 30.0, 1e4)[: 4 if options["divergence"] == "mse" else 5]
    x = make_batch(
        *(modalities, rows, width, scheme),
        own=scheme != "exhaustive" and draw(st.booleans()),
        count=draw(st.sampled_from((1, 2, 5, 20)[: 2 if slow else 4])),
        scale=draw(st.sampled_from(scales)),
        bias=draw(st.booleans()),
        present=draw(st.booleans()),
        weighted=draw(st.booleans()),
        dtype=draw(dtypes(on, wide=True)),
        seed=draw(SEEDS),
    )
    if rows > 2 and draw(st.booleans()):  # two rows that are alike in all but a rounding
        x.contributions[:, rows - 1] = x.contributions[:, 0] * (1 + 1e-4)
    subject = Divergence(x, options, draw(UPSTREAM | st.none()))
    wide = subject.map(lambda t: t.double() if t.is_floating_point() else t)
    # nothing but pairs of equal rows: the truth is 0, and so is the scale of the bound
    hypothesis.assume(wide.call("reference").max() > 1e-14)
    return {
        "subject": subject,
        "knobs": draw(
            knobs(
                on,
                kBusyThreads=(1, 256, 2048),  # one to many parts
            )
        ),
    }


@st.composite
def banded_pairs(draw, on: Backend) -> dict:
    """Two modalities whose donors are shifts, for the kernels of a band."""
    options = {
        "subsets": "single",
        "strategy": draw(st.sampled_from(("greedy", "independent", "collaborative"))),
        "clean_path": draw(st.sampled_from(("shared", "routed", "detached"))),
        "exclude": draw(st.sampled_from(("none", "self", "same_label"))),
    }
    rows = draw(st.integers(64, 130))
    x = make_batch(
        *(2, rows, draw(st.integers(1, 140)), draw(st.sampled_from(("window", "exhaustive")))),
        count=draw(st.sampled_from((1, 7, 32, 33, 63))),
        scale=draw(st.sampled_from((0.01, 0.15, 1.5, 8.0, 30.0))),
        bias=draw(st.booleans()),
        present=draw(st.booleans()),
        weighted=draw(st.booleans()),
        dtype=draw(dtypes(on)),
        seed=draw(SEEDS),
    )
    peaked = draw(st.sampled_from((0.0, 4.0, 40.0)))  # rows that are sure of a class each
    x.contributions[0, torch.arange(rows), torch.arange(rows) % x.contributions.shape[2]] += peaked
    if draw(st.booleans()):  # rows that are alike in all but a rounding, among others
        x.contributions[:, 1::3] = x.contributions[:, :1] * (1 + 1e-4)
    chunks = draw(knobs(on, kMaxPairBytes=(1, 1 << 20)))
    # kappa of a pair, rounded once, is in all of its classes
    subject = Divergence(x, options, draw(UPSTREAM | st.none()), coherent=True)
    return {"subject": subject, "knobs": chunks | {"kSmallRows": 0}}


@st.composite
def held_rows(draw, on: Backend) -> dict:
    width = draw(classes(on))
    x = make_held_rows(
        *(draw(st.integers(0, 40 if width > 100 else 200)), draw(st.integers(1, 30)), width),
        scale=draw(st.sampled_from((0.01, 2.0, 300.0))),
        weighted=draw(st.booleans()),
        dtype=draw(dtypes(on, wide=True)),
        seed=draw(SEEDS),
    )
    options = {"divergence": draw(st.sampled_from(("jsd", *DIVERGENCES)))}
    return {"subject": Divergence(x, options, draw(UPSTREAM))}


def hold(on: Backend, subject: Subject) -> None:
    checks.bound(subject.map(lambda t: t.to(on.device)), on)


@st.composite
def masked_pairs(draw, on: Backend) -> dict:
    """Logits with a mask in some classes of some rows."""
    scheme, own = draw(st.sampled_from((("cyclic", False), ("table", False), ("table", True))))
    x = make_batch(2, 9, draw(st.sampled_from((5, 13, 51))), scheme, own=own, seed=5)
    x = masks.masked_batch(draw(st.sampled_from(masks.CARRIERS)), draw(MASKS), x)
    taken = knobs(on, kBusyThreads=(1, 256))
    return {"subject": Divergence(x, {"divergence": draw(MASKABLE)}, 1.0), "knobs": draw(taken)}


@st.composite
def masked_rows(draw, on: Backend) -> dict:
    x = masks.masked_rows(draw(st.sampled_from(masks.ROW_SIDES)), draw(MASKS), 5, torch.float32)
    return {"subject": Divergence(x, {"divergence": draw(MASKABLE)}, 1.0)}


def hold_masked(on: Backend, subject: Divergence) -> None:
    checks.masked(subject.map(lambda t: t.to(on.device)), on)


@st.composite
def embeddings(draw, on: Backend, op: str) -> dict:
    slow = on.process == "interpreted"
    widths = st.integers(1, 70) if slow else st.integers(1, 70) | st.sampled_from((128, 132, 260))
    shape = draw(st.integers(2, 40 if slow else 200)), draw(widths)
    class_count, seed = draw(st.sampled_from((0, 1, 5, 30))), draw(SEEDS)
    x, labels, present = make_rows(*shape, class_count, torch.float32, seed=seed)
    x = (x * draw(st.sampled_from((1.0, 1e-3, 1e3)))).to(draw(dtypes(on)))
    rows = x, labels, present if draw(st.booleans()) else None
    temperature = draw(st.sampled_from((2.0, 0.5, 0.07, 0.02, 0.01)))
    return {"subject": Embeddings(op, *rows, temperature, factor=draw(UPSTREAM))}


@st.composite
def latents(draw, on: Backend) -> dict:
    widths = draw(st.lists(st.integers(0, 80), min_size=1, max_size=9))
    if draw(st.booleans()):  # whole vectors
        widths = [8 * (width % 32) for width in widths]
    rows, gap = draw(st.integers(0, 40)), draw(st.sampled_from((0, 0, 1, 8)))
    scale, first, second = (
        draw(st.sampled_from((1e-3, 1.0, 1e2))),
        draw(dtypes(on)),
        draw(dtypes(on)),
    )
    g = torch.Generator().manual_seed(draw(SEEDS))
    *made, h = (scale * torch.randn(rows, d + gap, generator=g) for d in (*widths, sum(widths)))
    tensors = [z.to(first)[:, gap:] for z in made], h.to(second)[:, gap:]
    return {"subject": Reconstruction(*tensors, draw(UPSTREAM))}


# op, check: problems, what they are held to
PROBLEMS = {
    ("permuted_divergence", "bound"): (pairs, hold),
    ("permuted_divergence", "masked"): (masked_pairs, hold_masked),
    ("permuted_divergence", "band"): (banded_pairs, hold),
    ("row_divergence", "bound"): (held_rows, hold),
    ("row_divergence", "masked"): (masked_rows, hold_masked),
    ("nt_xent", "bound"): (partial(embeddings, op="nt_xent"), hold),
    ("sup_con", "bound"): (partial(embeddings, op="sup_con"), hold),
    ("reconstruction_loss", "bound"): (latents, hold),
}


def test_every_op_has_problems():
    """One that is made of another has a test that compares the two."""
    assert {op for op, _ in PROBLEMS} == {op for op in OPS if not OPS[op].made_of}


def pytest_generate_tests(metafunc):
    if "on" not in metafunc.fixturenames:
        return
    items = []
    for on in backends.of_device(metafunc.config.option.device):
        for counts, slow in ((QUICK, ()), (SLOW, (pytest.mark.slow,))):
            marks = [*slow, *([pytest.mark.process(on.process)] if on.process else [])]
            for op, check in PROBLEMS if on.name in counts else ():
                if on.name not in OPS[op].backends or (check == "band" and on.name != "cuda"):
                    continue
                name = f"{on.name}-{op}-fuzz_{counts[on.name]}-{check}"
                given = on, *PROBLEMS[op, check], counts[on.name]
                items.append(pytest.param(*given, id=name, marks=marks))
    metafunc.parametrize(("on", "problems", "hold", "count"), items)


def test_fuzz(on, problems, hold, count):
    reason = on.unavailable()
    if reason:
        pytest.skip(reason)

    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(problems(on))
    def test(problem: dict) -> None:
        rest = dict(problem)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in rest.pop("knobs", {}).items():
                patch.setenv(f"MCR_EMULATED_{name}", str(value))
            hold(on, **rest)

    test()
