// The batch of a contrastive loss: its rows sorted by label and normalised, the stripes of the
// upper triangle of its similarities, and the gradient H Z. The losses differ only in the row loops
// that they run on a stripe.
#pragma once

#include <algorithm>
#include <cmath>

#include "contrastive/cpu/kernels.h"
#include "cpu/tensors.h"

namespace mcr {

constexpr int64_t kStripeRows = 256;

template <class T>
class Similarities {
 public:
  Similarities(const SimilarityKernels<T>& kernels,
               const Tensor& embeddings,       // [L, D]
               const Tensor& labels,           // [L] int64
               const OptionalTensor& present,  // [L] bool
               double temperature, bool want_grad);

  int64_t rows() const { return rows_; }  // P: those present
  double scale() const { return scale_; }
  int64_t class_size(int64_t a) const { return class_end_[a] - class_begin_[a]; }
  const int64_t* class_ends() const { return class_end_.data(); }

  // Sums the exponentials of the columns b >= enter[a] > a, for row a and for row b.
  void sum_exponentials(const int64_t* enter);
  double sum(int64_t a) const { return sum_[a]; }
  // log2 of the sum of e^s_aj
  double log2_sum(int64_t a) const { return double(max_[a]) * scale_ + std::log2(sum_[a]); }
  RowWeights<T> row_weights(const T* weight) const { return {weight, max_.get(), log2_sum_.get()}; }

  // f(stripe) for every stripe in order, cut to the columns that hold positives if only those
  // count.
  template <class F>
  void for_each_stripe(bool positives_only, const F& f);

  // f(tile, begin, end) for the tiles of a stripe side by side.
  template <class F>
  static void for_each_tile(const SimilarityStripe<T>& stripe, const F& f);
  static int64_t tiles(const SimilarityStripe<T>& stripe) {
    return (stripe.columns + kTileColumns - 1) / kTileColumns;
  }

  // factor * dx [L, D] for dz = H Z, H of the loops' and of the rows' weights [P]. Lets the
  // similarities go.
  Tensor gradient(const WeightsKernels<T>& loops, const Buffer<T>& weight, T factor);

  // Zeros, one per row and a vector to spare at the end.
  template <class U>
  Buffer<U> per_row() const {
    Buffer<U> memory(rows_ + 16);
    std::fill_n(memory.get(), rows_ + 16, U(0));
    return memory;
  }

 private:
  void sort_rows(const Tensor& labels, const OptionalTensor& present);
  void normalize(const Tensor& embeddings);
  void plan_memory();
  SimilarityStripe<T> stripe(int64_t index, int64_t columns);
  void add_running(int64_t a, T max, T sum);
  template <class Number>
  void add_panel(const SimilarityStripe<T>& s, const RowWeights<T>& weights,
                 WeightsLoop<T, Number> loop, const WeightsPanel<Number>& h,
                 const Buffer<Number>& z);
  void add_product(const Tensor& a, const Tensor& b, int64_t first, int64_t rows);

  const SimilarityKernels<T>& kernels_;
  const Tensor embeddings_;  // as given, for what is made like it
  int64_t all_rows_, width_, rows_ = 0;
  double scale_;  // log2(e) / temperature
  bool want_grad_;
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

template <class T>
template <class F>
void Similarities<T>::for_each_stripe(bool positives_only, const F& f) {
  for (int64_t i = 0; i * kStripeRows < rows_; ++i) {
    const int64_t first = i * kStripeRows, last = std::min(first + kStripeRows, rows_) - 1;
    f(stripe(i, (positives_only ? class_end_[last] : rows_) - first));
  }
}

template <class T>
template <class F>
void Similarities<T>::for_each_tile(const SimilarityStripe<T>& stripe, const F& f) {
  const int64_t tile_work = stripe.rows * kTileColumns;
  for_each_range(tiles(stripe), std::max<int64_t>(1, (1 << 14) / tile_work),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t i = begin; i < end; ++i) {
                     f(i, i * kTileColumns, std::min((i + 1) * kTileColumns, stripe.columns));
                   }
                 });
}

// What the ops return: (loss [], unit gradient [L, D], or [0, 0] where none is wanted).
template <class T>
Tensor loss_tensor(const Tensor& embeddings, double value) {
  const Tensor loss = empty_cpu({}, scalar_type_of<T>());
  *loss.template mutable_data_ptr<T>() = T(value);
  return loss;
}

template <class T>
Tensor no_gradient(const Tensor& embeddings) {
  return empty_cpu({0, 0}, scalar_type_of<T>());
}

// No positive pair at all: 0 with zero gradient.
template <class T>
std::tuple<Tensor, Tensor> no_pairs(const Tensor& embeddings, bool want_grad) {
  Tensor grad = no_gradient<T>(embeddings);
  if (want_grad) {
    grad = torch::stable::new_zeros(embeddings, embeddings.sizes(), scalar_type_of<T>());
  }
  return {loss_tensor<T>(embeddings, 0), grad};
}

// The backward of both losses.
Tensor scaled_unit_grad(const Tensor& grad,       // []
                        const Tensor& unit_grad,  // [L, D]
                        ScalarType dtype);

}  // namespace mcr
