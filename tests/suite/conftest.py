"""In an emulated process the CUDA library, compiled for the host, stands in for the CPU one.

By hand, MCR_FAST_EMULATED=address with LD_PRELOAD of libasan.so and libstdc++.so and
ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0 finds accesses outside of tensors.
"""
