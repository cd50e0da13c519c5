// CUDA launcher of permuted_divergence: memory, and the kernels in their order on torch's stream.
// Nothing here waits for the device.
#include "permuted_divergence/cuda/launcher.h"

#include "permuted_divergence/cuda/inputs.h"

namespace mcr {
namespace cuda {
namespace {

// What is kept of pairs and of bands; more donors come in further chunks.
constexpr int64_t kMaxPairBytes = int64_t{1} << 28;

struct Results {
  Tensor values, grad, grad_bias;  // [S], [M, N, C], [C]
};

// Memory for what the kernels of a band leave of `bands` of them.
void take_band(PermutedDivergenceInputs& in, int64_t bands) {
  BandProblem& pr = in.pr;
  const int64_t S = pr.num_subsets, N = pr.rows, C = pr.row_stride, g = pr.want_grad ? 1 : 0;
  const int64_t blocks = (N + kBandRows - 1) / kBandRows, pairs = bands * kBandRows * N * S;
  pr.ratios = pr.ratios_to = in.take<float>(pairs + N * S);
  pr.pairs = reinterpret_cast<PairNumbers<float>*>(in.take<float>(g * 2 * (pairs + N * S)));
  pr.pull = in.take<float>(g * pairs);
  pr.modes = in.take<int32_t>(bands * S * blocks * (kBandRows / 8));
  pr.own = in.take<float>(g * bands * S * N * C);
  pr.logs = in.take<float>(g * bands * S * N * C);
  pr.given = in.take<float>(g * bands * S * blocks * kBandDonors * C);
  pr.kl_p = in.take<float>(g * bands * S * N);
  pr.band_values = in.take<double>(bands * S * N);
}

// The pairs, in chunks of bands: in each what the exact kernels serve comes last.
void run_pairs(PermutedDivergenceInputs& in, cudaStream_t stream) {
  BandProblem& pr = in.pr;
  const int64_t bands = (pr.slots + kBandRows - 1) / kBandRows;
  const int64_t of_pairs = pr.num_subsets * pr.rows * kBandRows * 16;
  const int64_t of_sums = 4 * pr.num_subsets * pr.row_stride * (4 * pr.rows + kBandDonors);
  const int64_t chunk = std::clamp<int64_t>(kMaxPairBytes / (of_pairs + of_sums), 1, bands);
  take_band(in, chunk);
  if (pr.shifts) pr.shifts = in.layout.window_to;
  for (pr.first = 0; pr.first < pr.slots; pr.first += chunk * kBandRows) {
    pr.last = std::min(pr.first + chunk * kBandRows, pr.slots);
    band_masses(pr, stream);
    band_terms(pr, stream);
    band_centre(pr, stream);
    SidesProblem<float> rest = pr;
    rest.last += pr.last == pr.slots;
    own_side(rest, stream);
    if (pr.want_grad) donor_side(rest, stream);
  }
}

// Whether any subset's gradient reaches the bias: the greedy strategy with two modalities leaves it
// alone.
bool reaches_bias(const PermutedDivergenceArguments& arguments, SidesProblem<float> pr) {
  std::vector<uint32_t> subsets(arguments.subsets.begin(), arguments.subsets.end());
  pr.subsets = subsets.data();
  bool any = false;
  for (int s = 0; s < pr.num_subsets; ++s) any |= pr.head(s) != 0 || pr.clean_head(s) != 0;
  return any && arguments.bias;
}

// What a batch whose gradient is taken again, or scaled, starts from.
struct Again {
  const float *upstream, *unit, *unit_bias;  // [S], [M, N, C], [C]
};

// Two launches. The results have the dtypes of what is there already.
void run_small(const PermutedDivergenceArguments& arguments, PermutedDivergenceInputs& in,
               const Again& again, const Results& out, cudaStream_t stream) {
  const SidesProblem<float>& pr = in.pr;
  LayOut& layout = in.layout;
  layout.order = layout.order ? layout.given : nullptr;
  layout.subsets = in.subsets();
  layout.num_subsets = pr.num_subsets;
  layout.upstream = again.upstream;
  layout.subsets_to = in.take<uint32_t>(pr.num_subsets);
  SmallPairs batch = {};
  static_cast<SidesProblem<float>&>(batch) = pr;
  batch.members = in.subsets();
  batch.subsets = layout.subsets_to;
  batch.first = 0;
  batch.last = pr.permutations;
  batch.row_values = in.take<double>(pr.num_subsets * pr.rows);
  if (pr.want_grad && reaches_bias(arguments, pr)) {
    batch.grad_bias_rows = in.take<float>(pr.rows * pr.classes);
  }
  batch.upstream = again.upstream;
  batch.unit = again.unit;
  batch.unit_bias = again.unit_bias;
  batch.pairs = in.weighs() ? 0 : double(pr.rows) * double(pr.permutations);
  batch.terms = double(traits_of(pr.divergence).terms(pr.classes));
  batch.poison = layout.poison;
  batch.lines = layout.lines;
  batch.finished = in.take<int32_t>(1);
  batch.values = again.upstream ? nullptr : data<float>(out.values);
  batch.to = data<void>(out.grad);
  batch.to_bias = data<void>(out.grad_bias);
  batch.storage = storage_of(out.grad);
  batch.of_bias = storage_of(out.grad_bias);
  lay_out_small(layout, batch.finished, stream);
  small_sides(batch, stream);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// For the upstream gradient `upstream` [S] on the device (null: 1); nothing where *skip is 1.
Results run(const PermutedDivergenceArguments& arguments, PermutedDivergenceInputs& in,
            const float* upstream, const int32_t* skip, cudaStream_t stream) {
  const Tensor& x = arguments.contributions;
  BandProblem& pr = in.pr;
  const bool want_grad = pr.want_grad;
  const int64_t S = pr.num_subsets, M = pr.modalities, N = pr.rows, C = pr.classes;
  const int64_t g = want_grad ? 1 : 0;
  const Results out = {empty_beside(x, {S}, ScalarType::Float),
                       empty_beside(x, {g * M, g * N, g * C}, ScalarType::Float),
                       empty_beside(x, {g * C}, ScalarType::Float)};
  if (in.empty()) {
    for (const Tensor& x : {out.values, out.grad, out.grad_bias}) clear(x, stream);
    return out;
  }
  if (in.small()) {
    run_small(arguments, in, {}, out, stream);
    return out;
  }

  STD_TORCH_CHECK(in.band(), "permuted_divergence: the CUDA kernels take small batches, and two ",
                  "modalities with donors that are shifts, on a GPU whose blocks may have ",
                  kBandSharedBytes, " bytes of shared memory; backend='triton' takes the others");
  const bool bias_grad = want_grad && reaches_bias(arguments, pr);
  in.lay_out_band();
  pr.skip = skip;
  float* factors = in.take<float>(S);
  uint32_t* device_subsets = in.take<uint32_t>(S);
  const bool sums = in.weighs();
  pr.row_values = in.take<double>(S * N);
  if (bias_grad) pr.grad_bias_rows = in.take<float>(N * C);
  LayOut& layout = in.layout;
  layout.skip = skip;
  layout.cleared[0] = {reinterpret_cast<float*>(pr.row_values), 2 * S * N};
  layout.cleared[1] = {data<float>(out.grad_bias), bias_grad ? 0 : g * C};
  layout.subsets = in.subsets();
  layout.num_subsets = int(S);
  layout.pairs = double(N) * double(pr.permutations);
  layout.terms = double(traits_of(pr.divergence).terms(C));
  layout.upstream = upstream;
  layout.factors_to = sums ? nullptr : factors;
  layout.subsets_to = device_subsets;
  lay_out(layout, stream);
  if (sums) {
    double* row_sums = in.take<double>(pr.may_drop ? S * N : 0);
    weigh_subsets(pr, in.subsets(), layout, upstream, row_sums, factors, device_subsets, stream);
  }
  pr.factors = factors;
  pr.subsets = device_subsets;
  pr.grad = data<float>(out.grad);
  pr.clean = in.take<float>(g * N * C);
  pr.clean_lse = in.take<float>(g * N);

  run_pairs(in, stream);
  sum_values(pr.row_values, S, N, data<float>(out.values), data<float>(out.values) + 1, stream,
             skip, factors);
  if (bias_grad) {
    float* partial = in.take<float>((N + kBiasRows - 1) / kBiasRows * C);
    sum_bias(pr.grad_bias_rows, N, C, partial, data<float>(out.grad_bias), stream, skip);
  }
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> permuted_divergence_forward(
    const PermutedDivergenceArguments& arguments, bool want_grad) {
  const OnDeviceOf device(arguments.contributions);
  PermutedDivergenceInputs in(arguments, want_grad);
  const Results out = run(arguments, in, nullptr, nullptr, device.stream());
  return {out.values, out.grad, out.grad_bias};
}

// Equal upstream gradients scale what the forward left. Whether they are equal is known here where
// they are one number expanded, as sum() leaves them; otherwise, as after mean(), the device
// decides: the gradient is computed again, by kernels that are launched in any case and return at
// once if it need not be. The memory for that is taken in any case too. In a small batch the second
// of them scales.
std::tuple<Tensor, Tensor> permuted_divergence_backward(
    const Tensor& grad,            // [S]
    const Tensor& unit_grad,       // [M, N, C] float32
    const Tensor& unit_grad_bias,  // [C] float32
    const PermutedDivergenceArguments& arguments) {
  const Tensor& contributions = arguments.contributions;
  arguments.check_gradients(grad, unit_grad, unit_grad_bias, false);
  STD_TORCH_CHECK(!arguments.subsets.empty(), "permuted_divergence: no subset, and so no gradient");
  const OnDeviceOf device(contributions);
  const ScalarType dtype = contributions.scalar_type();
  const ScalarType of_bias = arguments.bias.value_or(contributions).scalar_type();
  const bool equal = grad.numel() <= 1 || grad.stride(0) == 0;
  const bool as_it_is = equal && grad.scalar_type() == ScalarType::Float;
  const Tensor upstream = as_it_is ? grad : contiguous_as(grad, ScalarType::Float);
  const float* g = data<const float>(upstream);
  std::optional<Results> again;
  std::optional<PermutedDivergenceInputs> in;
  Tensor skip = upstream;
  if (!equal) in.emplace(arguments, true);
  if (in && in->small()) {
    const Tensor unit = contiguous_as(unit_grad, ScalarType::Float);
    const Tensor unit_bias = contiguous_as(unit_grad_bias, ScalarType::Float);
    const Results out = {unit, empty_beside(unit, unit.sizes(), dtype),
                         empty_beside(unit, unit_bias.sizes(), of_bias)};
    const Again from = {g, data<const float>(unit), data<const float>(unit_bias)};
    run_small(arguments, *in, from, out, device.stream());
    return {out.grad, out.grad_bias};
  }
  if (in) {
    skip = empty_beside(grad, {1}, ScalarType::Int);
    compare_upstream(g, upstream.numel(), data<int32_t>(skip), device.stream());
    again = run(arguments, *in, g, data<int32_t>(skip), device.stream());
  }
  // The bias' gradient comes along: a launch costs more than its few numbers, wanted or not.
  const ScaledGrad to_contributions(unit_grad, dtype, again ? &again->grad : nullptr);
  const ScaledGrad to_bias(unit_grad_bias, of_bias, again ? &again->grad_bias : nullptr);
  scale_grads(to_contributions.plan(), to_bias.plan(), g,
              again ? data<const int32_t>(skip) : nullptr, device.stream());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {to_contributions.result(), to_bias.result()};
}

}  // namespace cuda
}  // namespace mcr

STABLE_TORCH_LIBRARY_IMPL(mcr_fast, CUDA, m) {
  m.impl("permuted_divergence_fwd",
         TORCH_BOX(&mcr::permuted_divergence_fwd<mcr::cuda::permuted_divergence_forward>));
  m.impl("permuted_divergence_bwd",
         TORCH_BOX(&mcr::permuted_divergence_bwd<mcr::cuda::permuted_divergence_backward>));
}
