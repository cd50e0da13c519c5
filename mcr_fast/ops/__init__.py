"""Dispatcher ops, one file each: fake, autograd and the choice of backend."""

OPS = (
    "permuted_divergence",
    "row_divergence",
    "nt_xent",
    "sup_con",
    "reconstruction_loss",
)
