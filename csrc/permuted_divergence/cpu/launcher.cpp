// Launcher of permuted_divergence: cuts the rows into parts and puts the parts' sums and gradients
// together.
#include "permuted_divergence/cpu/launcher.h"

#include "permuted_divergence/cpu/inputs.h"

namespace mcr {
namespace {

constexpr int64_t kMaxWorkspace = int64_t{1} << 29;  // bytes; every part has a gradient of its own

template <class T>
void gather(const PermutedDivergenceInputs<T>& in,
            const std::vector<PermutedDivergencePart<T>>& parts, T* grad, T* grad_bias) {
  const int64_t N = in.N, M = in.M, C = in.C, W = in.width;
  if (in.class_major()) {
    const int64_t wide = in.columns();
    for_each(M * C, grain_of(kGrain, wide), [&](int64_t mc) {
      T* column = grad + mc / C * N * C + mc % C;
      for (int64_t a = 0; a < N; ++a) {
        T total = 0;
        for (const auto& part : parts) {
          for (int64_t i = a; i < wide; i += N) total += part.grad[mc * wide + i];
        }
        column[in.row_at(a) * C] = total;
      }
    });
  } else {
    const int64_t padded = in.problem.row_stride;
    for_each(M * N, grain_of(kGrain, padded), [&](int64_t mn) {
      T* row = grad + (mn / N * N + in.row_at(mn % N)) * C;
      std::copy_n(parts[0].grad + mn * padded, C, row);
      for (size_t p = 1; p < parts.size(); ++p) {
        const T* from = parts[p].grad + mn * padded;
        for (int64_t c = 0; c < C; ++c) row[c] += from[c];
      }
    });
  }
  for (int64_t c = 0; c < C; ++c) {
    T total = 0;
    for (const auto& part : parts) {
      if (!in.lanes()) total += part.grad_bias[c];
      for (int64_t l = 0; in.lanes() && l < W; ++l) total += part.grad_bias[c * W + l];
    }
    grad_bias[c] = total;
  }
}

// values [S]; with want_grad also the gradient for the upstream gradient `upstream` [S] (null: 1),
// to grad [M, N, C] and grad_bias [C].
template <class T>
void run(const PermutedDivergenceInputs<T>& in, const T* upstream, bool want_grad, T* values,
         T* grad, T* grad_bias) {
  PermutedDivergenceProblem<T> problem = in.problem;
  const int64_t S = problem.num_subsets, N = in.N, M = in.M, C = in.C;
  const double classes = double(traits_of(problem.divergence).terms(C));
  std::vector<T> factors(S, T(0));
  for (int64_t s = 0; s < S; ++s) {
    const double g = upstream ? double(upstream[s]) : 1.0;
    if (in.weight_sum(s) != 0) factors[s] = T(g / (in.weight_sum(s) * classes));
  }
  problem.factors = factors.data();
  problem.want_grad = want_grad;

  const int64_t W = in.width;
  const int64_t blocks = in.lanes() ? (N + W - 1) / W : N;
  const int64_t grad_size = want_grad ? M * problem.modality_stride : 0;
  const int64_t tile = problem.steps * W;
  problem.group = group_of_rows<T>(tile);
  const int64_t fixed = (12 + 2 * problem.group) * tile;
  const int64_t part_size = grad_size + fixed;
  const int64_t affordable = kMaxWorkspace / (part_size * int64_t(sizeof(T)));
  const int64_t count = std::min(
      {blocks, std::max<int64_t>(1, affordable), part_count(S * problem.permutations * N * C)});
  Buffer<T> memory(count * part_size);
  std::vector<double> part_values(count * S, 0.0);
  std::vector<PermutedDivergencePart<T>> parts(count);
  for_each(count, 1, [&](int64_t p) {
    T* base = memory.get() + p * part_size;
    parts[p] = {base + fixed, base, base + tile, &part_values[p * S]};
    std::fill(base, base + tile, T(0));
    std::fill(parts[p].grad, parts[p].grad + grad_size, T(0));
    in.loops.run(problem, blocks * p / count, blocks * (p + 1) / count, parts[p]);
  });
  for (int64_t s = 0; s < S; ++s) {
    double total = 0;
    for (int64_t p = 0; p < count; ++p) total += part_values[p * S + s];
    values[s] = T(total);
  }
  if (want_grad) gather(in, parts, grad, grad_bias);
}

template <class T>
std::tuple<Tensor, Tensor, Tensor> forward(const PermutedDivergenceArguments& arguments,
                                           const T* upstream, bool want_grad) {
  const PermutedDivergenceInputs<T> in(arguments);
  const int64_t S = in.problem.num_subsets, g = want_grad ? 1 : 0;
  const ScalarType dtype = scalar_type_of<T>();
  const Tensor values = empty_cpu({S}, dtype);
  const Tensor grad = empty_cpu({g * in.M, g * in.N, g * in.C}, dtype);
  const Tensor grad_bias = empty_cpu({g * in.C}, dtype);
  if (in.N == 0 || in.C == 0 || in.problem.permutations == 0) {
    for (const Tensor& x : {values, grad, grad_bias}) std::fill_n(data<T>(x), x.numel(), T(0));
  } else {
    run<T>(in, upstream, want_grad, data<T>(values), data<T>(grad), data<T>(grad_bias));
  }
  return {values, grad, grad_bias};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> permuted_divergence_forward(
    const PermutedDivergenceArguments& arguments, bool want_grad) {
  arguments.check();
  return with_arithmetic(is_double(arguments.contributions), [&](auto zero) {
    return forward<decltype(zero)>(arguments, nullptr, want_grad);
  });
}

std::tuple<Tensor, Tensor> permuted_divergence_backward(
    const Tensor& grad, const Tensor& unit_grad, const Tensor& unit_grad_bias,
    const PermutedDivergenceArguments& arguments) {
  const Tensor& x = arguments.contributions;
  const ScalarType dtype = x.scalar_type();
  const ScalarType bias_dtype = arguments.bias ? arguments.bias->scalar_type() : dtype;
  arguments.check_gradients(grad, unit_grad, unit_grad_bias, is_double(x));
  return with_arithmetic(is_double(x), [&](auto zero) -> std::tuple<Tensor, Tensor> {
    using T = decltype(zero);
    const Tensor upstream = contiguous_as(grad, scalar_type_of<T>());
    const T* g = data<const T>(upstream);
    const auto equal = [&](T other) { return other == g[0]; };
    if (std::all_of(g, g + upstream.numel(), equal)) {
      const T factor = upstream.numel() ? g[0] : T(0);
      return {scaled<T>(unit_grad, factor, dtype), scaled<T>(unit_grad_bias, factor, bias_dtype)};
    }
    arguments.check();
    const auto [values, to_contributions, to_bias] = forward<T>(arguments, g, true);
    return {contiguous_as(to_contributions, dtype), contiguous_as(to_bias, bias_dtype)};
  });
}

}  // namespace mcr

STABLE_TORCH_LIBRARY_IMPL(mcr_fast, CPU, m) {
  m.impl("permuted_divergence_fwd",
         TORCH_BOX(&mcr::permuted_divergence_fwd<mcr::permuted_divergence_forward>));
  m.impl("permuted_divergence_bwd",
         TORCH_BOX(&mcr::permuted_divergence_bwd<mcr::permuted_divergence_backward>));
}
