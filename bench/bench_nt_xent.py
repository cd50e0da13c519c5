"""The contrastive term as published: label-supervised NT-Xent over all modalities' embeddings."""

from bench.case import Case
from bench.contrastive import contrastive_benchmark
from bench.eager import nt_xent_eager

TEMPERATURE = 0.5


def pml_bytes(case: Case) -> float:
    """The loss that the published code calls keeps about 6 float matrices of pairs of pairs.

    As many as ordered pairs of equal labels, times those of different labels, on average over the
    draws; M rows share each of the N draws.
    """
    equal = case.L * (case.M - 1 + case.M * (case.N - 1) / case.C)
    different = case.L * case.M * (case.N - 1) * (1 - 1 / case.C)
    return 6 * 4 * equal * different


BENCHMARK = contrastive_benchmark(
    "nt_xent",
    TEMPERATURE,
    lambda inputs: nt_xent_eager(inputs.latents, inputs.all_labels(), TEMPERATURE),
    reference_matrices=12,
    eager_matrices=6,
    pml="NTXentLoss",
    pml_bytes=pml_bytes,
)
