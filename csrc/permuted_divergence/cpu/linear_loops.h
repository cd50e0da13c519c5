// The three products of a linear layer with few outputs, for batches where a library's call costs
// more than its arithmetic:
//
//     out = Z W^T,     grad_z = G W,     grad_w = G^T Z
//
// Rows of Z and W are contiguous. Sums run in a fixed order.
#pragma once

#include "core/in_blocks.h"
#include "core/vec.h"
#include "permuted_divergence/cpu/kernels.h"

namespace mcr {
namespace MCR_ISA {

// Blocks of rows, classes and steps: every vector that is read is used several times, and sums
// enough are under way at once.
constexpr int kRowBlock = 2;
constexpr int kClassBlock = 4;
constexpr int kStepBlock = 4;

// out [N, C]
inline void linear_forward(const LinearProblem& pr, float* out) {
  constexpr int W = kWidth<float>;
  const int64_t whole = pr.width / W;
  in_blocks<kRowBlock>(pr.rows, [&](auto rows, int64_t n) {
    in_blocks<kClassBlock>(pr.classes, [&](auto classes, int64_t c) {
      Vec<float> sums[rows.value][classes.value] = {};
      const auto add = [&](const auto& load_at) {
        Vec<float> z[rows.value];
        for (int r = 0; r < rows.value; ++r) z[r] = load_at(pr.z + (n + r) * pr.z_stride);
        for (int k = 0; k < classes.value; ++k) {
          const Vec<float> w = load_at(pr.w + (c + k) * pr.w_stride);
          for (int r = 0; r < rows.value; ++r) sums[r][k] += z[r] * w;
        }
      };
      for (int64_t i = 0; i < whole; ++i) add([&](const float* row) { return load(row + i * W); });
      if (whole * W < pr.width) {
        add([&](const float* row) { return load_step(row, whole, pr.width, 0.0f); });
      }
      for (int r = 0; r < rows.value; ++r) {
        for (int k = 0; k < classes.value; ++k) {
          out[(n + r) * pr.classes + c + k] = sum(sums[r][k]);
        }
      }
    });
  });
}

// grad_z [N, D], contiguous; grad [N, C]
inline void linear_grad_z(const LinearProblem& pr, const float* grad, float* grad_z) {
  constexpr int W = kWidth<float>;
  const int64_t whole = pr.width / W;
  for (int64_t n = 0; n < pr.rows; ++n) {
    const float* g = grad + n * pr.classes;
    float* row = grad_z + n * pr.width;
    in_blocks<kStepBlock>(whole, [&](auto steps, int64_t i) {
      Vec<float> total[steps.value] = {};
      for (int64_t c = 0; c < pr.classes; ++c) {
        const float* w = pr.w + c * pr.w_stride + i * W;
        for (int s = 0; s < steps.value; ++s) total[s] += g[c] * load(w + s * W);
      }
      for (int s = 0; s < steps.value; ++s) store(row + (i + s) * W, total[s]);
    });
    if (whole * W == pr.width) continue;
    Vec<float> total = {};
    for (int64_t c = 0; c < pr.classes; ++c) {
      total += g[c] * load_step(pr.w + c * pr.w_stride, whole, pr.width, 0.0f);
    }
    store_step(row, whole, pr.width, total);
  }
}

// grad_w [C, D] with the strides of w; grad [N, C]
inline void linear_grad_w(const LinearProblem& pr, const float* grad, float* grad_w) {
  constexpr int W = kWidth<float>;
  const int64_t whole = pr.width / W;
  in_blocks<kClassBlock>(pr.classes, [&](auto classes, int64_t c) {
    in_blocks<kRowBlock>(whole, [&](auto steps, int64_t i) {
      Vec<float> total[classes.value][steps.value] = {};
      for (int64_t n = 0; n < pr.rows; ++n) {
        const float* z = pr.z + n * pr.z_stride + i * W;
        for (int s = 0; s < steps.value; ++s) {
          const Vec<float> x = load(z + s * W);
          for (int k = 0; k < classes.value; ++k) {
            total[k][s] += grad[n * pr.classes + c + k] * x;
          }
        }
      }
      for (int k = 0; k < classes.value; ++k) {
        for (int s = 0; s < steps.value; ++s) {
          store(grad_w + (c + k) * pr.w_stride + (i + s) * W, total[k][s]);
        }
      }
    });
    for (int k = 0; k < classes.value && whole * W < pr.width; ++k) {
      Vec<float> total = {};
      for (int64_t n = 0; n < pr.rows; ++n) {
        total +=
            grad[n * pr.classes + c + k] * load_step(pr.z + n * pr.z_stride, whole, pr.width, 0.0f);
      }
      store_step(grad_w + (c + k) * pr.w_stride, whole, pr.width, total);
    }
  });
}

}  // namespace MCR_ISA
}  // namespace mcr
