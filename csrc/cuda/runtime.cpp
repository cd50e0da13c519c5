#include <cuda_runtime_api.h>

#define MCR_STRING(x) #x
#define MCR_STRING_OF(x) MCR_STRING(x)

// For whoever reads the file: the version of the CUDA runtime inside, on which the driver depends.
__attribute__((used)) static const char kRuntime[] =
    "mcr_fast CUDA runtime " MCR_STRING_OF(CUDART_VERSION);
