// A contrastive batch in stripes of whole rows. Two sweeps: rows by themselves, which gives the
// loss and what the gradient needs of every row, and the gradient H Z in panels of stripes. Up to
// 4096 rows all similarities are kept; beyond, the second sweep makes them again, and memory is
// O(L D).
// Nothing here waits for the device: the number of rows that are present stays there.
#pragma once

#include <cmath>

#include "contrastive/cuda/kernels.h"
#include "cuda/products.h"

namespace mcr {
namespace cuda {

// Similarities of a stripe: two thirds of an H200's L2 cache, from which the next kernel reads
// them; at least so many rows, or the product would not fill the machine. To be tuned on a GPU.
constexpr int64_t kStripeBytes = int64_t{32} << 20;
constexpr int64_t kMinStripeRows = 128;

// All similarities, if they are kept for the gradient.
constexpr int64_t kKeptBytes = int64_t{64} << 20;

// Rows of H that are multiplied at once: their product is as narrow as the embeddings, so it takes
// many to fill the machine.
constexpr int64_t kPanelBytes = int64_t{64} << 20;
constexpr int64_t kMinPanelRows = 1024, kMaxPanelRows = 4096;

// Rows of matrices start at a multiple of so many elements.
constexpr int64_t kAlignedRows = 32, kAlignedWidth = 8;

inline int64_t padded(int64_t size, int64_t multiple) {
  return (size + multiple - 1) / multiple * multiple;
}

class Batch {
 public:
  Batch(const Tensor& embeddings, const Tensor& labels, const OptionalTensor& present,
        double temperature, cudaStream_t stream)
      : x_(contiguous_as(embeddings, embeddings.scalar_type())),
        storage_(storage_of(embeddings)),
        temperature_(temperature),
        stream_(stream),
        padded_rows_(padded(embeddings.size(0), kAlignedRows)),
        scaled_(empty_beside(
            x_, {padded_rows_, padded(std::max<int64_t>(1, x_.size(1)), kAlignedWidth)},
            x_.scalar_type())),
        order_(empty_beside(x_, {x_.size(0)}, ScalarType::Long)),
        classes_(empty_beside(x_, {2, padded_rows_}, ScalarType::Long)),
        num_present_(empty_beside(x_, {1}, ScalarType::Long)),
        floats_(empty_beside(x_, {6, padded_rows_}, ScalarType::Float)),
        losses_(empty_beside(x_, {padded_rows_}, ScalarType::Double)),
        totals_(empty_beside(x_, {2}, ScalarType::Float)),
        dots_(empty_beside(x_, {keeps() ? padded_rows_ : stripe_rows(), padded_rows_},
                           ScalarType::Float)) {
    // 2^(-2 scale), the least exponential there is, and its inverse times a number of rows must be
    // numbers of float32.
    const double scale = kLog2e / temperature;
    running_max_ = !(2 * scale + std::log2(double(x_.size(0)) + 1) < 120);
    rows_ = {data<int64_t>(order_), data<int64_t>(classes_), data<int64_t>(classes_) + padded_rows_,
             data<int64_t>(num_present_)};
    float* floats = data<float>(floats_);
    const auto per_row = [&](int n) { return floats + n * padded_rows_; };
    batch_ = {data<const void>(x_), storage_,     x_.size(0),
              x_.size(1),           padded_rows_, scaled_.size(1),
              data<void>(scaled_),  per_row(0),   per_row(1)};
    results_ = {data<double>(losses_), per_row(2), per_row(3), per_row(4), per_row(5)};
    sums_ = {nullptr, data<float>(totals_), data<float>(totals_) + 1};
    sort(labels, present);
    scale_rows(batch_, rows_, stream);
  }

  // The loss [].
  Tensor forward(const ContrastiveKernels& kernels) {
    const Tensor value = empty_beside(x_, {}, ScalarType::Float);
    sums_.value = data<float>(value);
    for_each_stripe(false, [&](const ScaledStripe<float>& stripe) {
      kernels.rows(stripe, rows_.num_present, running_max_, results_, stream_);
    });
    add_rows(results_, rows_, kernels.over_pairs, temperature_, storage_, sums_, stream_);
    return value;
  }

