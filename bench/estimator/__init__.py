"""What the draw of donors does to L_MIPD: bias and variance, time and memory, accuracy."""
