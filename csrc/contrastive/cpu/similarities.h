// The batch of a contrastive loss: its rows sorted by label and normalised, the stripes of the
// upper triangle of its similarities, and the gradient H Z. The losses differ only in the row loops
// that they run on a stripe.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "contrastive/arguments.h"
#include "contrastive/cpu/kernels.h"
#include "cpu/products.h"
#include "cpu/tensors.h"

namespace mcr {

constexpr int64_t kStripeRows = 256;

// All the memory of a call, as far as the batch allows: the whole triangle up to about 5,000 rows;
// beyond, a part of it. The rest is computed again in each sweep.
constexpr int64_t kWorkspaceBytes = int64_t{96} << 20;

// Below, products in bfloat16 save nothing, and they cost digits.
constexpr int64_t kMinBfloat16Rows = 512;

// Elements of a batch, of one stripe, that stay in a core's L2 cache: then our own loops take less
// time for its products than a library does.
constexpr int64_t kMaxSmallBatch = int64_t{1} << 17;
// Multiplications of a product that are not worth waking a thread for: about 40 us.
constexpr int64_t kProductGrain = int64_t{1} << 21;
// Rows that are whole blocks of the loops of any instruction set.
constexpr int64_t kRowUnit = 12;

// Columns of H that are made and multiplied at once, while they are in cache. And torch's bfloat16
// products keep a compiled kernel of half a megabyte for every shape and stride: panels have few.
constexpr int64_t kPanelRows = 1024;

// Strides of the similarities are whole vectors of any instruction set and number type.
inline int64_t padded(int64_t columns) { return (columns + 15) / 16 * 16; }

template <class T>
class Similarities {
 public:
  Similarities(const ContrastiveLoops<T>& loops,
               const Tensor& embeddings,       // [L, D]
               const Tensor& labels,           // [L] int64, or [N] of L / N modalities
               const OptionalTensor& present,  // [L] bool, or [N, L / N]
               double temperature, bool want_grad)
      : loops_(loops),
        all_rows_(embeddings.size(0)),
        width_(embeddings.size(1)),
        scale_(kLog2e / temperature) {
    check_rows(embeddings, labels, present, temperature);
    sort_rows(labels, present);
    bfloat16_ = want_grad && rows_ >= kMinBfloat16Rows &&
                embeddings.scalar_type() == ScalarType::BFloat16 && has_bfloat16_products();
    // 2^(-2 scale), the least exponential there is, and its inverse times a number of rows must be
    // numbers of float32.
    running_max_ = !(2 * scale_ + std::log2(double(rows_) + 1) < 120);
    normalize(embeddings);
    plan_memory(want_grad);
  }

  int64_t rows() const { return rows_; }  // P: those present
  double scale() const { return scale_; }
  int64_t class_size(int64_t a) const { return class_end_[a] - class_begin_[a]; }
  const int64_t* class_ends() const { return class_end_.data(); }
  double sum(int64_t a) const { return sum_[a]; }
  // log2 of the sum of e^s_aj
  double log2_sum(int64_t a) const { return double(max_[a]) * scale_ + std::log2(sum_[a]); }
  RowWeights<T> row_weights(const T* weight) const { return {weight, max_.get(), log2_sum_.get()}; }
  static int64_t tiles(const SimilarityStripe<T>& stripe) {
    return (stripe.columns + kTileColumns - 1) / kTileColumns;
  }

  // f(stripe) for every stripe in order, cut to the columns that hold positives if only those
  // count.
  template <class F>
  void for_each_stripe(bool positives_only, const F& f) {
    for (int64_t i = 0; i * kStripeRows < rows_; ++i) {
      const int64_t first = i * kStripeRows, last = std::min(first + kStripeRows, rows_) - 1;
      f(stripe(i, (positives_only ? class_end_[last] : rows_) - first));
    }
  }

  // f(tile, begin, end) for the tiles of a stripe side by side.
  template <class F>
  static void for_each_tile(const SimilarityStripe<T>& stripe, const F& f) {
    for_each(tiles(stripe), grain_of(kGrain, stripe.rows * kTileColumns), [&](int64_t i) {
      f(i, i * kTileColumns, std::min((i + 1) * kTileColumns, stripe.columns));
    });
  }

