// The kernels of products.h: sums in float32 and in a fixed order, several of them for every number
// that is read.
#include "cuda/blocks.h"
#include "permuted_divergence/cuda/products.h"

namespace mcr {
namespace cuda {
namespace {

// Rows and classes of the sums that a warp has in the forward.
constexpr int kRowsOfWarp = 2, kClassesOfWarp = 4;

// Blocks [tiles of rows by classes, modalities]; lanes over the width.
__global__ void __launch_bounds__(kBlockThreads)
    layer_products_kernel(const __grid_constant__ Layer layer, float* to) {
  const int64_t N = layer.rows, C = layer.classes, tile = first_index() / 32;
  const int64_t tiles = (C + kClassesOfWarp - 1) / kClassesOfWarp;
  const int64_t row = tile / tiles * kRowsOfWarp, c = tile % tiles * kClassesOfWarp;
  if (row >= N) return;
  const Layer::Modality& m = layer.of[blockIdx.y];
  const int lane = int(threadIdx.x) % 32;
  const float *z[kRowsOfWarp], *w[kClassesOfWarp];  // past the end: the last ones again
  for (int r = 0; r < kRowsOfWarp; ++r) z[r] = m.z + (row + r < N ? row + r : N - 1) * m.stride;
  for (int k = 0; k < kClassesOfWarp; ++k) {
    w[k] = layer.weight + (c + k < C ? c + k : C - 1) * layer.weight_stride + m.first;
  }
  float sums[kRowsOfWarp][kClassesOfWarp] = {};
#pragma unroll 4
  for (int64_t d = lane; d < m.width; d += 32) {
    float x[kRowsOfWarp];
#pragma unroll
    for (int r = 0; r < kRowsOfWarp; ++r) x[r] = z[r][d];
#pragma unroll
    for (int k = 0; k < kClassesOfWarp; ++k) {
      const float y = w[k][d];
#pragma unroll
      for (int r = 0; r < kRowsOfWarp; ++r) sums[r][k] += x[r] * y;
    }
  }
#pragma unroll
  for (int r = 0; r < kRowsOfWarp; ++r) {
#pragma unroll
    for (int k = 0; k < kClassesOfWarp; ++k) {
      float sum = sums[r][k];
      for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
      const bool inside = row + r < N && c + k < C;
      if (lane == 0 && inside) to[(int64_t(blockIdx.y) * N + row + r) * C + c + k] = sum;
    }
  }
}

__device__ float value_of(const Factor& factor) {
  float x = factor.constant;
  if (factor.first) x += factor.weight * *factor.first;
  if (factor.second) x += factor.sign * *factor.second;
  return x;
}

// The gradient of one contribution.
__device__ float grad_at(const LayerGrad& grad, float factor, const Layer& layer, int64_t m,
                         int64_t row, int64_t c) {
  const int64_t at = row * layer.classes + c;
  float x = 0.0f;
  if (grad.unit) x += factor * grad.unit[m * layer.rows * layer.classes + at];
  if (grad.added) x += grad.added[m * grad.added_stride + at];
  return x;
}

// What the rows of modality m get beside the layer's part, at element `at` of [N, D_m].
__device__ float of_rows_at(const LayerGrad& grad, float factor, const Layer& layer, int64_t m,
                            int64_t at) {
  return factor * grad.unit_rows[m * layer.rows * layer.of[m].width + at];
}

// By a block: a thread alone would wait for one row after the other.
template <int kThreads>
__device__ void bias_at(const LayerGrad& grad, float factor, const Layer& layer, int64_t c) {
  double sum = 0;
  for (int64_t row = threadIdx.x; grad.added && row < layer.rows; row += kThreads) {
    sum += double(grad.added[row * layer.classes + c]);
  }
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x != 0) return;
  grad.to_bias[c] = (grad.unit_bias ? factor * grad.unit_bias[c] : 0.0f) + float(sum);
}

constexpr int kGradThreads = 128;             // of a block: as many columns
constexpr int kGradRows = 8, kGradDeep = 32;  // of its tile of gradients

// One block's tile of a product: rows first .. of the gradients' matrix [outer, inner], which
// g(row, column) gives, times `from` [inner, stride], at this thread's column if it has one.
template <class G>
__device__ void add_products(int64_t first, int64_t outer, int64_t inner, const float* from,
                             int64_t stride, bool has_column, const G& g,
                             float (&sums)[kGradRows]) {
  __shared__ float tile[kGradRows][kGradDeep];
  for (int64_t start = 0; start < inner; start += kGradDeep) {
    __syncthreads();  // the tile before this one has been read
    for (int n = int(threadIdx.x); n < kGradRows * kGradDeep; n += kGradThreads) {
      const int64_t row = first + n / kGradDeep, column = start + n % kGradDeep;
      const bool inside = row < outer && column < inner;
      tile[n / kGradDeep][n % kGradDeep] = inside ? g(row, column) : 0.0f;
    }
    __syncthreads();
    const int deep = inner - start < kGradDeep ? int(inner - start) : kGradDeep;
#pragma unroll 4
    for (int k = 0; has_column && k < deep; ++k) {
      const float x = from[(start + k) * stride];
#pragma unroll
      for (int r = 0; r < kGradRows; ++r) sums[r] += tile[r][k] * x;
    }
  }
}

// A block's tile of rows of one modality's latents or of its columns of the weight; behind these, a
// class of the bias.
__global__ void __launch_bounds__(kGradThreads)
    layer_grads_kernel(const __grid_constant__ Layer layer, const __grid_constant__ LayerGrad grad,
                       int row_tiles, int class_tiles, int column_tiles) {
  const int64_t N = layer.rows, C = layer.classes;
  const float factor = value_of(grad.factor);
  int64_t block = blockIdx.x;
  const int64_t products = int64_t(row_tiles + class_tiles) * column_tiles;
  if (block >= products * layer.modalities) {
    return bias_at<kGradThreads>(grad, factor, layer, block - products * layer.modalities);
  }
  const int m = int(block / products);
  block %= products;
  const Layer::Modality& of = layer.of[m];
  const int64_t column = block % column_tiles * kGradThreads + threadIdx.x;
  const int64_t tile = block / column_tiles;
  const bool has_column = column < of.width, to_latents = tile < row_tiles;
  const int64_t first = (to_latents ? tile : tile - row_tiles) * kGradRows;
  float sums[kGradRows] = {};
  if (to_latents) {
    if (!grad.to_latents[m]) return;
    add_products(
        first, N, C, layer.weight + of.first + column, layer.weight_stride, has_column,
        [&](int64_t row, int64_t c) { return grad_at(grad, factor, layer, m, row, c); }, sums);
    const float of_rows = value_of(grad.of_rows);
#pragma unroll
    for (int r = 0; r < kGradRows; ++r) {
      if (!has_column || first + r >= N) continue;
      const int64_t at = (first + r) * of.width + column;
      const float more = grad.unit_rows ? of_rows_at(grad, of_rows, layer, m, at) : 0.0f;
      grad.to_latents[m][at] = sums[r] + more;
    }
  } else {
    add_products(
        first, C, N, of.z + column, of.stride, has_column,
        [&](int64_t c, int64_t row) { return grad_at(grad, factor, layer, m, row, c); }, sums);
#pragma unroll
    for (int r = 0; r < kGradRows; ++r) {
      if (!has_column || first + r >= C) continue;
      grad.to_weight[(first + r) * layer.width + of.first + column] = sums[r];
    }
  }
}

__global__ void layer_grad_parts_kernel(const __grid_constant__ Layer layer,
                                        const __grid_constant__ LayerGrad grad, float* to) {
  const int64_t N = layer.rows, C = layer.classes;
  const float factor = value_of(grad.factor), of_rows = value_of(grad.of_rows);
  for (int64_t n = first_index(); n < layer.modalities * N * C; n += index_step()) {
    to[n] = grad_at(grad, factor, layer, n / (N * C), n / C % N, n % C);
  }
  for (int64_t m = 0; grad.unit_rows && m < layer.modalities; ++m) {
    if (!grad.to_latents[m]) continue;
    for (int64_t n = first_index(); n < N * layer.of[m].width; n += index_step()) {
      grad.to_latents[m][n] = of_rows_at(grad, of_rows, layer, m, n);
    }
  }
  for (int64_t c = blockIdx.x; grad.to_bias && c < C; c += gridDim.x) {
    bias_at<kBlockThreads>(grad, factor, layer, c);
  }
}

int64_t tiles_of(int64_t count, int64_t each) { return (count + each - 1) / each; }

}  // namespace

void layer_products(const Layer& layer, float* to, cudaStream_t stream) {
  const int64_t tiles = tiles_of(layer.rows, kRowsOfWarp) * tiles_of(layer.classes, kClassesOfWarp);
  if (tiles == 0) return;
  const dim3 grid(unsigned(tiles_of(tiles, kBlockThreads / 32)), unsigned(layer.modalities));
  layer_products_kernel<<<grid, kBlockThreads, 0, stream>>>(layer, to);
}

void layer_grads(const Layer& layer, const LayerGrad& grad, cudaStream_t stream) {
  bool to_latents = false;
  int64_t width = 0;
  for (int m = 0; m < layer.modalities; ++m) {
    to_latents |= grad.to_latents[m] != nullptr;
    width = layer.of[m].width > width ? layer.of[m].width : width;
  }
  const int64_t rows = to_latents ? tiles_of(layer.rows, kGradRows) : 0;
  const int64_t classes = grad.to_weight ? tiles_of(layer.classes, kGradRows) : 0;
  const int64_t columns = tiles_of(width, kGradThreads);
  const int64_t bias = grad.to_bias ? layer.classes : 0;
  const unsigned blocks = unsigned((rows + classes) * columns * layer.modalities + bias);
  if (blocks == 0) return;
  layer_grads_kernel<<<blocks, kGradThreads, 0, stream>>>(layer, grad, int(rows), int(classes),
                                                          int(columns));
}

void layer_grad_parts(const Layer& layer, const LayerGrad& grad, float* to, cudaStream_t stream) {
  const int64_t of_rows = grad.unit_rows ? layer.width / layer.modalities : 0;
  const int64_t most = layer.classes > of_rows ? layer.classes : of_rows;
  const unsigned blocks = blocks_for(layer.rows * most);
  layer_grad_parts_kernel<<<blocks, kBlockThreads, 0, stream>>>(layer, grad, to);
}

}  // namespace cuda
}  // namespace mcr
