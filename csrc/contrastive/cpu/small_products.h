// The two products of a small batch, on the thread that called: waking others takes as long as
// their share of the work would. A library's product of similarities makes both triangles; here
// each pair of rows is multiplied once.
#pragma once

#include "core/in_blocks.h"
#include "core/vec.h"

namespace mcr {
namespace MCR_ISA {

// Rows and columns of a block: as many sums as registers hold beside the vectors they are made of.
constexpr int kTriangleRows = MCR_VEC_BYTES >= 64 ? 4 : 3;
constexpr int kTriangleColumns = 4;

// dots[a][b] = z_a . z_b for a in [begin, end) and b >= a, of rows z [rows, width]. Sums run in a
// fixed order.
template <class T>
void triangle(const T* z, int64_t begin, int64_t end, int64_t rows, int64_t width, T* dots,
              int64_t stride) {
  constexpr int W = kWidth<T>;
  const int64_t whole = width / W;
  in_blocks<kTriangleRows>(end - begin, [&](auto height, int64_t above) {
    const int64_t first = begin + above;
    in_blocks<kTriangleColumns>(rows - first, [&](auto columns, int64_t right) {
      const T *a = z + first * width, *b = a + right * width;
      Vec<T> sums[height.value][columns.value] = {};
      const auto add = [&](const auto& load_at) {
        Vec<T> x[height.value];
        for (int r = 0; r < height.value; ++r) x[r] = load_at(a + r * width);
        for (int c = 0; c < columns.value; ++c) {
          const Vec<T> y = load_at(b + c * width);
          for (int r = 0; r < height.value; ++r) sums[r][c] += x[r] * y;
        }
      };
      for (int64_t i = 0; i < whole; ++i) add([&](const T* row) { return load(row + i * W); });
      if (whole * W < width) {
        add([&](const T* row) { return load_step(row, whole, width, T(0)); });
      }
      for (int r = 0; r < height.value; ++r) {
        for (int c = 0; c < columns.value; ++c) {
          dots[(first + r) * stride + first + right + c] = sum(sums[r][c]);
        }
      }
    });
  });
}

// Rows and vectors of a block of sums.
constexpr int kSumRows = 4;
constexpr int kSumSteps = MCR_VEC_BYTES >= 64 ? 4 : 2;

// dz_a = sum_b h[a][b] z_b for a in [begin, end), of h [rows, rows] and z [rows, width]; b in
// order.
template <class T>
void weighted_rows(const T* h, int64_t stride, const T* z, int64_t begin, int64_t end, int64_t rows,
                   int64_t width, T* dz) {
  constexpr int W = kWidth<T>;
  const int64_t whole = width / W;
  in_blocks<kSumRows>(end - begin, [&](auto height, int64_t above) {
    const int64_t first = begin + above;
    const T* factors = h + first * stride;
    T* out = dz + first * width;
    in_blocks<kSumSteps>(whole, [&](auto steps, int64_t i) {
      Vec<T> sums[height.value][steps.value] = {};
      for (int64_t b = 0; b < rows; ++b) {
        const T* row = z + b * width + i * W;
        for (int s = 0; s < steps.value; ++s) {
          const Vec<T> x = load(row + s * W);
          for (int r = 0; r < height.value; ++r) sums[r][s] += factors[r * stride + b] * x;
        }
      }
      for (int r = 0; r < height.value; ++r) {
        for (int s = 0; s < steps.value; ++s) store(out + r * width + (i + s) * W, sums[r][s]);
      }
    });
    for (int r = 0; r < height.value && whole * W < width; ++r) {
      Vec<T> total = {};
      for (int64_t b = 0; b < rows; ++b) {
        total += factors[r * stride + b] * load_step(z + b * width, whole, width, T(0));
      }
      store_step(out + r * width, whole, width, total);
    }
  });
}

}  // namespace MCR_ISA
}  // namespace mcr
