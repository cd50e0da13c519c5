"""L_MIPD of latents and a fusion: `evaluate` picks one of four ways to answer a `Request`."""