  // Zeros, one per row and a vector to spare at the end.
  template <class U>
  Buffer<U> per_row() const {
    Buffer<U> memory(rows_ + 16);
    std::fill_n(memory.get(), rows_ + 16, U(0));
    return memory;
  }

  // Sums the exponentials of the columns b >= enter[a] > a, for row a and for row b.
  void sum_exponentials(const int64_t* enter) {
    sum_ = per_row<double>();
    max_ = per_row<T>();
    log2_sum_ = per_row<T>();
    std::fill_n(max_.get(), rows_, T(running_max_ ? -4 : 1));  // below any similarity, or the bound
    const int64_t partials = padded(rows_) + kTileColumns;     // kStripeRows of each tile
    Buffer<T> row_max(running_max_ ? partials : 0), row_sum(partials);
    for_each_stripe(false, [&](const SimilarityStripe<T>& s) {
      for_each_tile(s, [&](int64_t tile, int64_t begin, int64_t end) {
        const ExpSums<T> sums = {enter, row_max.get() + tile * kStripeRows,
                                 row_sum.get() + tile * kStripeRows, max_.get(), sum_.get()};
        (running_max_ ? loops_.running_exp_sums : loops_.exp_sums)(s, begin, end, sums);
      });
      for (int64_t i = 0; i < tiles(s) * kStripeRows; ++i) {
        if (i % kStripeRows >= s.rows) continue;
        const int64_t a = s.first + i % kStripeRows;
        if (running_max_) {
          add_running(a, row_max[i], row_sum[i]);
        } else {
          sum_[a] += double(row_sum[i]);
        }
      }
    });
    for (int64_t a = 0; a < rows_; ++a) log2_sum_[a] = T(std::log2(sum_[a]));
  }

  // factor * dx [L, D] for dz = H Z, H of the loops' and of the rows' weights [P]. Lets the
  // similarities go.
  Tensor gradient(const Buffer<T>& weight, T factor) {
    dz_.resize(rows_ * width_ + 16);
    if (!small()) std::memset(dz_.get(), 0, rows_ * width_ * sizeof(T));
    const int64_t panel_rows = std::min(padded(rows_), kPanelRows);
    if (bfloat16_) {
      h_bf16_.resize(kStripeRows * panel_rows);
      product_bf16_.resize(panel_rows * width_ + 16);
    } else {
      h_.resize(std::min(rows_, kStripeRows) * panel_rows);
    }
    const RowWeights<T> weights = row_weights(weight.get());
    for_each_stripe(false, [&](const SimilarityStripe<T>& s) {
      for (int64_t begin = 0, end; begin < s.columns; begin = end) {
        end = std::min(((s.first + begin) / kPanelRows + 1) * kPanelRows - s.first, s.columns);
        if constexpr (std::is_same_v<T, float>) {
          if (bfloat16_) {
            add_panel(s, weights,
                      running_max_ ? loops_.weights.running_bf16 : loops_.weights.fixed_bf16,
                      WeightsPanel<uint16_t>{begin, end, h_bf16_.get(), panel_rows}, z_bf16_);
            continue;
          }
        }
        add_panel(s, weights, running_max_ ? loops_.weights.running : loops_.weights.fixed,
                  WeightsPanel<T>{begin, end, h_.get(), panel_rows}, z_);
      }
      if (s.first / kStripeRows < num_kept_) kept_[s.first / kStripeRows].resize(0);
    });
    scratch_.resize(0);
    const Tensor grad = empty_cpu({all_rows_, width_}, scalar_type_of<T>());
    T* to = data<T>(grad);
    if (rows_ < all_rows_) std::memset(to, 0, all_rows_ * width_ * sizeof(T));
    for_each_range(rows_, grain_of(kCopyGrain, width_ + 1), [&](int64_t begin, int64_t end) {
      loops_.project_rows(dz_.get(), z_.get(), norm_.get(), order_.data(), begin, end, width_,
                          factor, to);
    });
    return grad;
  }