  // [L, D], after a forward.
  Tensor gradient(const ContrastiveKernels& kernels) {
    const Tensor grad = empty_beside(x_, {x_.size(0), x_.size(1)}, ScalarType::Float);
    const int64_t rows = std::min(panel_rows(), padded_rows_);
    const Tensor g = empty_beside(x_, {rows, scaled_.size(1)}, ScalarType::Float);
    // float32 entries of H take the place of similarities that are kept
    const bool in_place = keeps() && storage_ == Storage::kFloat;
    const Tensor panel =
        in_place ? dots_ : empty_beside(x_, {rows, padded_rows_}, x_.scalar_type());
    const RowWeights<float> weights = {results_.weight, results_.max, results_.log2_sum};
    for_each_stripe(keeps(), [&](const ScaledStripe<float>& stripe) {
      const int64_t at = stripe.first % rows, filled = at + stripe.rows;
      kernels.weights(stripe, rows_.num_present, running_max_, weights, sums_.h_scale, storage_,
                      data<void>(rows_of(panel, at, stripe.rows)), stream_);
      if (filled < rows && stripe.first + stripe.rows < padded_rows_) return;
      multiply(rows_of(panel, 0, filled), scaled_, rows_of(g, 0, filled));
      project_rows(data<float>(g), stripe.first - at, filled, batch_, rows_, sums_.factor,
                   data<float>(grad), stream_);
    });
    return grad;
  }

 private:
  void sort(const Tensor& labels, const OptionalTensor& present) {
    const int64_t L = x_.size(0);
    const auto [codes, order] = stable_sort(contiguous_as(labels, ScalarType::Long));
    const Tensor sorted_codes = empty_beside(x_, {L}, ScalarType::Long);
    const int64_t* from = data<int64_t>(order);
    if (!present) {
      return sort_rows(data<int64_t>(codes), from, nullptr, nullptr, L, data<int64_t>(sorted_codes),
                       rows_, stream_);
    }
    const Tensor there = contiguous_as(*present, ScalarType::Bool);
    const Tensor marks = empty_beside(x_, {L}, ScalarType::Int);
    mark_absent(data<const bool>(there), from, L, data<int32_t>(marks), stream_);
    const auto [absent, behind] = stable_sort(marks);
    sort_rows(data<int64_t>(codes), from, data<int32_t>(absent), data<int64_t>(behind), L,
              data<int64_t>(sorted_codes), rows_, stream_);
  }

  bool keeps() const { return padded_rows_ * padded_rows_ * int64_t(sizeof(float)) <= kKeptBytes; }

  int64_t stripe_rows() const {
    const int64_t fitting = kStripeBytes / (padded_rows_ * int64_t(sizeof(float)));
    const int64_t rows = std::max(fitting / kMinStripeRows * kMinStripeRows, kMinStripeRows);
    return std::min(padded_rows_, rows);
  }

  // Whole stripes.
  int64_t panel_rows() const {
    if (keeps()) return padded_rows_;
    const int64_t fitting = kPanelBytes / (padded_rows_ * int64_t(x_.element_size()));
    return padded(std::clamp(fitting, kMinPanelRows, kMaxPanelRows), stripe_rows());
  }

  // f(stripe) for every stripe in order.
  template <class F>
  void for_each_stripe(bool known, const F& f) {
    const int64_t step = stripe_rows();
    const Tensor columns = transposed(scaled_);
    ScaledStripe<float> stripe = {};
    stripe.stride = padded_rows_;
    stripe.scale = float(kLog2e / temperature_);
    stripe.class_begin = rows_.class_begin;
    stripe.class_end = rows_.class_end;
    stripe.inverse = batch_.inverse;
    for (int64_t first = 0; first < padded_rows_; first += step) {
      stripe.first = first;
      stripe.rows = std::min(step, padded_rows_ - first);
      const int64_t at = keeps() ? first : 0;
      stripe.dots = data<float>(dots_) + at * padded_rows_;
      if (!known) {
        multiply(rows_of(scaled_, first, stripe.rows), columns, rows_of(dots_, at, stripe.rows));
      }
      f(stripe);
    }
  }

  const Tensor x_;
  const Storage storage_;
  const double temperature_;
  cudaStream_t stream_;
  const int64_t padded_rows_;
  bool running_max_;
  Tensor scaled_, order_, classes_, num_present_, floats_, losses_, totals_, dots_;
  SortedRows rows_ = {};

  Embeddings batch_ = {};
  RowResults<float> results_ = {};
  Totals sums_ = {};
};

}  // namespace cuda
}  // namespace mcr
