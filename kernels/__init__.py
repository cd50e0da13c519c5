"""Triton kernels, one file for each op; installed as ``mcr_fast.kernels``."""
