"""Dispatcher ops, one file each: fake, autograd and the choice of backend."""

OPS = (
    "permuted_divergence",
    "row_divergence",
    "nt_xent",
    "sup_con",
    "reconstruction_loss",
)

# Ops that have kernels/<op>.py, which `backend="triton"` runs.
TRITON_OPS: tuple[str, ...] = (
    "permuted_divergence",
    "row_divergence",
    "nt_xent",
    "sup_con",
    "reconstruction_loss",
)
