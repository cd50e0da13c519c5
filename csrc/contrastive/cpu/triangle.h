// The similarities of a small batch. A library's product makes both triangles, and two calls of it
// are most of a small batch's time; here each pair of rows is multiplied once.
#pragma once

#include "core/in_blocks.h"
#include "core/vec.h"

namespace mcr {
namespace MCR_ISA {

// Rows and columns of a block: as many sums as registers hold beside the vectors they are made of.
constexpr int kTriangleRows = MCR_VEC_BYTES >= 64 ? 4 : 3;
constexpr int kTriangleColumns = 4;

// dots[a][b] = z_a . z_b for a <= b, of rows z [rows, width]. Sums run in a fixed order.
template <class T>
void triangle(const T* z, int64_t rows, int64_t width, T* dots, int64_t stride) {
  constexpr int W = kWidth<T>;
  const int64_t whole = width / W;
  in_blocks<kTriangleRows>(rows, [&](auto height, int64_t first) {
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

}  // namespace MCR_ISA
}  // namespace mcr
