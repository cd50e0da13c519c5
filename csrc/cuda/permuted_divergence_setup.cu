// What happens before and after the pairs of permuted_divergence: laying the inputs out in the
// order of positions, the sums of the weights, and the sums over the rows. Every sum has a fixed
// order.
#include <assert.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/permuted_divergence_kernels.h"

namespace mcr {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 16;  // further elements come in the same threads' next round

unsigned blocks_for(int64_t count) {
  const int64_t blocks = (count + kThreads - 1) / kThreads;
  return unsigned(blocks < 1 ? 1 : blocks > kMaxBlocks ? kMaxBlocks : blocks);
}

__device__ int64_t first_index() { return int64_t(blockIdx.x) * kThreads + threadIdx.x; }
__device__ int64_t index_step() { return int64_t(gridDim.x) * kThreads; }

__device__ float to_float(float x) { return x; }
__device__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ float to_float(__half x) { return __half2float(x); }
__device__ void assign(float* to, float x) { *to = x; }
__device__ void assign(__nv_bfloat16* to, float x) { *to = __float2bfloat16_rn(x); }
__device__ void assign(__half* to, float x) { *to = __float2half_rn(x); }

template <class F>
void with_storage(Storage storage, const F& f) {
  switch (storage) {
    case Storage::kFloat:
      return f(float());
    case Storage::kBfloat16:
      return f(__nv_bfloat16());
    case Storage::kHalf:
      return f(__half());
  }
}

// The sum of one number a thread, known to thread 0.
__device__ double block_sum(double x) {
  __shared__ double sums[kThreads];
  sums[threadIdx.x] = x;
  for (int n = kThreads / 2; n > 0; n /= 2) {
    __syncthreads();
    if (threadIdx.x < n) sums[threadIdx.x] += sums[threadIdx.x + n];
  }
  return sums[0];
}

template <class In>
__global__ void lay_out_contributions_kernel(const __grid_constant__ LayOut in) {
  const In* from = static_cast<const In*>(in.contributions);
  const int64_t C = in.classes, rows = in.modalities * in.rows;
  // A quarter of a warp's threads or more beside each other on one row; the rest take other rows.
  for (int64_t r = int64_t(blockIdx.x) * blockDim.y + threadIdx.y; r < rows;
       r += int64_t(gridDim.x) * blockDim.y) {
    const int64_t m = r / in.rows, a = r % in.rows;
    const In* row = from + (m * in.rows + (in.order ? in.order[a] : a)) * C;
    for (int64_t c = threadIdx.x; c < C; c += blockDim.x) {
      in.contributions_to[r * C + c] = to_float(row[c]) * in.scale;
    }
  }
}

__global__ void lay_out_rows_kernel(const __grid_constant__ LayOut in) {
  for (int64_t a = first_index(); a < in.rows || a < in.classes; a += index_step()) {
    if (a < in.classes) in.bias_to[a] = in.bias ? in.bias[a] * in.scale : 0.0f;
    if (a >= in.rows) continue;
    const int64_t row = in.order ? in.order[a] : a;
    if (in.labels) in.labels_to[a] = in.labels[row];
    if (in.sample_weight) in.weight_to[a] = in.sample_weight[row];
    if (in.present) {
      uint32_t bits = 0;
      for (int64_t m = 0; m < in.modalities; ++m) {
        bits |= uint32_t(in.present[row * in.modalities + m]) << m;
      }
      in.present_to[a] = bits;
    }
  }
}

__global__ void lay_out_table_kernel(const __grid_constant__ LayOut in) {
  for (int64_t t = first_index(); t < in.tables * in.rows; t += index_step()) {
    const int64_t donor = in.donors[t];
    assert(donor >= 0 && donor < in.rows);  // as torch's own indexing on a device
    in.table_to[t] = int32_t(donor);
    if (in.receivers_to) in.receivers_to[t / in.rows * in.rows + donor] = int32_t(t % in.rows);
  }
}

__global__ void count_pairs_kernel(const __grid_constant__ PullProblem<float> pr, Subsets subsets,
                                   double* row_sums) {
  const uint32_t subset = subsets.masks[blockIdx.y];
  for (int64_t a = first_index(); a < pr.rows; a += index_step()) {
    int64_t kept = 0;
    for (int64_t k = 0; k < pr.permutations; ++k) kept += pr.keeps(subset, k, a);
    const double weight = pr.row_weight ? double(pr.row_weight[a]) : 1.0;
    row_sums[blockIdx.y * pr.rows + a] = kept == 0 ? 0.0 : double(kept) * weight;
  }
}

__global__ void weigh_subsets_kernel(const __grid_constant__ PullProblem<float> pr, Subsets subsets,
                                     const float* upstream, const double* row_sums, float* factors,
                                     uint32_t* masks) {
  const int s = int(blockIdx.x);
  double sum = 0;
  for (int64_t a = threadIdx.x; a < pr.rows; a += kThreads) {
    sum += pr.masked       ? row_sums[s * pr.rows + a]
           : pr.row_weight ? double(pr.row_weight[a]) * double(pr.permutations)
                           : double(pr.permutations);
  }
  sum = block_sum(sum);
  if (threadIdx.x != 0) return;
  const double classes = pr.divergence == DivergenceKind::kJsd ? 1.0 : double(pr.classes);
  const double g = upstream ? double(upstream[s]) : 1.0;
  factors[s] = sum != 0 ? float(g / (sum * classes)) : 0.0f;
  masks[s] = subsets.masks[s];
}

__global__ void sum_values_kernel(const double* row_values, int64_t rows, float* values) {
  double sum = 0;
  for (int64_t a = threadIdx.x; a < rows; a += kThreads) sum += row_values[blockIdx.x * rows + a];
  sum = block_sum(sum);
  if (threadIdx.x == 0) values[blockIdx.x] = float(sum);
}

// Sums `count` rows of [rows, classes] from each multiple of it on.
__global__ void sum_rows_kernel(const float* from, int64_t rows, int64_t classes, int64_t count,
                                float* to) {
  const int64_t c = first_index(), first = blockIdx.y * count;
  if (c >= classes) return;
  const int64_t last = first + count < rows ? first + count : rows;
  float sum = 0;
  for (int64_t a = first; a < last; ++a) sum += from[a * classes + c];
  to[blockIdx.y * classes + c] = sum;
}

__global__ void compare_upstream_kernel(const float* upstream, int64_t subsets, int32_t* skip) {
  bool equal = true;
  for (int64_t s = 0; s < subsets; ++s) equal = equal && upstream[s] == upstream[0];
  *skip = equal;
}

template <class Out>
__global__ void scale_grad_kernel(const float* unit, const float* upstream, const float* again,
                                  const int32_t* skip, int64_t count, Out* to) {
  const float factor = upstream[0];
  const bool recomputed = again != nullptr && *skip == 0;
  for (int64_t i = first_index(); i < count; i += index_step()) {
    assign(to + i, recomputed ? again[i] : unit[i] * factor);
  }
}

}  // namespace

