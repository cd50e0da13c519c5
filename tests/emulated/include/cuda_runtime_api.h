// In place of CUDA's own, for the emulator.
#pragma once

#include <stddef.h>

typedef int cudaError_t;
typedef struct CUstream_st* cudaStream_t;

extern "C" {
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaGetLastError();
}
