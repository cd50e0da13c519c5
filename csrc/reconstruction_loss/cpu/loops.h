// The row loops of reconstruction_loss: the mean over all elements of (h - [Z_1 .. Z_M])^2. Each
// modality meets its own columns of h where they lie, so no concatenation exists.
#pragma once

#include "core/bfloat16.h"
#include "reconstruction_loss/cpu/kernels.h"

namespace mcr {
namespace MCR_ISA {

// h - z of the vector at n, or of what a row that is no whole number of them has left there.
template <class T, class In>
Vec<T> difference_at(const In* h, const In* z, int64_t n) {
  return load_as(h + n) - load_as(z + n);
}
template <class T, class In>
Vec<T> difference_of_rest(const In* h, const In* z, int64_t n, int64_t width) {
  return load_some<T>(h + n, width - n) - load_some<T>(z + n, width - n);
}

// The sum of (h - z)^2 over rows begin .. end - 1.
template <class T, class In>
double squared_error(const ReconstructionPart& part, int64_t begin, int64_t end) {
  constexpr int64_t W = kWidth<T>;
  constexpr int64_t kColumnsPerSum = sizeof(T) == sizeof(float) ? 64 * W : 1024;
  const int64_t width = part.width, whole = width / W * W;
  double total = 0;
  for (int64_t row = begin; row < end; ++row) {
    const In* z = static_cast<const In*>(part.latents) + row * part.latents_stride;
    const In* h = static_cast<const In*>(part.reconstruction) + row * part.reconstruction_stride;
    Vec<T> squares = {};
    int64_t n = 0;
    while (n < whole) {
      const int64_t stop = n + kColumnsPerSum < whole ? n + kColumnsPerSum : whole;
      for (; n < stop; n += W) {
        const Vec<T> difference = difference_at<T>(h, z, n);
        squares += difference * difference;
      }
      if (n == whole) break;
      total += double(sum(squares));  // float64 takes over after 64 in each lane of float32
      squares = Vec<T>{};
    }
    if (whole < width) {
      const Vec<T> difference = difference_of_rest<T>(h, z, whole, width);
      squares += difference * difference;
    }
    total += double(sum(squares));
  }
  return total;
}

// Its gradient: factor * (h - z) to h and minus that to z.
template <class T, class In>
void squared_error_grad(const ReconstructionPart& part, int64_t begin, int64_t end, T factor) {
  constexpr int64_t W = kWidth<T>;
  const int64_t width = part.width, whole = width / W * W;
  for (int64_t row = begin; row < end; ++row) {
    const In* z = static_cast<const In*>(part.latents) + row * part.latents_stride;
    const In* h = static_cast<const In*>(part.reconstruction) + row * part.reconstruction_stride;
    In* grad_z = static_cast<In*>(part.grad_latents) + row * width;
    In* grad_h = static_cast<In*>(part.grad_reconstruction) + row * part.grad_stride;
    for (int64_t n = 0; n < whole; n += W) {
      const Vec<T> g = factor * difference_at<T>(h, z, n);
      store_as(grad_h + n, g);
      store_as(grad_z + n, -g);
    }
    if (whole < width) {
      const Vec<T> g = factor * difference_of_rest<T>(h, z, whole, width);
      store_some<T>(grad_h + whole, g, width - whole);
      store_some<T>(grad_z + whole, -g, width - whole);
    }
  }
}

template <class T, class In>
constexpr ReconstructionLossLoops<T, In> kReconstructionLossLoops = {squared_error<T, In>,
                                                                     squared_error_grad<T, In>};

}  // namespace MCR_ISA
}  // namespace mcr
