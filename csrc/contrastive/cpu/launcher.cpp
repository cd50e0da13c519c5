// Launcher of the contrastive losses.
#include "contrastive/cpu/launcher.h"

#include <torch/csrc/stable/library.h>

#include <numeric>

#include "contrastive/cpu/similarities.h"
#include "dispatch.h"

namespace mcr {
namespace {

// The summed loss of the positive pairs, and c_a: as ContrastiveLoops::positives has them.
template <class T>
double sum_positives(Similarities<T>& batch, const ContrastiveLoops<T>& loops, double* c) {
  double loss = 0;
  std::vector<T> row_c;
  std::vector<double> losses;
  batch.for_each_stripe(/*positives_only=*/true, [&](const SimilarityStripe<T>& stripe) {
    const int64_t tiles = batch.tiles(stripe);
    row_c.assign(tiles * kStripeRows, T(0));
    losses.resize(tiles);
    batch.for_each_tile(stripe, [&](int64_t tile, int64_t begin, int64_t end) {
      losses[tile] = loops.positives(stripe, begin, end, batch.row_weights(nullptr),
                                     &row_c[tile * kStripeRows], c);
    });
    for (int64_t tile = 0; tile < tiles; ++tile) {
      loss += losses[tile];
      for (int64_t r = 0; r < stripe.rows; ++r) {
        c[stripe.first + r] += double(row_c[tile * kStripeRows + r]);
      }
    }
  });
  return loss;
}

// The loss is a mean: with `over_pairs` (nt_xent) over the positive pairs, each of them against the
// negatives, else (sup_con) over the rows that have a positive, each against all other rows.
template <class T>
std::tuple<Tensor, Tensor> forward(const ContrastiveLoops<T>& loops, bool over_pairs,
                                   const Tensor& embeddings, const Tensor& labels,
                                   const OptionalTensor& present, double temperature,
                                   bool want_grad) {
  Similarities<T> batch(loops, embeddings, labels, present, temperature, want_grad);
  const int64_t P = batch.rows();
  const ScalarType dtype = scalar_type_of<T>();
  const Tensor value = empty_cpu({}, dtype), no_gradient = empty_cpu({0, 0}, dtype);
  T& loss_to = *data<T>(value) = T(0);
  double terms = 0;
  for (int64_t a = 0; a < P; ++a) {
    const int64_t positives = batch.class_size(a) - 1;
    terms += double(over_pairs ? positives : positives > 0);
  }
  if (terms == 0) {
    return {value, want_grad ? torch::stable::new_zeros(embeddings, embeddings.sizes(), dtype)
                             : no_gradient};
  }

  std::vector<int64_t> enter(over_pairs ? 0 : P);
  std::iota(enter.begin(), enter.end(), 1);
  batch.sum_exponentials(over_pairs ? batch.class_ends() : enter.data());
  const Buffer<double> c = batch.template per_row<double>();
  double loss = sum_positives(batch, loops, c.get());
  if (!over_pairs) {
    loss *= -batch.scale();
    for (int64_t a = 0; a < P; ++a) {
      if (batch.class_size(a) == 1) continue;
      loss += batch.log2_sum(a);
      c[a] = 1;
    }
  }
  loss_to = T(loss * kLn2 / terms);
  if (!want_grad) return {value, no_gradient};
  const Buffer<T> weight = batch.template per_row<T>();
  for (int64_t a = 0; a < P; ++a) {
    // a row without negatives, or without positives, has c = 0 and no sum
    weight[a] = c[a] == 0 ? T(0) : T(c[a] / batch.sum(a));
  }
  return {value, batch.gradient(weight, T(1 / (terms * temperature)))};
}

template <bool kOverPairs>
std::tuple<Tensor, Tensor> contrastive_fwd(const Tensor& embeddings,       // [L, D]
                                           const Tensor& labels,           // [L]
                                           const OptionalTensor& present,  // [L]
                                           double temperature, bool want_grad) {
  return contrastive_forward(kOverPairs, embeddings, labels, present, temperature, want_grad);
}

Tensor contrastive_bwd(const Tensor& grad,       // []
                       const Tensor& unit_grad,  // [L, D]
                       ScalarType dtype) {
  const Arguments arguments("the contrastive losses", unit_grad);
  arguments.check_number("grad", grad);
  arguments.check_unit("unit_grad", unit_grad, is_double(unit_grad), {kAnySize, kAnySize});
  return with_arithmetic(is_double(unit_grad), [&](auto zero) {
    return scaled(unit_grad, number_of<decltype(zero)>(grad), dtype);
  });
}

}  // namespace

std::tuple<Tensor, Tensor> contrastive_forward(bool over_pairs, const Tensor& embeddings,
                                               const Tensor& labels, const OptionalTensor& present,
                                               double temperature, bool want_grad) {
  const ContrastiveKernels& kernels = cpu_kernels().contrastive;
  return with_arithmetic(is_double(embeddings), [&](auto zero) {
    return forward((over_pairs ? kernels.nt_xent : kernels.sup_con).of(zero), over_pairs,
                   embeddings, labels, present, temperature, want_grad);
  });
}

}  // namespace mcr

STABLE_TORCH_LIBRARY_IMPL(mcr_fast, CPU, m) {
  m.impl("nt_xent_fwd", TORCH_BOX(&mcr::contrastive_fwd<true>));
  m.impl("nt_xent_bwd", TORCH_BOX(&mcr::contrastive_bwd));
  m.impl("sup_con_fwd", TORCH_BOX(&mcr::contrastive_fwd<false>));
  m.impl("sup_con_bwd", TORCH_BOX(&mcr::contrastive_bwd));
}