 private:
  void sort_rows(const Tensor& labels, const OptionalTensor& present) {
    const Tensor codes = contiguous_as(labels, ScalarType::Long);
    const int64_t* code = data<const int64_t>(codes);
    const OptionalTensor marks = present ? contiguous_as(*present, ScalarType::Bool) : present;
    const bool* there = marks ? data<const bool>(*marks) : nullptr;
    const int64_t N = codes.size(0), M = N == 0 ? 1 : all_rows_ / N;
    std::vector<std::pair<int64_t, int64_t>> sorted;
    sorted.reserve(all_rows_);
    for (int64_t m = 0; m < M; ++m) {
      for (int64_t i = 0; i < N; ++i) {
        if (!there || there[i * M + m]) sorted.emplace_back(code[i], m * N + i);
      }
    }
    std::sort(sorted.begin(), sorted.end());
    rows_ = int64_t(sorted.size());
    order_.resize(rows_);
    class_begin_.resize(rows_);
    class_end_.resize(rows_);
    for (int64_t begin = 0, end; begin < rows_; begin = end) {
      for (end = begin; end < rows_ && sorted[end].first == sorted[begin].first; ++end) {
        order_[end] = sorted[end].second;
      }
      std::fill(&class_begin_[begin], &class_begin_[begin] + (end - begin), begin);
      std::fill(&class_end_[begin], &class_end_[begin] + (end - begin), end);
    }
  }

  void normalize(const Tensor& embeddings) {
    const Tensor x = contiguous_as(embeddings, scalar_type_of<T>());
    const T* from = data<const T>(x);
    z_.resize(rows_ * width_ + 16);
    norm_.resize(rows_ + 16);
    if (bfloat16_) z_bf16_.resize(rows_ * width_ + 16);
    for_each_range(rows_, grain_of(kCopyGrain, width_ + 1), [&](int64_t begin, int64_t end) {
      loops_.normalize_rows(from, order_.data(), begin, end, width_, z_.get(), norm_.get());
      if constexpr (std::is_same_v<T, float>) {
        const int64_t at = begin * width_, count = (end - begin) * width_;
        if (bfloat16_) loops_.to_bfloat16(&z_[at], count, &z_bf16_[at]);
      }
    });
  }

  // Whether the batch is one stripe whose products are small.
  bool small() const { return rows_ <= kStripeRows && rows_ * width_ <= kMaxSmallBatch; }
  int64_t row_units() const { return (rows_ + kRowUnit - 1) / kRowUnit; }

  // The upper triangle of a small batch's similarities. A row has fewer the further down it is, so
  // rows from both ends go together.
  void multiply_pairs(T* dots, int64_t stride) {
    const auto multiply_rows = [&](int64_t begin, int64_t end) {
      if (begin >= end) return;
      loops_.triangle(z_.get(), begin * kRowUnit, std::min(end * kRowUnit, rows_), rows_, width_,
                      dots, stride);
    };
    const int64_t units = row_units(), half = (units + 1) / 2;
    const int64_t grain = grain_of(kProductGrain, kRowUnit * rows_ * width_);
    for_each_range(half, grain, [&](int64_t begin, int64_t end) {
      multiply_rows(begin, end);
      multiply_rows(std::max(half, units - end), std::max(half, units - begin));
    });
  }

  void plan_memory(bool want_grad) {
    const int64_t batch = rows_ * width_;
    int64_t bytes = batch * sizeof(T) + std::min(rows_, kStripeRows) * padded(rows_) * sizeof(T);
    if (want_grad) bytes += batch * sizeof(T);
    if (bfloat16_) bytes += batch * sizeof(uint16_t);
    const int64_t stripes = (rows_ + kStripeRows - 1) / kStripeRows;
    for (int64_t i = 0; i < stripes; ++i) {
      bytes += kStripeRows * padded(rows_ - i * kStripeRows) * sizeof(T);
      if (bytes > kWorkspaceBytes) break;
      ++num_kept_;
    }
    kept_.resize(num_kept_);
    if (num_kept_ < stripes) {
      const int64_t first = num_kept_ * kStripeRows;
      scratch_.resize(std::min(rows_ - first, kStripeRows) * padded(rows_ - first));
    }
  }

