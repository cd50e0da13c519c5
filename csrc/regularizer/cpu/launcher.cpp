// The regularizer of a step with a linear fusion, from latents and labels to the weighted loss, in
// one call: at the size that people train at, the calls between its parts cost more than the parts.
#include "contrastive/cpu/launcher.h"

#include <cstring>

#include "permuted_divergence/cpu/layer.h"

namespace mcr {
namespace {

constexpr char kOp[] = "regularizer";

// The rows of all modalities, one after another: [M * N, D].
Tensor rows_of(const std::vector<Tensor>& latents) {
  const int64_t M = int64_t(latents.size()), N = latents[0].size(0), D = latents[0].size(1);
  const ScalarType dtype = latents[0].scalar_type();
  const int64_t bytes = N * D * latents[0].element_size();
  const Tensor rows = empty_cpu({M * N, D}, dtype);
  for (int64_t m = 0; m < M; ++m) {
    const Tensor z = contiguous_as(latents[m], dtype);
    std::memcpy(data<char>(rows) + m * bytes, data<const char>(z), bytes);
  }
  return rows;
}

// The sum of the contributions and the bias, [N, C].
template <class T>
Tensor logits_of(const Tensor& contributions, const OptionalTensor& bias) {
  const int64_t M = contributions.size(0), N = contributions.size(1), C = contributions.size(2);
  const Tensor logits = empty_cpu({N, C}, scalar_type_of<T>());
  const Tensor b = bias ? contiguous_as(*bias, scalar_type_of<T>()) : logits;
  const T *from = data<const T>(contributions), *add = data<const T>(b);
  T* to = data<T>(logits);
  for_each_range(N, grain_of(kCopyGrain, M * C), [&](int64_t begin, int64_t end) {
    std::memcpy(to + begin * C, from + begin * C, (end - begin) * C * sizeof(T));
    for (int64_t m = 1; m < M; ++m) {
      const T* next = from + m * N * C;
      for (int64_t i = begin * C; i < end * C; ++i) to[i] += next[i];
    }
    if (!bias) return;
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t c = 0; c < C; ++c) to[i * C + c] += add[c];
    }
  });
  return logits;
}

// Each modality's share of the single-modality divergences, which come first; equal ones of none.
template <class T>
Tensor importance_of(const Tensor& divergences, int64_t M) {
  const Tensor importance = empty_cpu({M}, scalar_type_of<T>());
  const T* value = data<const T>(divergences);
  T *share = data<T>(importance), total = 0;
  for (int64_t m = 0; m < M; ++m) total += share[m] = value[m] < 0 ? T(0) : value[m];
  for (int64_t m = 0; m < M; ++m) share[m] = total == 0 ? T(1) / T(M) : share[m] / total;
  return importance;
}

template <class T>
Tensor number(T x) {
  const Tensor made = empty_cpu({}, scalar_type_of<T>());
  *data<T>(made) = x;
  return made;
}

using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Forward fwd(const std::vector<Tensor>& latents,  // M tensors [N, D]
            const Tensor& weight,                // [C, M * D]
            const OptionalTensor& bias,          // and on: as in permuted_divergence/arguments.h
            const OptionalTensor& order, const OptionalTensor& donors,
            const OptionalTensor& labels,  // [N], of what `exclude` drops
            const OptionalTensor& present, const OptionalTensor& sample_weight,
            const std::vector<int64_t>& subsets, const std::string& strategy,
            const std::string& clean_path, const std::string& divergence,
            const std::string& exclude,
            const Tensor& classes,  // [N], of the contrastive loss
            const std::string& contrastive, double temperature, double mipd_weight,
            double contrastive_weight, bool want_grad) {
  const Arguments arguments = check_layer(kOp, latents, weight);
  const int64_t M = int64_t(latents.size()), N = latents[0].size(0), D = latents[0].size(1);
  for (const Tensor& z : latents) arguments.check("latents", z, Holds::kFloats, {N, D});
  arguments.check("classes", classes, Holds::kIndices, {N});
  STD_TORCH_CHECK(int64_t(subsets.size()) >= M, kOp, ": subsets must begin with the single ones");
  const bool over_pairs = place_of("contrastive", contrastive, {"sup_con", "nt_xent"}) == 1;
  const Tensor contributions = contributions_of(latents, weight);
  const auto [divergences, unit_grad, unit_grad_bias] = permuted_divergence_forward(
      {contributions, bias, order, donors, labels, present, sample_weight, subsets, strategy,
       clean_path, divergence, exclude},
      want_grad);
  const auto [shared, unit_grad_rows] =
      contrastive_forward(over_pairs, rows_of(latents), classes, present, temperature, want_grad);
  return with_arithmetic(is_double(weight), [&](auto zero) -> Forward {
    using T = decltype(zero);
    T mipd = 0;
    for (size_t s = 0; s < subsets.size(); ++s) mipd -= data<const T>(divergences)[s];
    const T loss = T(contrastive_weight) * *data<const T>(shared) + T(mipd_weight) * mipd;
    return {number(loss),  number(mipd),
            shared,        logits_of<T>(contributions, bias),
            divergences,   importance_of<T>(divergences, M),
            unit_grad,     unit_grad_bias,
            unit_grad_rows};
  });
}

