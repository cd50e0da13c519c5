// The contrastive losses of a small batch, in two kernels; mcr_fast/ops/_limits.py says who takes
// the others.
#include "contrastive/cuda/launcher.h"

#include "contrastive/arguments.h"
#include "contrastive/cuda/small.h"
#include "cuda/products.h"

namespace mcr {
namespace cuda {
namespace {

// Of the rows of all modalities, one after another, those of labels [N] and of presence [N, M].
Tensor repeated(const Tensor& labels, int64_t M) {
  if (M == 1) return labels;
  const Tensor codes = contiguous_as(labels, ScalarType::Long);
  const Tensor view = matrix_on(codes, 0, {M, codes.size(0)}, {0, 1});
  return torch::stable::flatten(torch::stable::contiguous(view));
}
OptionalTensor by_modality(const OptionalTensor& present) {
  if (!present || present->dim() == 1) return present;
  return torch::stable::flatten(
      torch::stable::contiguous(torch::stable::transpose(*present, 0, 1)));
}

// Embeddings as small_rows takes them, which stay in `held`.
void point_at(const std::vector<Tensor>& embeddings, std::vector<Tensor>& held, SmallBatch& to) {
  const Tensor& first = embeddings[0];
  const int64_t M = int64_t(embeddings.size()), N = first.size(0), D = first.size(1);
  to.storage = storage_of(first);
  to.in_pieces = D % 4 == 0;
  for (int64_t m = 0; m < M; ++m) {
    held.push_back(contiguous_as(embeddings[m], first.scalar_type()));
    to.x[m] = data<const void>(held.back());
    const auto bytes = 4 * uintptr_t(first.element_size());
    to.in_pieces = to.in_pieces && reinterpret_cast<uintptr_t>(to.x[m]) % bytes == 0;
  }
  to.parts = int(M);
  to.rows_of_part = int(N);
  to.rows = int(M * N);
  to.width = int(D);
}

std::tuple<Tensor, Tensor> small_forward(bool over_pairs, const std::vector<Tensor>& embeddings,
                                         const Tensor& labels, const OptionalTensor& present,
                                         double temperature, bool want_grad, cudaStream_t stream) {
  SmallBatch batch = {};
  std::vector<Tensor> held;
  point_at(embeddings, held, batch);
  const Tensor codes = contiguous_as(labels, ScalarType::Long);
  batch.labels = data<const int64_t>(codes);
  if (present) {
    held.push_back(contiguous_as(*present, ScalarType::Bool));
    batch.present = data<const bool>(held.back());
  }
  batch.over_pairs = over_pairs;
  batch.temperature = temperature;
  const int64_t L = batch.rows, D = batch.width;
  // the losses are doubles: two floats of a row's
  const Tensor work = empty_beside(codes, {(8 + L) * L}, ScalarType::Float);
  float* to = data<float>(work);
  const auto per_row = [&](int64_t n) { return to + n * L; };
  batch.results = {reinterpret_cast<double*>(to), per_row(2), per_row(3), per_row(4)};
  batch.factor = per_row(5);
  batch.inverse = per_row(6);
  batch.positives = reinterpret_cast<int32_t*>(per_row(7));
  batch.similarities = per_row(8);
  const Tensor loss = empty_beside(codes, {}, ScalarType::Float);
  small_rows(batch, stream);
  if (!want_grad) {
    small_loss(batch, data<float>(loss), stream);
    return {loss, empty_beside(codes, {0, 0}, ScalarType::Float)};
  }
  const Tensor grad = empty_beside(codes, {L, D}, ScalarType::Float);
  small_gradient(batch, data<float>(loss), data<float>(grad), stream);
  return {loss, grad};
}

// (loss [], unit gradient [L, D] float32, or [0, 0] where none is wanted)
template <bool kOverPairs>
std::tuple<Tensor, Tensor> contrastive_fwd(
    const Tensor& embeddings,       // [L, D]
    const Tensor& labels,           // [L] int64, or [N] of L / N modalities
    const OptionalTensor& present,  // [L] bool, or [N, L / N]
    double temperature, bool want_grad) {
  check_rows(embeddings, labels, present, temperature);
  const OnDeviceOf device(embeddings);
  const int64_t N = labels.size(0), M = N == 0 ? 1 : embeddings.size(0) / N;
  if (M == 1 || M > kMaxSmallParts) {
    return contrastive_forward(kOverPairs, {embeddings}, repeated(labels, M), by_modality(present),
                               temperature, want_grad);
  }
  std::vector<Tensor> parts;
  const Tensor rows = contiguous_as(embeddings, embeddings.scalar_type());
  for (int64_t m = 0; m < M; ++m) parts.push_back(rows_of(rows, m * N, N));
  return contrastive_forward(kOverPairs, parts, labels, present, temperature, want_grad);
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
  storage_of(first);  // refuses float64
  if (L == 0) {
    const Tensor value = empty_beside(first, {}, ScalarType::Float);
    clear(value, stream);
    return {value, empty_beside(first, {0, want_grad ? D : 0}, ScalarType::Float)};
  }
  STD_TORCH_CHECK(M <= kMaxSmallParts && L <= kMaxSmallRows && D > 0 && D <= kMaxSmallWidth,
                  "the CUDA kernels of the contrastive losses take ", kMaxSmallParts,
                  " modalities, ", kMaxSmallRows, " rows and 1 to ", kMaxSmallWidth,
                  " columns at most, got ", M, ", ", L, " and ", D);
  const auto results =
      small_forward(over_pairs, embeddings, labels, present, temperature, want_grad, stream);
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
