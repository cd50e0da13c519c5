"""What nt_xent and sup_con share: a batch, its logits in tiles, sums and gradient."""