// grad_contributions = factor * unit_grad + grad_logits for every modality, and of the bias
// factor * unit_grad_bias + its sum over the rows. Without a unit gradient: of the logits alone.
template <class T>
std::tuple<Tensor, Tensor> to_layer(std::optional<T> factor, const Tensor& unit_grad,
                                    const Tensor& unit_grad_bias,
                                    const OptionalTensor& grad_logits) {
  const auto scaled = [&](T x) { return factor ? *factor * x : T(0); };
  const int64_t M = unit_grad.size(0), N = unit_grad.size(1), C = unit_grad.size(2);
  const Tensor grad = empty_cpu({M, N, C}, scalar_type_of<T>());
  const Tensor grad_bias = empty_cpu({C}, scalar_type_of<T>());
  const Tensor to_logits =
      grad_logits ? contiguous_as(*grad_logits, scalar_type_of<T>()) : grad_bias;
  const T *unit = data<const T>(unit_grad), *unit_bias = data<const T>(unit_grad_bias);
  const T* added = data<const T>(to_logits);
  T *to = data<T>(grad), *bias = data<T>(grad_bias);
  for (int64_t c = 0; c < C; ++c) bias[c] = scaled(unit_bias[c]);
  for_each_range(M * N, grain_of(kCopyGrain, C), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t c = 0; c < C; ++c) to[r * C + c] = scaled(unit[r * C + c]);
      if (!grad_logits) continue;
      for (int64_t c = 0; c < C; ++c) to[r * C + c] += added[r % N * C + c];
    }
  });
  if (!grad_logits) return {grad, grad_bias};
  std::vector<double> sums(C, 0.0);
  for (int64_t i = 0; i < N; ++i) {
    for (int64_t c = 0; c < C; ++c) sums[c] += double(added[i * C + c]);
  }
  for (int64_t c = 0; c < C; ++c) bias[c] += T(sums[c]);
  return {grad, grad_bias};
}

// `wanted`: the gradients to make, of each latent and then of the weight; the others come back
// empty. Gradients of outputs that nothing was done with are left out.
std::tuple<std::vector<Tensor>, Tensor, Tensor> bwd(const OptionalTensor& grad_loss,
                                                    const OptionalTensor& grad_mipd,         // []
                                                    const OptionalTensor& grad_contrastive,  // []
                                                    const OptionalTensor& grad_logits,  // [N, C]
                                                    const Tensor& unit_grad,            // [M, N, C]
                                                    const Tensor& unit_grad_bias,       // [C]
                                                    const Tensor& unit_grad_rows,  // [M * N, D]
                                                    double mipd_weight, double contrastive_weight,
                                                    const std::vector<int64_t>& wanted,
                                                    const std::vector<Tensor>& latents,
                                                    const Tensor& weight) {
  const Arguments arguments = check_layer(kOp, latents, weight);
  const int64_t M = int64_t(latents.size()), N = latents[0].size(0), D = latents[0].size(1);
  const int64_t C = weight.size(0);
  for (const Tensor& z : latents) arguments.check("latents", z, Holds::kFloats, {N, D});
  for (const OptionalTensor* grad : {&grad_loss, &grad_mipd, &grad_contrastive}) {
    if (*grad) arguments.check_number("a gradient", **grad);
  }
  arguments.check("grad_logits", grad_logits, Holds::kFloats, {N, C});
  arguments.check_unit("unit_grad", unit_grad, is_double(weight), {M, N, C});
  arguments.check_unit("unit_grad_bias", unit_grad_bias, is_double(weight), {C});
  arguments.check_unit("unit_grad_rows", unit_grad_rows, is_double(weight), {M * N, D});
  STD_TORCH_CHECK(int64_t(wanted.size()) == M + 1, kOp, ": wanted must hold ", M + 1, " marks");
  return with_arithmetic(is_double(weight), [&](auto zero) {
    using T = decltype(zero);
    const auto of = [](const OptionalTensor& x) { return x ? number_of<T>(*x) : T(0); };
    // the value is minus the divergences' sum
    // A term that nobody asked for adds nothing, not 0 times what may be NaN.
    std::optional<T> to_mipd, to_rows;
    if (grad_loss || grad_mipd) to_mipd = -(of(grad_loss) * T(mipd_weight) + of(grad_mipd));
    if (grad_loss || grad_contrastive) {
      to_rows = of(grad_loss) * T(contrastive_weight) + of(grad_contrastive);
    }
    const auto [to_contributions, grad_bias] =
        to_layer<T>(to_mipd, contiguous_as(unit_grad, scalar_type_of<T>()),
                    contiguous_as(unit_grad_bias, scalar_type_of<T>()), grad_logits);
    auto [grad_latents, grad_weight] = layer_backward(to_contributions, wanted, latents, weight);
    const Tensor unit_rows = contiguous_as(unit_grad_rows, scalar_type_of<T>());
    const T* rows = data<const T>(unit_rows);
    for (int64_t m = 0; m < M; ++m) {
      if (!wanted[m] || !to_rows) continue;
      T* to = data<T>(grad_latents[m]);
      const T* from = rows + m * N * D;
      for_each_range(N * D, kCopyGrain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) to[i] += *to_rows * from[i];
      });
    }
    return std::tuple<std::vector<Tensor>, Tensor, Tensor>(std::move(grad_latents), grad_weight,
                                                           grad_bias);
  });
}

}  // namespace
}  // namespace mcr

STABLE_TORCH_LIBRARY_IMPL(mcr_fast, CPU, m) {
  m.impl("regularizer_fwd", TORCH_BOX(&mcr::fwd));
  m.impl("regularizer_bwd", TORCH_BOX(&mcr::bwd));
}
