// A contrastive batch: a small one in two kernels (small.h), any other in stripes of whole rows.
// Of the latter two sweeps: rows by themselves, which gives the
// loss and what the gradient needs of every row, and the gradient H Z in panels of stripes. Up to
// 4096 rows all similarities are kept; beyond, the second sweep makes them again, and memory is
// O(L D).
// Nothing here waits for the device: the number of rows that are present stays there.
#include "contrastive/cuda/launcher.h"

#include <cmath>

#include "contrastive/arguments.h"
#include "contrastive/cuda/kernels.h"
#include "contrastive/cuda/small.h"
#include "cuda/products.h"

namespace mcr {
namespace cuda {
namespace {

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

// Up to so many rows and columns no library product is worth its launches.
constexpr int64_t kSmallRows = 1024, kSmallWidth = 4096;

int64_t padded(int64_t size, int64_t multiple) {
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

// The rows of all modalities, one after another.
Tensor joined(const std::vector<Tensor>& parts) {
  if (parts.size() == 1) return parts[0];
  const int64_t M = int64_t(parts.size()), N = parts[0].size(0);
  const std::vector<int64_t> sizes = {M * N, parts[0].dim() == 1 ? 1 : parts[0].size(1)};
  const IntHeaderOnlyArrayRef shape(sizes.data(), size_t(parts[0].dim()));
  const Tensor all = empty_beside(parts[0], shape, parts[0].scalar_type());
  for (int64_t m = 0; m < M; ++m) {
    Tensor to = torch::stable::narrow(const_cast<Tensor&>(all), 0, m * N, N);
    torch::stable::copy_(to, parts[m]);
  }
  return all;
}

OptionalTensor joined_marks(const OptionalTensor& present, int64_t M) {
  if (!present || present->dim() == 1) return present;
  std::vector<Tensor> parts;
  for (int64_t m = 0; m < M; ++m) parts.push_back(torch::stable::select(*present, 1, m));
  return joined(parts);
}

bool fits_small(const std::vector<Tensor>& embeddings) {
  const int64_t M = int64_t(embeddings.size());
  return M <= kMaxSmallParts && M * embeddings[0].size(0) <= kSmallRows &&
         embeddings[0].size(1) <= kSmallWidth;
}

std::tuple<Tensor, Tensor> small_forward(bool over_pairs, const std::vector<Tensor>& embeddings,
                                         const Tensor& labels, const OptionalTensor& present,
                                         double temperature, bool want_grad, cudaStream_t stream) {
  const Tensor& first = embeddings[0];
  const int64_t M = int64_t(embeddings.size()), N = first.size(0), D = first.size(1), L = M * N;
  SmallBatch batch = {};
  batch.storage = storage_of(first);
  batch.in_pieces = D % 4 == 0;
  std::vector<Tensor> held;
  for (const Tensor& x : embeddings) {
    held.push_back(contiguous_as(x, first.scalar_type()));
    batch.x[batch.parts] = data<const void>(held.back());
    batch.in_pieces =
        batch.in_pieces &&
        reinterpret_cast<uintptr_t>(batch.x[batch.parts]) % (4 * x.element_size()) == 0;
    ++batch.parts;
  }
  batch.rows_of_part = int(N);
  batch.rows = int(L);
  batch.width = int(D);
  const Tensor codes = contiguous_as(labels, ScalarType::Long);
  batch.labels = data<const int64_t>(codes);
  const OptionalTensor marks =
      present ? OptionalTensor(contiguous_as(*present, ScalarType::Bool)) : std::nullopt;
  if (marks) batch.present = data<const bool>(*marks);
  batch.over_pairs = over_pairs;
  batch.temperature = temperature;
  // a double is two of the floats that a row has
  const Tensor work = empty_beside(first, {(9 + L) * L}, ScalarType::Float);
  float* to = data<float>(work);
  const auto per_row = [&](int64_t n) { return to + n * L; };
  batch.results = {reinterpret_cast<double*>(to), per_row(2), per_row(3), per_row(4), per_row(5)};
  batch.factor = per_row(6);
  batch.inverse = per_row(7);
  batch.positives = reinterpret_cast<int32_t*>(per_row(8));
  batch.similarities = per_row(9);
  const Tensor loss = empty_beside(first, {}, ScalarType::Float);
  const Tensor grad =
      empty_beside(first, {want_grad ? L : 0, want_grad ? D : 0}, ScalarType::Float);
  small_rows(batch, stream);
  if (want_grad) {
    small_gradient(batch, data<float>(loss), data<float>(grad), stream);
  } else {
    small_loss(batch, data<float>(loss), stream);
  }
  return {loss, grad};
}

// (loss [], unit gradient [L, D] float32, or [0, 0] where none is wanted)
template <bool kOverPairs>
std::tuple<Tensor, Tensor> contrastive_fwd(const Tensor& embeddings,       // [L, D]
                                           const Tensor& labels,           // [L] int64
                                           const OptionalTensor& present,  // [L] bool
                                           double temperature, bool want_grad) {
  check_rows(embeddings, labels, present, temperature);
  return contrastive_forward(kOverPairs, {embeddings}, labels, present, temperature, want_grad);
}

Tensor contrastive_bwd(const Tensor& grad,       // []
                       const Tensor& unit_grad,  // [L, D] float32
                       ScalarType dtype) {
  const Arguments arguments("the contrastive losses", unit_grad);
  arguments.check_number("grad", grad);
  arguments.check_unit("unit_grad", unit_grad, false, {kAnySize, kAnySize});
  const OnDeviceOf device(unit_grad);
  const Tensor upstream = contiguous_as(grad, ScalarType::Float);
  const ScaledGrad to(unit_grad, dtype);
  scale_grads(to.plan(), {}, data<const float>(upstream), nullptr, device.stream());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return to.result();
}

}  // namespace

std::tuple<Tensor, Tensor> contrastive_forward(bool over_pairs,
                                               const std::vector<Tensor>& embeddings,
                                               const Tensor& labels, const OptionalTensor& present,
                                               double temperature, bool want_grad) {
  const Tensor& first = embeddings[0];
  const OnDeviceOf device(first);
  const cudaStream_t stream = device.stream();
  const int64_t M = int64_t(embeddings.size()), L = M * first.size(0), D = first.size(1);
  STD_TORCH_CHECK(L <= (int64_t{1} << 30),
                  "the CUDA kernels of the contrastive losses take 2^30 rows at most, got ", L);
  storage_of(first);  // refuses float64
  if (L == 0) {
    const Tensor value = empty_beside(first, {}, ScalarType::Float);
    clear(value, stream);
    return {value, empty_beside(first, {0, want_grad ? D : 0}, ScalarType::Float)};
  }
  std::tuple<Tensor, Tensor> results = [&] {
    if (fits_small(embeddings)) {
      return small_forward(over_pairs, embeddings, labels, present, temperature, want_grad, stream);
    }
    const ContrastiveKernels& kernels = over_pairs ? kNtXentKernels : kSupConKernels;
    const Tensor rows = joined(embeddings);
    Batch batch(rows, joined(std::vector<Tensor>(M, labels)), joined_marks(present, M), temperature,
                stream);
    const Tensor value = batch.forward(kernels);
    const Tensor grad =
        want_grad ? batch.gradient(kernels) : empty_beside(first, {0, 0}, ScalarType::Float);
    return std::tuple<Tensor, Tensor>(value, grad);
  }();
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return results;
}

}  // namespace cuda
}  // namespace mcr

STABLE_TORCH_LIBRARY_IMPL(mcr_fast, CUDA, m) {
  m.impl("nt_xent_fwd", TORCH_BOX(&mcr::cuda::contrastive_fwd<true>));
  m.impl("nt_xent_bwd", TORCH_BOX(&mcr::cuda::contrastive_bwd));
  m.impl("sup_con_fwd", TORCH_BOX(&mcr::cuda::contrastive_fwd<false>));
  m.impl("sup_con_bwd", TORCH_BOX(&mcr::cuda::contrastive_bwd));
}
