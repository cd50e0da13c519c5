// What is read from the library's file, where it cannot be loaded too, by `python -m mcr_fast.env`
// and .ci/describe-wheel: the CUDA runtime inside, on which the driver depends. Its form is that of
// mcr_fast/_cuda_code.py.
#include <cuda_runtime_api.h>

#define MCR_TEXT_OF(x) #x
#define MCR_TEXT(x) MCR_TEXT_OF(x)

namespace mcr {
namespace cuda {
namespace {

__attribute__((used)) const char kBuildRecord[] =
    "mcr_fast CUDA library: toolkit " MCR_TEXT(CUDART_VERSION) ", for " MCR_CUDA_ARCHITECTURES;

}  // namespace
}  // namespace cuda
}  // namespace mcr
