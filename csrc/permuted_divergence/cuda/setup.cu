// What happens before and after the pairs of permuted_divergence: laying the inputs out in the
// order of positions, the sums of the weights, and the sums over the rows. Every sum has a fixed
// order.
#include "cuda/blocks.h"
#include "divergence/jsd.h"
#include "permuted_divergence/cuda/kernels.h"

namespace mcr {
namespace cuda {
namespace {

// NaN where some donors were no permutation, else 0.
__device__ float poison_of(const LayOut& in) {
  float sum = 0.0f;
  for (int64_t line = 0; in.given && line < in.lines; ++line) sum += in.poison[line];
  return sum;
}

// A number of a row that is not centred.
__device__ float in_units(const LayOut& in, float x) {
  return (in.saturated ? MCR_ISA::saturated(x, kFarthest) : x) * in.scale;
}

// The row at a position; one in range where the order is no permutation.
__device__ int64_t row_at(const LayOut& in, int64_t a) {
  const int64_t row = in.order ? in.order[a] : a;
  return row >= 0 && row < in.rows ? row : 0;
}

// The bias that is not centred, and what the rows have beside classes, by thread `first` of `step`.
__device__ void lay_out_marks(const LayOut& in, int64_t first, int64_t step) {
  for (int64_t a = first; a < in.rows || (a < in.classes && !in.centered); a += step) {
    if (a < in.classes && !in.centered) in.bias_to[a] = in.bias ? in_units(in, in.bias[a]) : 0.0f;
    if (a >= in.rows) continue;
    const int64_t row = row_at(in, a);
    if (in.labels) in.labels_to[a] = in.labels[row];
    // a weight below 0 is an error that cannot be raised here
    if (in.sample_weight) {
      in.weight_to[a] = in.sample_weight[row] < 0.0f ? NAN : in.sample_weight[row];
    }
    if (in.present) {
      uint32_t bits = 0;
      for (int64_t m = 0; m < in.modalities; ++m) {
        bits |= uint32_t(in.present[row * in.modalities + m]) << m;
      }
      in.present_to[a] = bits;
    }
  }
}

// What is no row of classes.
__device__ void lay_out_rest(const LayOut& in, int64_t first, int64_t step) {
  lay_out_marks(in, first, step);
  const float poison = poison_of(in);
  for (int k = 0; k < kCleared; ++k) {
    const LayOut::Cleared& range = in.cleared[k];
    // two floats of NaN are a double of NaN
    const float start = k < kPoisoned ? poison : 0.0f;
    for (int64_t n = first; n < range.count; n += step) range.to[n] = start;
  }
  if (first < in.num_subsets && in.factors_to) {
    const double share = (in.upstream ? double(in.upstream[first]) : 1.0) / (in.pairs * in.terms);
    in.factors_to[first] = float(share) + poison;
    in.subsets_to[first] = in.subsets.bits[first];
  }
}

// A row less its largest, and where wanted its powers, by a warp; NaN where a number is not finite,
// which is told to `bad_to` if it is given.
template <class In>
__device__ void center_row(const In* row, const LayOut& in, float* to, int64_t size_to,
                           float* powers_to, float power_past_end, int32_t* bad_to) {
  const int lane = int(threadIdx.x) % 32;
  float top = row ? -INFINITY : 0.0f, poison = 0.0f;
  for (int64_t c = lane; row && c < in.classes; c += 32) top = fmaxf(to_float(row[c]), top);
  for (int d = 16; d > 0; d /= 2) top = fmaxf(__shfl_xor_sync(0xffffffffu, top, d), top);
  for (int64_t c = lane; c < in.row_stride; c += 32) {
    float a = 0.0f, power = power_past_end;
    if (c < in.classes) {
      const float x = row ? to_float(row[c]) : 0.0f;
      poison += 0.0f * x;
      a = fmaxf(x - top, float(-kFarthest)) * in.scale + 0.0f * x;
      power = fmaxf(exp2f(a), kLeastPower);  // of NaN too
    }
    if (c < size_to) to[c] = a;
    if (powers_to) powers_to[c] = power;
  }
  if (!bad_to) return;
  const bool bad = __any_sync(0xffffffffu, poison != poison);
  if (lane == 0) *bad_to = bad;
}

// Row r of all modalities' by a warp, the one behind the last is the bias.
template <class In>
__device__ void lay_out_centered(const LayOut& in, int64_t r) {
  if (r == in.modalities * in.rows) {
    return center_row(in.bias, in, in.bias_to, in.classes, in.bias_powers_to, 0.0f,
                      in.bad_to ? in.bad_to + r : nullptr);
  }
  const int64_t m = r / in.rows, a = r % in.rows;
  const In* from = static_cast<const In*>(in.contributions);
  center_row(from + (m * in.rows + row_at(in, a)) * in.classes, in,
             in.contributions_to + r * in.row_stride, in.row_stride,
             in.powers_to ? in.powers_to + r * in.row_stride : nullptr, 1.0f,
             in.bad_to ? in.bad_to + r : nullptr);
}

template <class In>
__global__ void lay_out_centered_kernel(const __grid_constant__ LayOut in) {
  if (is_set(in.skip)) return;
  const int64_t rows = in.modalities * in.rows, warps = int64_t(gridDim.x) * (kBlockThreads / 32);
  for (int64_t r = first_index() / 32; r <= rows; r += warps) lay_out_centered<In>(in, r);
  lay_out_rest(in, first_index(), index_step());
}

// Whether shift k does not follow the ones before it: 1 follows N - 1.
__device__ bool is_scattered(const LayOut& in, int64_t k) {
  return (in.shifts[0] - 1 + k) % (in.rows - 1) + 1 != in.shifts[k];
}

// Of a band whose shifts were checked: they go on from the first where they do, past N too.
template <int kThreads>
__device__ void make_window(const LayOut& in, int wrong, int scattered) {
  for (int64_t k = threadIdx.x; k <= in.num_shifts; k += kThreads) {
    int64_t shift = wrong || k == in.num_shifts ? 0 : in.shifts[k];
    if (!wrong && !scattered) shift = (in.shifts[0] + k) % in.rows;
    in.window_to[k] = shift;
  }
  if (threadIdx.x == 0) *in.scattered_to = scattered;
}

// By a block. Kernels read and write rows by these numbers, and nothing can be raised here: what is
// no permutation is replaced by 0..N-1, and its poison is NaN.
template <int kThreads>
__device__ void check_line(const LayOut& in, int64_t line) {
  __shared__ int any_wrong, any_scattered;
  const int64_t N = in.rows;
  const int64_t* given = in.given + line * N;
  int32_t* receivers = in.receivers_to + line * N;
  int wrong = 0, scattered = 0;
  for (int64_t a = threadIdx.x; a < N; a += kThreads) {
    const bool inside = given[a] >= 0 && given[a] < N;
    if (inside) receivers[given[a]] = int32_t(a);
    wrong |= !inside;
  }
  for (int64_t k = threadIdx.x; k < in.num_shifts; k += kThreads) {
    const bool inside = in.shifts[k] >= 1 && in.shifts[k] < N;
    in.shifts_to[k] = inside ? in.shifts[k] : 0;
    wrong |= !inside;
    if (in.window_to && inside) scattered |= is_scattered(in, k);
  }
  __syncthreads();
  // of two rows with one donor, one does not find itself
  for (int64_t a = threadIdx.x; a < N; a += kThreads) {
    const bool inside = given[a] >= 0 && given[a] < N;
    if (inside) wrong |= receivers[given[a]] != int32_t(a);
  }
  const auto either = [](int a, int b) { return a | b; };
  wrong = block_reduce<kThreads>(wrong, either);
  if (in.window_to) scattered = block_reduce<kThreads>(scattered, either);
  if (threadIdx.x == 0) {
    any_wrong = wrong;
    any_scattered = scattered;
  }
  __syncthreads();
  if (in.window_to) make_window<kThreads>(in, any_wrong, any_scattered);
  for (int64_t a = threadIdx.x; a < N; a += kThreads) {
    const int64_t donor = any_wrong ? a : given[a];
    if (any_wrong) receivers[a] = int32_t(a);
    if (in.table_to) in.table_to[line * N + a] = int32_t(donor);
    if (in.order_to) in.order_to[a] = donor;
  }
  if (threadIdx.x == 0) in.poison[line] = any_wrong ? NAN : 0.0f;
}

__global__ void __launch_bounds__(kSumThreads)
    check_donors_kernel(const __grid_constant__ LayOut in) {
  if (is_set(in.skip)) return;
  for (int64_t line = blockIdx.x; line < in.lines; line += gridDim.x) {
    check_line<kSumThreads>(in, line);
    __syncthreads();  // the next line writes any_wrong again
  }
}

// All of it at once: blocks with a line each, then blocks with rows, that read by an order which
// the others are only checking. Nothing where the upstream gradients are equal.
template <class In>
__global__ void __launch_bounds__(kBlockThreads, 2)
    lay_out_small_kernel(const __grid_constant__ LayOut in, int32_t* finished) {
  if (in.upstream && all_equal(in.upstream, in.num_subsets)) return;
  if (blockIdx.x < in.lines) return check_line<kBlockThreads>(in, blockIdx.x);
  const int64_t first = first_index() - in.lines * kBlockThreads;
  const int64_t step = index_step() - in.lines * kBlockThreads;
  const int64_t C = in.classes, rows = in.modalities * in.rows;
  for (int64_t r = first / 32; r <= rows; r += step / 32) {
    if (in.centered) {
      lay_out_centered<In>(in, r);
    } else if (r < rows) {
      const In* row = static_cast<const In*>(in.contributions) +
                      (r / in.rows * in.rows + row_at(in, r % in.rows)) * C;
      for (int64_t c = first % 32; c < C; c += 32) {
        in.contributions_to[r * C + c] = in_units(in, to_float(row[c]));
      }
    }
  }
  lay_out_marks(in, first, step);
  if (first < in.num_subsets) in.subsets_to[first] = in.subsets.bits[first];
  if (first == 0) *finished = 0;
}

// A warp has a row; permutations are below 2^31.
__global__ void count_pairs_kernel(const __grid_constant__ SidesProblem<float> pr, Subsets subsets,
                                   double* row_sums) {
  if (is_set(pr.skip)) return;
  const uint32_t subset = subsets.bits[blockIdx.y];
  for (int64_t a = first_index() / 32; a < pr.rows; a += index_step() / 32) {
    int kept = 0;
    for (int64_t k = threadIdx.x % 32; k < pr.permutations; k += 32) kept += pr.keeps(subset, k, a);
    for (int d = 16; d > 0; d /= 2) kept += __shfl_xor_sync(0xffffffffu, kept, d);
    const double weight = pr.row_weight ? double(pr.row_weight[a]) : 1.0;
    if (threadIdx.x % 32 == 0) {
      row_sums[blockIdx.y * pr.rows + a] = kept == 0 ? 0.0 : double(kept) * weight;
    }
  }
}

__global__ void __launch_bounds__(kSumThreads)
    weigh_subsets_kernel(const __grid_constant__ SidesProblem<float> pr, Subsets subsets,
                         const __grid_constant__ LayOut layout, const float* upstream,
                         const double* row_sums, float* factors, uint32_t* subsets_to) {
  if (is_set(pr.skip)) return;
  const int s = int(blockIdx.x);
  const double* counted = row_sums + s * pr.rows;
  const double sum = pr.may_drop ? sum_over<8>(pr.rows, [&](int64_t a) { return counted[a]; })
                                 : sum_over<8>(pr.rows, [&](int64_t a) {
                                     return double(pr.row_weight[a]);
                                   }) * double(pr.permutations);
  if (threadIdx.x != 0) return;
  const double g = upstream ? double(upstream[s]) : 1.0;
  factors[s] = (sum != 0 ? float(g / (sum * layout.terms)) : 0.0f) + poison_of(layout);
  subsets_to[s] = subsets.bits[s];
}

// Sums `count` rows of [rows, classes] from each multiple of it on; threads [columns, rows], a
// power of two of each.
template <int kThreads>
__global__ void __launch_bounds__(kThreads)
    sum_rows_kernel(const float* from, int64_t rows, int64_t classes, int64_t count, float* to,
                    const int32_t* skip) {
  if (is_set(skip)) return;
  constexpr int kAtOnce = 8;
  __shared__ float others[kThreads];
  const int64_t c = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, first = blockIdx.y * count;
  const int64_t last = first + count < rows ? first + count : rows, tall = blockDim.y;
  float sums[kAtOnce] = {};
  for (int64_t a = first + threadIdx.y; c < classes && a < last; a += kAtOnce * tall) {
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const bool counts = a + k * tall < last;
      const float x = from[(counts ? a + k * tall : a) * classes + c];
      sums[k] += counts ? x : 0.0f;
    }
  }
#pragma unroll
  for (int n = kAtOnce / 2; n > 0; n /= 2) {
#pragma unroll
    for (int k = 0; k < n; ++k) sums[k] += sums[k + n];
  }
  float* mine = others + threadIdx.y * blockDim.x + threadIdx.x;
  *mine = sums[0];
  for (int n = int(tall) / 2; n > 0; n /= 2) {
    __syncthreads();
    if (int(threadIdx.y) < n) *mine += mine[n * blockDim.x];
  }
  if (threadIdx.y == 0 && c < classes) to[blockIdx.y * classes + c] = *mine;
}

template <int kThreads>
void sum_rows(const float* from, int64_t rows, int64_t classes, int64_t count, float* to,
              cudaStream_t stream, const int32_t* skip) {
  unsigned wide = 8;
  while (wide < 32 && int64_t(wide) < classes) wide *= 2;
  const dim3 grid(unsigned((classes + wide - 1) / wide), unsigned((rows + count - 1) / count));
  sum_rows_kernel<kThreads>
      <<<grid, dim3(wide, kThreads / wide), 0, stream>>>(from, rows, classes, count, to, skip);
}

__global__ void compare_upstream_kernel(const float* upstream, int64_t subsets, int32_t* skip) {
  int equal = 1;
  for (int64_t s = threadIdx.x; s < subsets; s += kBlockThreads)
    equal &= upstream[s] == upstream[0];
  equal = block_reduce(equal, [](int a, int b) { return a & b; });
  if (threadIdx.x == 0) *skip = equal;
}

}  // namespace

void lay_out(const LayOut& in, cudaStream_t stream) {
  if (in.given) {
    const unsigned lines = unsigned(in.lines < kMaxGrid ? in.lines : kMaxGrid);
    check_donors_kernel<<<lines, kSumThreads, 0, stream>>>(in);
  }
  const unsigned warps = blocks_for((in.modalities * in.rows + 1) * 32);
  with_storage(in.storage, [&](auto zero) {
    lay_out_centered_kernel<decltype(zero)><<<warps, kBlockThreads, 0, stream>>>(in);
  });
}

void lay_out_small(const LayOut& in, int32_t* finished, cudaStream_t stream) {
  const unsigned blocks = unsigned(in.lines) + blocks_for((in.modalities * in.rows + 1) * 32);
  with_storage(in.storage, [&](auto zero) {
    lay_out_small_kernel<decltype(zero)><<<blocks, kBlockThreads, 0, stream>>>(in, finished);
  });
}

void weigh_subsets(const SidesProblem<float>& pr, const Subsets& subsets, const LayOut& layout,
                   const float* upstream, double* row_sums, float* factors, uint32_t* subsets_to,
                   cudaStream_t stream) {
  const unsigned count = unsigned(pr.num_subsets);
  if (pr.may_drop) {
    const dim3 grid(blocks_for(pr.rows * 32), count);
    count_pairs_kernel<<<grid, kBlockThreads, 0, stream>>>(pr, subsets, row_sums);
  }
  weigh_subsets_kernel<<<count, kSumThreads, 0, stream>>>(pr, subsets, layout, upstream, row_sums,
                                                          factors, subsets_to);
}

void sum_bias(const float* from, int64_t rows, int64_t classes, float* partial, float* to,
              cudaStream_t stream, const int32_t* skip) {
  // gridDim.y is 16 bits wide, and the second stage is one block a column of the grid: many rows
  // take more of them in one partial sum.
  constexpr int64_t kMaxPartialSums = 4096;
  int64_t count = kBiasRows;
  while ((rows + count - 1) / count > kMaxPartialSums) count *= 2;
  const int64_t parts = (rows + count - 1) / count;
  sum_rows<kBlockThreads>(from, rows, classes, count, partial, stream, skip);
  sum_rows<kSumThreads>(partial, parts, classes, parts, to, stream, skip);
}

void compare_upstream(const float* upstream, int64_t subsets, int32_t* skip, cudaStream_t stream) {
  compare_upstream_kernel<<<1, kBlockThreads, 0, stream>>>(upstream, subsets, skip);
}

}  // namespace cuda
}  // namespace mcr
