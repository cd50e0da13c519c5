"""`python -m bench gpu`: is it right, and how fast is it, on the GPU of this machine."""
