// The reconstruction loss' row algorithms: the mean over all elements of (h - [Z_1 .. Z_M])^2. Each
// modality meets its own columns of h where they lie, so no concatenation exists.
#pragma once

#include "bfloat16.h"

namespace mcr {
namespace MCR_ISA {

// Columns whose squares one vector adds up before float64 takes over.
constexpr int64_t kColumnsPerSum = 1024;

// Sum over rows [begin, end) and one modality's columns of (h - z)^2.
template <class T, class In>
double squared_error(const In* latents,         // [N, width]
                     const In* reconstruction,  // [N, stride], from the modality's first column on
                     int64_t stride, int64_t begin, int64_t end, int64_t width) {
  constexpr int W = kWidth<T>;
  double total = 0;
  for (int64_t n = begin; n < end; ++n) {
    const In* z = latents + n * width;
    const In* h = reconstruction + n * stride;
    Vec<T> squares = {};
    int64_t d = 0;
    for (; d + W <= width; d += W) {
      const Vec<T> difference = load_as(h + d) - load_as(z + d);
      squares += difference * difference;
      if (d % kColumnsPerSum == kColumnsPerSum - W) {
        total += double(sum(squares));
        squares = Vec<T>{};
      }
    }
    if (d < width) {
      const Vec<T> difference = load_some<T>(h + d, width - d) - load_some<T>(z + d, width - d);
      squares += difference * difference;
    }
    total += double(sum(squares));
  }
  return total;
}

// Its gradient: factor * (h - z) to h and minus that to z.
template <class T, class In>
void squared_error_grad(const In* latents,         // [N, width]
                        const In* reconstruction,  // [N, stride]
                        int64_t stride, int64_t begin, int64_t end, int64_t width, T factor,
                        In* grad_latents, In* grad_reconstruction) {
  constexpr int W = kWidth<T>;
  for (int64_t n = begin; n < end; ++n) {
    const In* z = latents + n * width;
    const In* h = reconstruction + n * stride;
    In* grad_z = grad_latents + n * width;
    In* grad_h = grad_reconstruction + n * stride;
    int64_t d = 0;
    for (; d + W <= width; d += W) {
      const Vec<T> g = factor * (load_as(h + d) - load_as(z + d));
      store_as(grad_h + d, g);
      store_as(grad_z + d, -g);
    }
    if (d < width) {
      const int64_t left = width - d;
      const Vec<T> g = factor * (load_some<T>(h + d, left) - load_some<T>(z + d, left));
      store_some<T>(grad_h + d, g, left);
      store_some<T>(grad_z + d, -g, left);
    }
  }
}

}  // namespace MCR_ISA
}  // namespace mcr
