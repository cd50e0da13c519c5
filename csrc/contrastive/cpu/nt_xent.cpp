// Launcher of nt_xent.
#include <torch/csrc/stable/library.h>

#include <cmath>

#include "contrastive/cpu/similarities.h"
#include "dispatch.h"

namespace mcr {
namespace {

constexpr double kLn2 = 0.69314718055994530942;

const NtXentLoops<float>& loops_of(float) { return cpu_kernels().contrastive.nt_xent_f32; }
const NtXentLoops<double>& loops_of(double) { return cpu_kernels().contrastive.nt_xent_f64; }

// Sums over the positive pairs (a, p): the loss in units of log2, and c_a = sum_p sigma_ap.
template <class T>
double sum_pairs(Similarities<T>& batch, const NtXentLoops<T>& loops, double* c) {
  double loss = 0;
  std::vector<T> row_c;
  std::vector<double> losses;
  batch.for_each_stripe(/*positives_only=*/true, [&](const SimilarityStripe<T>& stripe) {
    const int64_t tiles = batch.tiles(stripe);
    row_c.resize(tiles * kStripeRows);
    losses.resize(tiles);
    batch.for_each_tile(stripe, [&](int64_t tile, int64_t begin, int64_t end) {
      losses[tile] = loops.pairs(stripe, begin, end, batch.row_weights(nullptr),
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

template <class T>
std::tuple<Tensor, Tensor> forward(const Tensor& embeddings, const Tensor& labels,
                                   const OptionalTensor& present, double temperature,
                                   bool want_grad) {
  const NtXentLoops<T>& loops = loops_of(T());
  Similarities<T> batch(loops.similarity, embeddings, labels, present, temperature, want_grad);
  double pairs = 0;
  for (int64_t a = 0; a < batch.rows(); ++a) pairs += double(batch.class_size(a) - 1);
  if (pairs == 0) return no_pairs<T>(embeddings, want_grad);

  batch.sum_exponentials(batch.class_ends());
  const Buffer<double> c = batch.template per_row<double>();
  const double loss = sum_pairs(batch, loops, c.get()) * kLn2 / pairs;
  const Tensor value = loss_tensor<T>(embeddings, loss);
  if (!want_grad) return {value, no_gradient<T>(embeddings)};

  const Buffer<T> weight = batch.template per_row<T>();
  for (int64_t a = 0; a < batch.rows(); ++a) {
    // a row without negatives has c = 0 and no sum
    weight[a] = c[a] == 0 ? T(0) : T(c[a] / batch.sum(a));
  }
  return {value, batch.gradient(loops.weights, weight, T(1 / (pairs * temperature)))};
}

std::tuple<Tensor, Tensor> nt_xent_fwd_cpu(const Tensor& embeddings,       // [L, D]
                                           const Tensor& labels,           // [L]
                                           const OptionalTensor& present,  // [L]
                                           double temperature, bool want_grad) {
  return embeddings.scalar_type() == ScalarType::Double
             ? forward<double>(embeddings, labels, present, temperature, want_grad)
             : forward<float>(embeddings, labels, present, temperature, want_grad);
}

}  // namespace
}  // namespace mcr

STABLE_TORCH_LIBRARY_IMPL(mcr_fast, CPU, m) {
  m.impl("nt_xent_fwd", TORCH_BOX(&mcr::nt_xent_fwd_cpu));
  m.impl("nt_xent_bwd", TORCH_BOX(&mcr::scaled_unit_grad));
}
