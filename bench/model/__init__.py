"""`python -m bench model`: what every row should take on an H200, from the machine code."""
