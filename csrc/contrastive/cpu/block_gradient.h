// H U of a block: what its pairs weigh in the gradient, times its columns.
#pragma once

#include "contrastive/cpu/block.h"

namespace mcr {

// What H takes of a set of rows, from statistics [2, R]: (log of the sum, log W) of nt_xent, (log
// of the sum, 1 / number of positives) of sup_con.
template <class T>
struct Statistics {
  Buffer<T> weight, other;

  Statistics(const Tensor& given, const SortedRows& set, bool over_pairs, bool log_weights) {
    const Tensor stats = contiguous_as(given, scalar_type_of<T>());
    const T *first = data<const T>(stats), *second = first + stats.size(1);
    other = over_pairs ? sorted(first, set, kLog2e) : sorted(second, set, 1);
    weight = over_pairs ? sorted(second, set, kLog2e) : sorted(first, set, -kLog2e);
    if (log_weights) return;
    for (int64_t a = 0; a < set.size(); ++a) weight[a] = std::exp2(weight[a]);
  }
  BlockStats<T> view() const { return {weight.get(), other.get()}; }
};

// H U row by row, in the order of the sorted rows. H takes the place of the similarities; or in
// bfloat16 a place of its own, as do U and the product, which is added up in float32.
template <class T>
class GradientSum {
 public:
  GradientSum(const Block<T>& block, const BlockWeightsLoops<T>& weights, bool over_pairs,
              bool of_bfloat16, const Tensor& row_stats, const Tensor& column_stats)
      : block_(block),
        weights_(weights),
        of_rows_(row_stats, block.row_set(), over_pairs, block.running()),
        of_columns_(column_stats, block.column_set(), over_pairs, block.running()),
        bfloat16_(std::is_same_v<T, float> && of_bfloat16 && has_bfloat16_products() &&
                  block.rows() >= kBlockRows && block.column_set().size() >= kBlockColumns) {
    g_.resize(block.rows() * block.width() + 16);
    std::memset(g_.get(), 0, size_t(block.rows() * block.width()) * sizeof(T));
    if (!bfloat16_) return;
    h_bf16_.resize(kBlockRows * kBlockColumns);
    u_bf16_.resize(kBlockColumns * block.width() + 16);
    product_bf16_.resize(kBlockRows * block.width() + 16);
  }

  void add(const BlockStripe<T>& stripe, const T* u) {
    const int64_t D = block_.width(), Q = stripe.columns;
    T* g = g_.get() + stripe.first * D;
    if constexpr (std::is_same_v<T, float>) {
      if (bfloat16_) return add_bfloat16(stripe, u, g);
    }
    const WeightsPanel<T> h = {0, Q, stripe.dots, stripe.stride};
    make(stripe, block_.running() ? weights_.running : weights_.fixed, h);
    multiply(matrix(h.weights, stripe.rows, Q, h.stride, 1), matrix(u, Q, D, D, 1), 1,
             matrix(g, stripe.rows, D, D, 1));
  }

  // [R, D] in the order of the rows as given.
  Tensor result(int64_t all_rows) const {
    const int64_t D = block_.width();
    const Tensor made = empty_cpu({all_rows, D}, scalar_type_of<T>());
    T* to = data<T>(made);
    if (block_.rows() < all_rows) std::memset(to, 0, size_t(all_rows * D) * sizeof(T));
    for (int64_t a = 0; a < block_.rows(); ++a) {
      std::copy_n(g_.get() + a * D, D, to + block_.row_set().order[a] * D);
    }
    return made;
  }

 private:
  template <class Out>
  void make(const BlockStripe<T>& stripe, BlockWeightsLoop<T, Out> loop,
            const WeightsPanel<Out>& h) {
    const BlockStats<T> rows = of_rows_.view(), columns = of_columns_.view();
    for_rows(stripe,
             [&](int64_t begin, int64_t end) { loop(stripe, begin, end, rows, columns, h); });
  }

  void add_bfloat16(const BlockStripe<float>& stripe, const float* u, float* g) {
    const ContrastiveLoops<float>& loops = block_.loops();
    const int64_t D = block_.width(), Q = stripe.columns;
    const WeightsPanel<uint16_t> h = {0, Q, h_bf16_.get(), kBlockColumns};
    make(stripe, block_.running() ? weights_.running_bf16 : weights_.fixed_bf16, h);
    if (stripe.first == 0) {  // a panel's first stripe
      for_each_range(Q * D, kCopyGrain, [&](int64_t begin, int64_t end) {
        loops.to_bfloat16(u + begin, end - begin, &u_bf16_[begin]);
      });
    }
    multiply(matrix(h.weights, stripe.rows, Q, h.stride, 1), matrix(u_bf16_.get(), Q, D, D, 1), 0,
             matrix(product_bf16_.get(), stripe.rows, D, D, 1));
    for_each_range(stripe.rows * D, kCopyGrain, [&](int64_t begin, int64_t end) {
      loops.add_bfloat16(&product_bf16_[begin], end - begin, g + begin);
    });
  }

  const Block<T>& block_;
  const BlockWeightsLoops<T>& weights_;
  const Statistics<T> of_rows_, of_columns_;
  const bool bfloat16_;
  Buffer<T> g_;
  Buffer<uint16_t> h_bf16_, u_bf16_, product_bf16_;
};

}  // namespace mcr
