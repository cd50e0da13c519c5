// What `python -m mcr_fast.env` reads from the library's file, where it cannot be loaded too. Its
// form is that of mcr_fast/env/_elf.py.
#include <cuda.h>

#define MCR_TEXT_OF(x) #x
#define MCR_TEXT(x) MCR_TEXT_OF(x)

namespace mcr {
namespace cuda {
namespace {

__attribute__((used)) const char kBuildRecord[] =
    "mcr_fast CUDA library: toolkit " MCR_TEXT(CUDA_VERSION) ", for " MCR_CUDA_ARCHITECTURES;

}  // namespace
}  // namespace cuda
}  // namespace mcr
