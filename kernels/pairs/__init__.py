"""What permuted_divergence and gather_add share: donors, rows, the two sides of a pair."""