  SimilarityStripe<T> stripe(int64_t index, int64_t columns) {
    const int64_t first = index * kStripeRows, rows = std::min(kStripeRows, rows_ - first);
    const bool kept = index < num_kept_;
    const int64_t made = kept ? rows_ - first : columns, stride = padded(made);
    const bool known = kept && kept_[index].get();
    if (kept && !known) kept_[index].resize(rows * stride);
    T* dots = kept ? kept_[index].get() : scratch_.get();
    if (!known) {
      const T* z = z_.get() + first * width_;
      if (small()) {
        multiply_pairs(dots, stride);
      } else {
        multiply(matrix(z, rows, width_, width_, 1), matrix(z, width_, made, 1, width_), 0,
                 matrix(dots, rows, made, stride, 1));
      }
      // A product may round (a, b) and (b, a) differently; sums and gradient must see one value.
      for_each_range(rows, kStripeRows / 4, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          for (int64_t j = 0; j < r; ++j) dots[r * stride + j] = dots[j * stride + r];
        }
      });
    }
    return {dots,
            stride,
            first,
            rows,
            columns,
            first,
            T(scale_),
            class_begin_.data(),
            class_end_.data()};
  }

  void add_running(int64_t a, T max, T sum) {
    const T top = std::max(max_[a], max);
    sum_[a] = sum_[a] * std::exp2(double(max_[a] - top) * scale_) +
              double(sum) * std::exp2(double(max - top) * scale_);
    max_[a] = top;
  }

  // H is symmetric, so a panel H_IJ of its upper triangle serves twice: dZ_I += H_IJ Z_J and, right
  // of the diagonal block, dZ_J += H_IJ^T Z_I.
  template <class Number>
  void add_panel(const SimilarityStripe<T>& s, const RowWeights<T>& weights,
                 WeightsLoop<T, Number> loop, const WeightsPanel<Number>& h,
                 const Buffer<Number>& z) {
    const int64_t D = width_, columns = h.end - h.begin, stride = h.stride;
    for_each_range(s.rows, grain_of(kGrain, columns),
                   [&](int64_t begin, int64_t end) { loop(s, begin, end, weights, h); });
    if constexpr (std::is_same_v<Number, T>) {
      if (small()) {
        const int64_t grain = grain_of(kProductGrain, kRowUnit * rows_ * D);
        return for_each_range(row_units(), grain, [&](int64_t begin, int64_t end) {
          loops_.weighted_rows(h.weights, stride, z.get(), begin * kRowUnit,
                               std::min(end * kRowUnit, rows_), rows_, D, dz_.get());
        });
      }
    }
    const Number* z_rows = z.get() + s.first * D;
    add_product(matrix(h.weights, s.rows, columns, stride, 1),
                matrix(z_rows + h.begin * D, columns, D, D, 1), s.first, s.rows);
    const int64_t diagonal = h.begin == 0 ? s.rows : 0, right = columns - diagonal;
    if (right == 0) return;
    add_product(matrix(h.weights + diagonal, right, s.rows, 1, stride),
                matrix(z_rows, s.rows, D, D, 1), s.first + h.begin + diagonal, right);
  }

  // dZ[first, first + rows) += a b. A product of bfloat16 matrices comes in bfloat16, so it is kept
  // apart and added up in float32.
  void add_product(const Tensor& a, const Tensor& b, int64_t first, int64_t rows) {
    T* dz = dz_.get() + first * width_;
    if (!bfloat16_) return multiply(a, b, 1, matrix(dz, rows, width_, width_, 1));
    multiply(a, b, 0, matrix(product_bf16_.get(), rows, width_, width_, 1));
    if constexpr (std::is_same_v<T, float>) {
      for_each_range(rows * width_, kCopyGrain, [&](int64_t begin, int64_t end) {
        loops_.add_bfloat16(&product_bf16_[begin], end - begin, dz + begin);
      });
    }
  }

  const ContrastiveLoops<T>& loops_;
  int64_t all_rows_, width_, rows_ = 0;
  double scale_;      // log2(e) / temperature
  bool running_max_;  // the sums keep one; see similarity.h
  bool bfloat16_;     // H and Z enter their products as such
  std::vector<int64_t> order_, class_begin_, class_end_;
  Buffer<T> z_, norm_, h_, dz_;
  Buffer<uint16_t> z_bf16_, h_bf16_, product_bf16_;
  std::vector<Buffer<T>> kept_;  // similarities of the stripes that there is room to keep
  int64_t num_kept_ = 0;
  Buffer<T> scratch_;  // for the others, computed anew on every visit
  Buffer<T> max_, log2_sum_;
  Buffer<double> sum_;
};

}  // namespace mcr
