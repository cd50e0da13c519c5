"""Every op in one row: its schemas, the backends that have kernels for it, and their limits.

An op `<op>` has `ops/<op>.py`, `reference/<op>.py` and the public function `functional.<op>`. The
compiled library defines the same schemas for its default overloads, in csrc/registration.cpp; a
test holds the two against each other.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mcr_fast.ops import _limits as limits
from mcr_fast.ops._limits import Call, Limit, Refusal

# Up to which size (None: any) CUDA tensors take which backends, best first; then any other that is
# here. The size is the number of classes of the divergences, of rows of the contrastive losses.
Choice = tuple[tuple[int | None, tuple[str, ...]], ...]
# By the model in docs/decisions/two-gpu-backends.md: modelled, not measured. What
# `python -m bench gpu` prints goes here. A row "nt_xent 16-bit" beside that of "nt_xent" is for
# bfloat16 and float16, where they choose otherwise. Ops with one GPU backend have no row.
CHOICE: dict[str, Choice] = {
    "permuted_divergence": ((None, ("cuda", "triton")),),
    "nt_xent": ((limits.SMALL_ROWS, ("cuda", "triton")), (None, ("triton",))),
    "sup_con": ((limits.SMALL_ROWS, ("cuda", "triton")), (None, ("triton",))),
}


@dataclass(frozen=True)
class Op:
    """What Python knows of one op."""

    forward: str  # schema of <op>_fwd
    backward: str  # and of <op>_bwd; neither name is taken where nothing is differentiated
    backends: tuple[str, ...] = ("cpu", "triton", "cuda")  # that have kernels, kernels/<op>.py too
    limits: Mapping[str, Limit] = field(default_factory=dict)  # of a backend that has one
    made_of: str | None = None  # the op that serves where only torch's products stand before it

    def refusal(self, backend: str, call: Call) -> Refusal | None:
        """What the backend takes of the op, where that is not this call; None where it takes it."""
        limit = self.limits.get(backend)
        return None if limit is None else limit(call)


_PAIRS = (  # what follows the contributions
    "Tensor? bias, Tensor? order, Tensor? donors, Tensor? labels, Tensor? present, "
    "Tensor? sample_weight, int[] subsets, str strategy, str clean_path, str divergence, "
    "str exclude"
)
_CONTRASTIVE = Op(
    "(Tensor embeddings, Tensor labels, Tensor? present, float temperature, bool want_grad) "
    "-> (Tensor loss, Tensor unit_grad)",
    "(Tensor grad, Tensor unit_grad, ScalarType dtype) -> Tensor",
    limits={"cuda": limits.contrastive_of_cuda},
)

OPS: dict[str, Op] = {
    "permuted_divergence": Op(
        f"(Tensor contributions, {_PAIRS}, bool want_grad) "
        "-> (Tensor divergences, Tensor unit_grad, Tensor unit_grad_bias)",
        f"(Tensor grad, Tensor unit_grad, Tensor unit_grad_bias, Tensor contributions, {_PAIRS}) "
        "-> (Tensor grad_contributions, Tensor grad_bias)",
        limits={
            "cpu": limits.modalities,
            "triton": limits.pairs_of_triton,
            "cuda": limits.pairs_of_cuda,
        },
    ),
    "linear_permuted_divergence": Op(
        f"(Tensor[] latents, Tensor weight, {_PAIRS}, bool want_grad) "
        "-> (Tensor divergences, Tensor unit_grad, Tensor unit_grad_bias, Tensor contributions)",
        "(Tensor? grad, Tensor unit_grad, Tensor unit_grad_bias, Tensor contributions, "
        f"Tensor? grad_contributions, int[] wanted, Tensor[] latents, Tensor weight, {_PAIRS}) "
        "-> (Tensor[] grad_latents, Tensor grad_weight, Tensor grad_bias)",
        backends=("cpu", "cuda"),
        made_of="permuted_divergence",
    ),
    "row_divergence": Op(
        "(Tensor perturbed, Tensor clean, Tensor rows, Tensor? row_weight, str divergence, "
        "bool want_grad, bool notes, bool mean) "
        "-> (Tensor total, Tensor weight, Tensor of_perturbed, Tensor unit_grad_clean)",
        "(Tensor grad, Tensor? weight, Tensor of_perturbed, Tensor unit_grad_clean, "
        "Tensor perturbed, Tensor clean, Tensor rows, Tensor? row_weight, str divergence, "
        "bool notes) -> (Tensor grad_perturbed, Tensor grad_clean)",
        backends=("cpu", "triton"),
        limits={"triton": limits.rows_of_triton},
    ),
    "nt_xent": _CONTRASTIVE,
    "sup_con": _CONTRASTIVE,
    "reconstruction_loss": Op(
        "(Tensor[] latents, Tensor reconstruction) -> Tensor",
        "(Tensor grad, Tensor[] latents, Tensor reconstruction) "
        "-> (Tensor[] grad_latents, Tensor grad_reconstruction)",
        backends=("cpu", "triton"),
    ),
}

# What no function offers: the terms of `MCRLoss` in one call, each of them an op above.
INNER: dict[str, Op] = {
    "regularizer": Op(
        f"(Tensor[] latents, Tensor weight, {_PAIRS}, Tensor classes, str contrastive, "
        "float temperature, float mipd_weight, float contrastive_weight, bool want_grad) "
        "-> (Tensor loss, Tensor mipd, Tensor contrastive, Tensor logits, Tensor divergences, "
        "Tensor importance, Tensor unit_grad, Tensor unit_grad_bias, Tensor unit_grad_rows)",
        "(Tensor? grad_loss, Tensor? grad_mipd, Tensor? grad_contrastive, Tensor? grad_logits, "
        "Tensor unit_grad, Tensor unit_grad_bias, Tensor unit_grad_rows, float mipd_weight, "
        "float contrastive_weight, int[] wanted, Tensor[] latents, Tensor weight) "
        "-> (Tensor[] grad_latents, Tensor grad_weight, Tensor grad_bias)",
    ),
}

_BLOCK = (  # anchors, a block of columns, and where the first anchor stands among them or -1
    "Tensor rows, Tensor row_codes, Tensor? row_marks, Tensor columns, Tensor column_codes, "
    "Tensor? column_marks, int offset, str loss"
)
# What no function offers either, and nothing differentiates: the contrastive losses by blocks of
# columns, which may be another process's rows. Each is one dispatcher op of its own name.
BLOCKS: dict[str, Op] = {
    name: Op(f"({_BLOCK}, {rest}", "", backends=("cpu", "triton"))
    for name, rest in {
        "contrastive_sums": "float temperature) -> Tensor",
        "contrastive_pairs": "Tensor log_sum, float temperature) "
        "-> (Tensor loss, Tensor count, Tensor log_weight)",
        "contrastive_gradient": "Tensor row_stats, Tensor column_stats, float temperature) "
        "-> Tensor",
    }.items()
}


def row_of(op: str) -> Op:
    """The row of an op that backends are chosen for."""
    return BLOCKS[op] if op in BLOCKS else OPS[op]


def kernel_of(op: str) -> str:
    """The dispatcher op that tells whether a library has kernels for an op."""
    return op if op in BLOCKS else f"{op}_fwd"


def schemas() -> dict[str, str]:
    """The schema of each dispatcher op, by its name without the namespace."""
    found = {name: op.forward for name, op in BLOCKS.items()}
    for name, op in (OPS | INNER).items():
        found |= {f"{name}_fwd": op.forward, f"{name}_bwd": op.backward}
    return found


def with_kernels(backend: str) -> tuple[str, ...]:
    """The ops that a backend has kernels for."""
    return tuple(name for name, op in OPS.items() if backend in op.backends)


def preferred(op: str, size: int | None = None, *, sixteen_bit: bool = False) -> tuple[str, ...]:
    """The backends of CUDA tensors that `CHOICE` names, best first, whether they are here or not.

    Without a size, those of the smallest.
    """
    rows = CHOICE.get(op, ())
    if sixteen_bit:
        rows = CHOICE.get(f"{op} 16-bit", rows)
    for most, order in rows:
        if most is None or size is None or size <= most:
            return order
    return ()
