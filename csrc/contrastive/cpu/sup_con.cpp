// Launcher of sup_con.
#include <torch/csrc/stable/library.h>

#include <numeric>

#include "contrastive/cpu/similarities.h"
#include "dispatch.h"

namespace mcr {
namespace {

constexpr double kLn2 = 0.69314718055994530942;

const SupConLoops<float>& loops_of(float) { return cpu_kernels().contrastive.sup_con_f32; }
const SupConLoops<double>& loops_of(double) { return cpu_kernels().contrastive.sup_con_f64; }

// Sum over anchors of the mean similarity of their positives.
template <class T>
double sum_positives(Similarities<T>& batch, const SupConLoops<T>& loops) {
  double total = 0;
  std::vector<double> sums;
  batch.for_each_stripe(/*positives_only=*/true, [&](const SimilarityStripe<T>& stripe) {
    sums.resize(batch.tiles(stripe));
    batch.for_each_tile(stripe, [&](int64_t tile, int64_t begin, int64_t end) {
      sums[tile] = loops.positives(stripe, begin, end);
    });
    for (const double sum : sums) total += sum;
  });
  return total;
}

template <class T>
std::tuple<Tensor, Tensor> forward(const Tensor& embeddings, const Tensor& labels,
                                   const OptionalTensor& present, double temperature,
                                   bool want_grad) {
  const SupConLoops<T>& loops = loops_of(T());
  Similarities<T> batch(loops.similarity, embeddings, labels, present, temperature, want_grad);
  double anchors = 0;
  for (int64_t a = 0; a < batch.rows(); ++a) anchors += batch.class_size(a) > 1 ? 1 : 0;
  if (anchors == 0) return no_pairs<T>(embeddings, want_grad);

  std::vector<int64_t> enter(batch.rows());
  std::iota(enter.begin(), enter.end(), 1);
  batch.sum_exponentials(enter.data());
  double loss = -sum_positives(batch, loops) * batch.scale();
  const Buffer<T> weight = batch.template per_row<T>();
  for (int64_t a = 0; a < batch.rows(); ++a) {
    if (batch.class_size(a) == 1) continue;
    loss += batch.log2_sum(a);
    weight[a] = T(1 / batch.sum(a));
  }
  const Tensor value = loss_tensor<T>(embeddings, loss * kLn2 / anchors);
  if (!want_grad) return {value, no_gradient<T>(embeddings)};
  return {value, batch.gradient(loops.weights, weight, T(1 / (anchors * temperature)))};
}

std::tuple<Tensor, Tensor> sup_con_fwd_cpu(const Tensor& embeddings,       // [L, D]
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
  m.impl("sup_con_fwd", TORCH_BOX(&mcr::sup_con_fwd_cpu));
  m.impl("sup_con_bwd", TORCH_BOX(&mcr::scaled_unit_grad));
}