void lay_out(const LayOut& in, cudaStream_t stream) {
  // Threads over the classes of a row, as many as it needs: the rest of the block takes other rows.
  unsigned wide = 8;
  while (wide < kThreads && int64_t(wide) < in.classes) wide *= 2;
  const dim3 threads(wide, kThreads / wide);
  const unsigned blocks = blocks_for(in.modalities * in.rows * wide);
  with_storage(in.storage, [&](auto zero) {
    lay_out_contributions_kernel<decltype(zero)><<<blocks, threads, 0, stream>>>(in);
  });
  const int64_t longest = in.rows > in.classes ? in.rows : in.classes;
  lay_out_rows_kernel<<<blocks_for(longest), kThreads, 0, stream>>>(in);
  if (in.donors) {
    lay_out_table_kernel<<<blocks_for(in.tables * in.rows), kThreads, 0, stream>>>(in);
  }
}

void weigh_subsets(const PullProblem<float>& pr, const Subsets& subsets, const float* upstream,
                   double* row_sums, float* factors, uint32_t* masks, cudaStream_t stream) {
  const unsigned count = unsigned(pr.num_subsets);
  if (pr.masked) {
    const dim3 grid(blocks_for(pr.rows), count);
    count_pairs_kernel<<<grid, kThreads, 0, stream>>>(pr, subsets, row_sums);
  }
  weigh_subsets_kernel<<<count, kThreads, 0, stream>>>(pr, subsets, upstream, row_sums, factors,
                                                       masks);
}

void sum_values(const double* row_values, int64_t subsets, int64_t rows, float* values,
                cudaStream_t stream) {
  sum_values_kernel<<<unsigned(subsets), kThreads, 0, stream>>>(row_values, rows, values);
}

void sum_bias(const float* from, int64_t rows, int64_t classes, float* partial, float* to,
              cudaStream_t stream) {
  // gridDim.y is 16 bits wide: more than 2^24 rows take more of them in one partial sum.
  int64_t count = kBiasRows;
  while ((rows + count - 1) / count > 65535) count *= 2;
  const int64_t parts = (rows + count - 1) / count;
  const unsigned columns = unsigned((classes + kThreads - 1) / kThreads);
  sum_rows_kernel<<<dim3(columns, unsigned(parts)), kThreads, 0, stream>>>(from, rows, classes,
                                                                           count, partial);
  sum_rows_kernel<<<columns, kThreads, 0, stream>>>(partial, parts, classes, parts, to);
}

void compare_upstream(const float* upstream, int64_t subsets, int32_t* skip, cudaStream_t stream) {
  compare_upstream_kernel<<<1, 1, 0, stream>>>(upstream, subsets, skip);
}

void scale_grad(const float* unit, const float* upstream, const float* again, const int32_t* skip,
                int64_t count, Storage storage, void* to, cudaStream_t stream) {
  if (count == 0) return;
  with_storage(storage, [&](auto zero) {
    using Out = decltype(zero);
    scale_grad_kernel<Out><<<blocks_for(count), kThreads, 0, stream>>>(
        unit, upstream, again, skip, count, static_cast<Out*>(to));
  });
}

}  // namespace cuda
}  // namespace mcr
