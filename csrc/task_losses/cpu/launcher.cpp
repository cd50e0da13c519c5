// The task's cross entropy, those of a linear head on each modality's latents, and their weighted
// sum with the regularizer: what a step of Algorithm 1 has beside the regularizer, in one call. At
// the size that people train at, the calls between its parts cost more than the parts.
#include <cmath>

#include "permuted_divergence/cpu/layer.h"

namespace mcr {
namespace {

constexpr char kOp[] = "task_losses";
constexpr int64_t kIgnoredLabel = -100;  // torch's cross_entropy leaves such rows out

// M heads, from latents [N, D_m], weights [C, D_m] and, all or none, biases [C].
struct Heads {
  const Tensor *latents, *weights, *biases;
  int64_t count;

  Heads(const Arguments& arguments, const std::vector<Tensor>& parts, int64_t M, int64_t N,
        int64_t C)
      : latents(parts.data()), weights(latents + M), biases(nullptr), count(M) {
    const int64_t given = int64_t(parts.size());
    STD_TORCH_CHECK(M >= 1 && (given == 2 * M || given == 3 * M), kOp,
                    ": parts must be the latents, weights and biases of ", M, " heads, got ",
                    given);
    if (given == 3 * M) biases = weights + M;
    for (int64_t m = 0; m < M; ++m) {
      arguments.check_unit("latents", latents[m], false, {N, kAnySize});
      arguments.check_unit("weights", weights[m], false, {C, latents[m].size(1)});
      if (biases) arguments.check_unit("biases", biases[m], false, {C});
    }
  }

