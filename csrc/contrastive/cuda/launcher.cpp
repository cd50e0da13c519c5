// The contrastive losses: a small batch in two kernels, any other in stripes.
#include "contrastive/cuda/launcher.h"

#include "contrastive/arguments.h"
#include "contrastive/cuda/small.h"
#include "contrastive/cuda/stripes.h"

namespace mcr {
namespace cuda {
namespace {

// Up to so many rows and columns no library product is worth its launches.
constexpr int64_t kSmallRows = 1024, kSmallWidth = 4096;

// The rows of all modalities, one after another.
Tensor joined(const std::vector<Tensor>& parts) {  // M of [N, D]
  if (parts.size() == 1) return parts[0];
  const int64_t M = int64_t(parts.size()), N = parts[0].size(0);
  Tensor all = empty_beside(parts[0], {M * N, parts[0].size(1)}, parts[0].scalar_type());
  for (int64_t m = 0; m < M; ++m) {
    Tensor to = torch::stable::narrow(all, 0, m * N, N);
    torch::stable::copy_(to, parts[m]);
  }
  return all;
}

// Theirs of labels [N] and of presence [N, M].
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

bool fits_small(int64_t M, int64_t L, int64_t D) {
  return M <= kMaxSmallParts && L <= std::min<int64_t>(kSmallRows, kMaxSmallRows) && D > 0 &&
         D <= kSmallWidth;
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
  const Tensor work = empty_beside(codes, {(9 + L) * L}, ScalarType::Float);
  float* to = data<float>(work);
  const auto per_row = [&](int64_t n) { return to + n * L; };
  batch.results = {reinterpret_cast<double*>(to), per_row(2), per_row(3), per_row(4), per_row(5)};
  batch.factor = per_row(6);
  batch.inverse = per_row(7);
  batch.positives = reinterpret_cast<int32_t*>(per_row(8));
  batch.similarities = per_row(9);
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

std::tuple<Tensor, Tensor> striped_forward(bool over_pairs, const std::vector<Tensor>& embeddings,
                                           const Tensor& labels, const OptionalTensor& present,
                                           double temperature, bool want_grad,
                                           cudaStream_t stream) {
  const int64_t M = int64_t(embeddings.size());
  const ContrastiveKernels& kernels = over_pairs ? kNtXentKernels : kSupConKernels;
  Batch batch(joined(embeddings), repeated(labels, M), by_modality(present), temperature, stream);
  const Tensor loss = batch.forward(kernels);
  return {loss,
          want_grad ? batch.gradient(kernels) : empty_beside(labels, {0, 0}, ScalarType::Float)};
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
  if (M == 1 || !fits_small(M, M * N, embeddings.size(1))) {
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
  STD_TORCH_CHECK(L <= (int64_t{1} << 30),
                  "the CUDA kernels of the contrastive losses take 2^30 rows at most, got ", L);
  storage_of(first);  // refuses float64
  if (L == 0) {
    const Tensor value = empty_beside(first, {}, ScalarType::Float);
    clear(value, stream);
    return {value, empty_beside(first, {0, want_grad ? D : 0}, ScalarType::Float)};
  }
  const auto forward = fits_small(M, L, D) ? small_forward : striped_forward;
  const auto results =
      forward(over_pairs, embeddings, labels, present, temperature, want_grad, stream);
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
