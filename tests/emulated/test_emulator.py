"""The emulator itself: right kernels give what a GPU gives, wrong ones are found out."""

import ctypes
import subprocess

import pytest
import torch
from emulated.build import DEFINES, FLAGS, HERE, QUIET, RENAMED, ROOT, TORCH, translate_launches
from torch.utils import cpp_extension

pytestmark = pytest.mark.process("emulated")

SOURCE = """
__global__ void reverse_kernel(const int* from, int* to) {
  __shared__ int shared[64];
  shared[threadIdx.x] = from[blockIdx.x * 64 + threadIdx.x];
  __syncthreads();
  to[blockIdx.x * 64 + threadIdx.x] = shared[63 - threadIdx.x];
}
__global__ void reverse_too_early_kernel(const int* from, int* to) {
  __shared__ int shared[64];
  shared[threadIdx.x] = from[blockIdx.x * 64 + threadIdx.x];
  to[blockIdx.x * 64 + threadIdx.x] = shared[63 - threadIdx.x];
}
__global__ void sum_warps_kernel(const int* from, int* to) {
  int sum = from[blockIdx.x * 64 + threadIdx.x];
  for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
  to[blockIdx.x * 64 + threadIdx.x] = sum;
}
__global__ void miss_a_barrier_kernel(const int*, int* to) {
  if (threadIdx.x < 40) __syncwarp();
  to[threadIdx.x] = 1;
}
extern "C" __attribute__((visibility("default"))) int run(int which, const int* from, int* to) {
  cudaStream_t stream = nullptr;
  try {
    if (which == 0) reverse_kernel<<<3, 64, 0, stream>>>(from, to);
    if (which == 1) reverse_too_early_kernel<<<3, 64, 0, stream>>>(from, to);
    if (which == 2) sum_warps_kernel<<<3, 64, 0, stream>>>(from, to);
    if (which == 3) miss_a_barrier_kernel<<<1, 64, 0, stream>>>(from, to);
    if (which == 4) reverse_kernel<<<3, 2048, 0, stream>>>(from, to);
  } catch (const std::exception&) {
    return 1;
  }
  return 0;
}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "kernels.cpp").write_text(translate_launches(SOURCE))
    flags = [*FLAGS, *QUIET, *(f"-D{name}" for name in DEFINES)]
    flags += [f"-D{a}={b}" for a, b in RENAMED.items()]
    flags += [f"-I{path}" for path in (HERE / "include", HERE, ROOT / "csrc")]
    flags += [f"-isystem{path}" for path in cpp_extension.include_paths()]
    before = ["-include", "cuda_runtime_api.h", "-include", "emulator.h", "-include", "stdexcept"]
    commands = [
        ["c++", *flags, *before, "-c", "kernels.cpp"],
        ["c++", *flags, "-c", str(HERE / "emulator.cpp")],
        [
            "c++",
            "-shared",
            "-Wl,-Bsymbolic",
            "kernels.o",
            "emulator.o",
            *TORCH,
            "-o",
            "libkernels.so",
        ],
    ]
    for command in commands:
        subprocess.run(command, cwd=folder, check=True)
    library = ctypes.CDLL(str(folder / "libkernels.so"))

    def call(which: int) -> tuple[int, torch.Tensor, torch.Tensor]:
        numbers = torch.arange(192, dtype=torch.int32)
        to = torch.full_like(numbers, -1)
        addresses = (ctypes.c_void_p(t.data_ptr()) for t in (numbers, to))
        return library.run(which, *addresses), numbers.view(3, 64), to.view(3, 64)

    return call


def test_threads_of_a_block_wait_for_each_other(run):
    failed, numbers, to = run(0)
    assert not failed
    assert torch.equal(to, numbers.flip(1))


def test_a_missing_barrier_shows(run):
    _, numbers, to = run(1)
    assert not torch.equal(to, numbers.flip(1))


def test_lanes_exchange(run):
    failed, numbers, to = run(2)
    assert not failed
    assert torch.equal(to.view(6, 32), numbers.view(6, 32).sum(1, keepdim=True).expand(6, 32).int())


def test_a_barrier_that_lanes_miss_is_an_error(run):
    assert run(3)[0] == 1


def test_a_launch_that_no_gpu_takes_is_an_error(run):
    assert run(4)[0] == 1
