"""The contrastive losses over the rows of all processes of a group."""
