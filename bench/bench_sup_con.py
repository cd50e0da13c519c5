"""Supervised contrastive loss, the other choice for the contrastive term."""

from bench.contrastive import contrastive_benchmark
from bench.eager import sup_con_eager

TEMPERATURE = 0.1
BENCHMARK = contrastive_benchmark(
    "sup_con",
    TEMPERATURE,
    lambda inputs: sup_con_eager(inputs.latents, inputs.all_labels(), TEMPERATURE, inputs.case.C),
    reference_matrices=10,
    eager_matrices=5,
    pml="SupConLoss",
    pml_bytes=lambda case: case.dense_bytes(16),  # its masks are dense floats
)