  Products products(int64_t m) const {
    return Products(View::of(latents[m]), View::of(weights[m]));
  }
};

// Mean over the rows that have a label of log sum_c e^x_c - x_label, and its gradient [N, C]. As
// torch has it, the mean over no row is NaN, and its gradient 0.
float cross_entropy(const float* x, const int64_t* labels, int64_t N, int64_t C, float* grad) {
  const int64_t count = N - std::count(labels, labels + N, kIgnoredLabel);
  const double share = 1 / double(count);
  double total = 0;
  for (int64_t i = 0; i < N; ++i, x += C, grad += C) {
    if (labels[i] == kIgnoredLabel) {
      std::fill_n(grad, C, 0.0f);
      continue;
    }
    const float max = *std::max_element(x, x + C);
    double sum = 0;
    for (int64_t c = 0; c < C; ++c) sum += double(grad[c] = std::exp(x[c] - max));
    total += std::log(sum) - double(x[labels[i]] - max);
    const float factor = float(share / sum);
    for (int64_t c = 0; c < C; ++c) grad[c] *= factor;
    grad[labels[i]] -= float(share);
  }
  return float(total * share);
}

Tensor number(float x) {
  const Tensor made = empty_cpu({}, ScalarType::Float);
  *data<float>(made) = x;
  return made;
}

void check_labels(const int64_t* labels, int64_t N, int64_t C) {
  for (int64_t i = 0; i < N; ++i) {
    STD_TORCH_CHECK((labels[i] >= 0 && labels[i] < C) || labels[i] == kIgnoredLabel, kOp,
                    ": labels must be in 0..", C - 1, " or ", kIgnoredLabel, ", got ", labels[i]);
  }
}

// loss, task, unimodal [M], the heads' logits [M, N, C], and the gradient of each cross entropy to
// its logits [1 + M, N, C], the task's first.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> fwd(
    const Tensor& logits,              // [N, C]
    const Tensor& regularizer,         // []
    const std::vector<Tensor>& parts,  // of Heads
    const Tensor& labels,              // [N]
    const std::vector<double>& unimodal_weights, double regularizer_weight) {
  const Arguments arguments(kOp, logits);
  arguments.check_unit("logits", logits, false, {kAnySize, kAnySize});
  arguments.check_unit("regularizer", regularizer, false, {});
  const int64_t M = int64_t(unimodal_weights.size()), N = logits.size(0), C = logits.size(1);
  arguments.check("labels", labels, Holds::kIndices, {N});
  const Heads heads(arguments, parts, M, N, C);
  const Tensor sorted_labels = contiguous_as(labels, ScalarType::Long);
  const int64_t* label = data<const int64_t>(sorted_labels);
  check_labels(label, N, C);
  const Tensor unimodal = empty_cpu({M}, ScalarType::Float);
  const Tensor head_logits = empty_cpu({M, N, C}, ScalarType::Float);
  const Tensor unit_grad = empty_cpu({M + 1, N, C}, ScalarType::Float);
  const Tensor of_task = contiguous_as(logits, ScalarType::Float);
  float* grad = data<float>(unit_grad);
  const float task = cross_entropy(data<const float>(of_task), label, N, C, grad);
  float loss = task;
  for (int64_t m = 0; m < M; ++m) {
    const View made = matrix_of(head_logits, m);
    heads.products(m).forward(made);
    if (heads.biases) {
      const Tensor bias = contiguous_as(heads.biases[m], ScalarType::Float);
      const float* b = data<const float>(bias);
      for (int64_t i = 0; i < N * C; ++i) made.floats()[i] += b[i % C];
    }
    const float value = cross_entropy(made.floats(), label, N, C, grad + (m + 1) * N * C);
    data<float>(unimodal)[m] = value;
    loss += float(unimodal_weights[m]) * value;
  }
  loss += float(regularizer_weight) * *data<const float>(regularizer);
  return {number(loss), number(task), unimodal, head_logits, unit_grad};
}

// to [N, C] = factor * unit + added; without a factor what `unit` holds does not matter.
void add_up(std::optional<float> factor, const float* unit, const float* added, int64_t count,
            float* to) {
  for (int64_t i = 0; i < count; ++i) {
    to[i] = (factor ? *factor * unit[i] : 0.0f) + (added ? added[i] : 0.0f);
  }
}

std::optional<float> sum_of(std::optional<float> a, std::optional<float> b) {
  return a && b ? std::optional<float>(*a + *b) : a ? a : b;
}

// `wanted`: the gradients of `parts` to make; the others come back empty.
std::tuple<Tensor, Tensor, std::vector<Tensor>> bwd(
    const OptionalTensor& grad_loss,         // []
    const OptionalTensor& grad_task,         // []
    const OptionalTensor& grad_unimodal,     // [M]
    const OptionalTensor& grad_head_logits,  // [M, N, C]
    const Tensor& unit_grad,                 // [1 + M, N, C]
    const std::vector<Tensor>& parts, const std::vector<double>& unimodal_weights,
    double regularizer_weight, const std::vector<int64_t>& wanted) {
  const Arguments arguments(kOp, unit_grad);
  const int64_t M = int64_t(unimodal_weights.size());
  arguments.check_unit("unit_grad", unit_grad, false, {M + 1, kAnySize, kAnySize});
  const int64_t N = unit_grad.size(1), C = unit_grad.size(2);
  const Heads heads(arguments, parts, M, N, C);
  for (const OptionalTensor* grad : {&grad_loss, &grad_task}) {
    if (*grad) arguments.check_number("a gradient", **grad);
  }
  arguments.check("grad_unimodal", grad_unimodal, Holds::kFloats, {M});
  arguments.check("grad_unimodal_logits", grad_head_logits, Holds::kFloats, {M, N, C});
  STD_TORCH_CHECK(wanted.size() == parts.size(), kOp, ": wanted must hold a mark a part");
  const auto read = [](const OptionalTensor& x) {
    return x ? std::optional<Tensor>(contiguous_as(*x, ScalarType::Float)) : std::nullopt;
  };
  const OptionalTensor to_loss = read(grad_loss), to_task = read(grad_task);
  const OptionalTensor to_unimodal = read(grad_unimodal), to_logits = read(grad_head_logits);
  const auto number_in = [](const OptionalTensor& x, int64_t i) {
    return x ? std::optional<float>(data<const float>(*x)[i]) : std::nullopt;
  };
  const std::optional<float> of_loss = number_in(to_loss, 0);
  const Tensor units = contiguous_as(unit_grad, ScalarType::Float);
  const float* unit = data<const float>(units);
  const Tensor grad_logits = empty_cpu({N, C}, ScalarType::Float);
  add_up(sum_of(of_loss, number_in(to_task, 0)), unit, nullptr, N * C, data<float>(grad_logits));

  const bool to_biases = heads.biases != nullptr;
  std::vector<Tensor> grads;
  for (size_t k = 0; k < parts.size(); ++k) {
    const bool is_bias = int64_t(k) >= 2 * M;
    const auto sizes = parts[k].sizes();
    if (is_bias) {
      grads.push_back(empty_cpu({wanted[k] ? sizes[0] : 0}, ScalarType::Float));
    } else {
      grads.push_back(wanted[k] ? empty_cpu({sizes[0], sizes[1]}, ScalarType::Float)
                                : empty_cpu({0, 0}, ScalarType::Float));
    }
  }
  const Tensor to_head = empty_cpu({1, N, C}, ScalarType::Float);
  const View g = matrix_of(to_head, 0);
  for (int64_t m = 0; m < M; ++m) {
    const auto weighted =
        of_loss ? std::optional<float>(*of_loss * float(unimodal_weights[m])) : std::nullopt;
    add_up(sum_of(weighted, number_in(to_unimodal, m)), unit + (m + 1) * N * C,
           to_logits ? data<const float>(*to_logits) + m * N * C : nullptr, N * C, g.floats());
    const Products products = heads.products(m);
    if (wanted[m]) products.grad_z(g, View::of(grads[m]));
    if (wanted[M + m]) products.grad_w(g, View::of(grads[M + m]));
    if (!to_biases || !wanted[2 * M + m]) continue;
    std::vector<double> sums(C, 0.0);
    for (int64_t i = 0; i < N; ++i) {
      for (int64_t c = 0; c < C; ++c) sums[c] += double(g.floats()[i * C + c]);
    }
    std::copy(sums.begin(), sums.end(), data<float>(grads[2 * M + m]));
  }
  const float to_regularizer = of_loss.value_or(0.0f) * float(regularizer_weight);
  return {grad_logits, number(to_regularizer), std::move(grads)};
}

}  // namespace
}  // namespace mcr

STABLE_TORCH_LIBRARY_IMPL(mcr_fast, CPU, m) {
  m.impl("task_losses_fwd", TORCH_BOX(&mcr::fwd));
  m.impl("task_losses_bwd", TORCH_BOX(&mcr::bwd));
}
