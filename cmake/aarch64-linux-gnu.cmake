# Cross-compiles both libraries for aarch64; .ci/wheel-aarch64 drives it. The packages of the build
# machine give torch's headers, which are the same everywhere, and MCR_AARCH64_TORCH, a variable of
# the environment, names the libraries of an aarch64 torch to link with.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
# In front of the cached one that setup.py passes.
set(MCR_TORCH_LIBRARY_DIRS $ENV{MCR_AARCH64_TORCH})
