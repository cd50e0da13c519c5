// The second kernel of a band (band.h): the logarithms of every class of every pair.
#include "cuda/blocks.h"
#include "permuted_divergence/cuda/band.h"

namespace mcr {
namespace cuda {
namespace {

// log2 cosh(x ln2 / 2), its series in x^2.
constexpr float kCosh1 = 0.08664339756999316f, kCosh2 = -0.0017345033957756745f,
                kCosh3 = 5.555649227678517e-05f;
// So near 0 d = log2(q / p) has a series; further off L is as good.
constexpr float kSeries = 0.5f;

// What is in shared memory: of the rows their shares, a, g, A' and two sums, of the donors e,
// 1 / (2 e), A' and a sum in two copies; where the rows of modality m begin, then the donors, and
// the rows of the other modality.
struct Chunk {
  float *shares, *a, *g, *log_a, *own, *logs, *e, *half_inverse, *log_e, *given;
  uint32_t *offsets, *of_donors, *of_others;
  __device__ explicit Chunk(float* pool)
      : shares(pool),
        a(shares + kBandRows),
        g(a + kOfRows),
        log_a(g + kOfRows),
        own(log_a + kOfRows),
        logs(own + kOfRows),
        e(logs + kOfRows),
        half_inverse(e + kOfDonors),
        log_e(half_inverse + kOfDonors),
        given(log_e + kOfDonors),
        offsets(reinterpret_cast<uint32_t*>(given + 2 * kOfDonors)),
        of_donors(offsets + kBandRows),
        of_others(of_donors + kBandDonors + 1) {}
};
constexpr int kTermsFloats = 5 * kOfRows + 5 * kOfDonors + 3 * kBandRows + kBandDonors + 1;

// What does not change from chunk to chunk.
__device__ __forceinline__ void stage_rows(const BandProblem& pr, const Place& at, const Chunk& x) {
  const int n = int(threadIdx.x), N = int(pr.rows);
  if (n < kBandRows) {
    const int row = in_circle(at.first_row + n, N);
    x.shares[n] = share_of(pr, row);
    x.offsets[n] = pr.offset(at.m, row);
    x.of_others[n] = pr.offset(1 - at.m, row);
  }
  if (n < kBandDonors) x.of_donors[n] = pr.offset(at.m, at.donor(pr, n));
}

__device__ __forceinline__ void stage(const BandProblem& pr, int first, const Chunk& x) {
  const auto log = [](float a) { return fmaxf(a, kLeastLog); };
  const int mine = first + int(threadIdx.x) % (kChunk / 4) * 4;
  const bool there = mine < int(pr.row_stride);
  const float4 bias = there ? quad(pr.bias_powers + mine) : all_of(0.0f);  // 0: no class
  const uint32_t c4 = there ? mine : 0;  // what is read there does not count
  for_quads(kBandRows, [&](int n, int c) {
    const uint32_t from = x.offsets[n] + c4;
    const int to = row_at(n) + c;
    put(x.a + to, quad(pr.powers + from));
    put(x.log_a + to, map(quad(pr.contributions + from), log));
    put(x.g + to, quad(pr.powers + (x.of_others[n] + c4)) * bias * all_of(x.shares[n]));
    put(x.own + to, all_of(0.0f));
    put(x.logs + to, all_of(0.0f));
  });
  for_quads(kBandDonors, [&](int n, int c) {
    const uint32_t from = x.of_donors[n] + c4;
    const int to = row_at(n) + c;
    const float4 e = quad(pr.powers + from);
    put(x.e + to, e);
    put(x.half_inverse + to, map(e, [](float y) { return 0.5f * inverse(y); }));
    put(x.log_e + to, map(quad(pr.contributions + from), log));
    put(x.given + to, all_of(0.0f));
    put(x.given + kOfDonors + to, all_of(0.0f));
  });
}

// One class of a tile's rows: as they stand, and what their pairs add.
struct Cell {
  float a[kTile], g[kTile], log_a[kTile], own[kTile], logs[kTile];
};

// log2(q / mean) and log2(p / mean) of a pair that may be near.
__device__ __forceinline__ void near_logs(float half_ratio, float log, float step, float& log_qm,
                                          float& log_pm) {
  const float log_ratio = opaque_log2(half_ratio) + 1.0f;
  const float d = step + log_ratio, x = d * d;
  const float even = x * fmaf(fmaf(x, kCosh3, kCosh2), x, kCosh1);
  log_qm = fabsf(d) < kSeries ? fmaf(0.5f, d, -even) : log_ratio - log;
  log_pm = log_qm - d;
}

// One pair. Its L is what stands for log2(q / mean) up to a number of the pair, and a sign.
template <bool kGrad, Mode kMode>
__device__ __forceinline__ void add_term(Cell& x, int r, float e, float half_inverse, float log_e,
                                         float half_ratio, float& kappa, float& given) {
  float log = quick_log2(fmaf(x.a[r], half_inverse, half_ratio)), log_pm = -log;
  if (kMode != kFarMode) {
    const float step = log_e - x.log_a[r];
    log_pm -= step;
    if (kMode == kNearMode) {
      float log_qm;
      near_logs(half_ratio, log, step, log_qm, log_pm);
      log = half_ratio != 0.0f ? -log_qm : 0.0f;
    }
    log_pm = half_ratio != 0.0f ? log_pm : 0.0f;
  }
  x.logs[r] += log_pm;
  const float of_row = x.g[r] * log;
  kappa = fmaf(of_row, e, kappa);
  if (!kGrad) return;
  given = fmaf(half_ratio, of_row, given);
  x.own[r] = fmaf(half_ratio, e * log, x.own[r]);
}

// One class of a tile's pairs.
template <bool kGrad, Mode kMode>
__device__ __forceinline__ void add_cell(const Place& at, int c, const Chunk& chunk,
                                         const float (&half_ratio)[kPairs],
                                         float (&kappa)[kPairs]) {
  const int rows = row_at(at.rows * kTile) + c;
  const int donors = row_at((at.rows + at.shifts) * kTile) + c;
  Cell x;
#pragma unroll
  for (int r = 0; r < kTile; ++r) {
    x.a[r] = chunk.a[rows + row_at(r)];
    x.g[r] = chunk.g[rows + row_at(r)];
    if (kMode != kFarMode) x.log_a[r] = chunk.log_a[rows + row_at(r)];
    if (kGrad) x.own[r] = chunk.own[rows + row_at(r)];
    x.logs[r] = chunk.logs[rows + row_at(r)];
  }
  float* copy = chunk.given + at.rows % 2 * kOfDonors;
#pragma unroll
  for (int d = 0; d < kTileDonors; ++d) {
    const int from = donors + row_at(d);
    const float e = chunk.e[from], half_inverse = chunk.half_inverse[from];
    const float log_e = kMode != kFarMode ? chunk.log_e[from] : 0.0f;
    float given = kGrad ? copy[from] : 0.0f;
#pragma unroll
    for (int r = 0; r < kTile; ++r) {
      const int n = d - r;
      if (n < 0 || n >= kTile) continue;
      add_term<kGrad, kMode>(x, r, e, half_inverse, log_e, half_ratio[n * kTile + r],
                             kappa[n * kTile + r], given);
    }
    if (kGrad) copy[from] = given;
  }
#pragma unroll
  for (int r = 0; r < kTile; ++r) {
    if (kGrad) chunk.own[rows + row_at(r)] = x.own[r];
    chunk.logs[rows + row_at(r)] = x.logs[r];
  }
}

// logs += A'[i] - A'[j] of kWindow shifts, of eight rows and a class. Less those of the first row:
// differences are small. A sum slides from row to row.
template <int kWindow>
__device__ __forceinline__ void add_steps(const float* rows, const float* donors, float* logs) {
  float sum = 0.0f, gone[kTile - 1];
  const float start = rows[0];
#pragma unroll
  for (int d = 0; d < kWindow; ++d) {
    const float step = donors[row_at(d)] - start;
    if (d < kTile - 1) gone[d] = step;
    sum += step;
  }
#pragma unroll
  for (int r = 0; r < kTile; ++r) {
    if (r > 0) sum += (donors[row_at(r + kWindow - 1)] - start) - gone[r - 1];
    logs[row_at(r)] += float(kWindow) * (rows[row_at(r)] - start) - sum;
  }
}

// Those of the tiles of shifts in far mode: a class and eight rows for each thread.
__device__ __forceinline__ void add_steps(const int (&modes)[kTiles], const Chunk& x) {
  const int c = int(threadIdx.x) % kChunk, tile = int(threadIdx.x) / kChunk;
  const int rows = row_at(tile * kTile) + c;
  bool all = true;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) all &= modes[n] == kFarMode;
  if (all) return add_steps<kBandRows>(x.log_a + rows, x.log_e + rows, x.logs + rows);
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    if (modes[n] != kFarMode) continue;
    add_steps<kTile>(x.log_a + rows, x.log_e + row_at((tile + n) * kTile) + c, x.logs + rows);
  }
}

// The chunk's sums to memory; returns this thread's part of what row threadIdx.x / 8 has of
// omega KL(p | mean).
template <bool kGrad>
__device__ __forceinline__ float store(const BandProblem& pr, const Place& at, int first,
                                       const Chunk& x) {
  const int size = int(pr.row_stride), part = at.part(pr);
  float kl_p = 0.0f;
  const int mine = row_at(int(threadIdx.x) / kTile) + at.lane;
#pragma unroll
  for (int c = 0; c < kChunk; c += kTile) {
    kl_p = fmaf(x.g[mine + c] * x.a[mine + c], x.logs[mine + c], kl_p);
  }
  const uint32_t c4 = first + int(threadIdx.x) % (kChunk / 4) * 4;
  if (!kGrad || c4 >= uint32_t(size)) return kl_p;
  const uint32_t rows = uint32_t(part * int(pr.rows) + at.first_row) * uint32_t(size) + c4;
  for_quads(kBandRows, [&](int n, int c) {
    if (at.first_row + n >= int(pr.rows)) return;
    put(pr.own + (rows + n * size), quad(x.own + row_at(n) + c));
    put(pr.logs + (rows + n * size), quad(x.logs + row_at(n) + c));
  });
  const uint32_t block = uint32_t(part * int(gridDim.x) + int(blockIdx.x));
  const uint32_t donors = block * kBandDonors * uint32_t(size) + c4;
  for_quads(kBandDonors, [&](int n, int c) {
    const float* from = x.given + row_at(n) + c;
    put(pr.given + (donors + n * size), quad(from) + quad(from + kOfDonors));
  });
  return kl_p;
}

// One pair, from sum g e L over the classes: what the last kernel takes of it, and its
// omega KL(q | mean).
template <bool kGrad>
__device__ float finish_pair(const BandProblem& pr, const Place& at, int i, int k, bool near,
                             float ratio, float sum) {
  const float weight = pr.row_weight ? pr.row_weight[i] : 1.0f, kappa = ratio * sum;
  const bool counts = ratio != 0.0f;
  if (kGrad) {
    float* to = pr.pull + (((k - pr.first) * pr.num_subsets + at.s) * pr.rows + i);
    *to = counts ? ratio * kappa / weight : 0.0f;
  }
  if (!counts) return 0.0f;
  return near ? -kappa : weight * ::log2f(ratio) - kappa;
}

// What the pairs of a tile of shifts add up to, by half 0, and then the rows.
template <bool kGrad>
__device__ __forceinline__ void finish(const BandProblem& pr, const Place& at, bool near,
                                       float kl_p, const float (&sums)[kPairs], float* pool) {
  float sum[kTile];
  float *values = pool + kTile * 128, *counts = values + kTiles * kBandRows;  // [shift tile, row]
  const int lane = int(threadIdx.x) % 128;
  reduce_pairs([&](int n) { return sums[n]; }, at.lane, sum);
  __syncthreads();
#pragma unroll
  for (int r = 0; at.half == 1 && r < kTile; ++r) pool[r * 128 + lane] = sum[r];
  __syncthreads();
#pragma unroll
  for (int r = 0; at.half == 0 && r < kTile; ++r) {
    const int i = at.row(r), k = at.slot(at.lane);
    float value = 0.0f, count = 0.0f;
    if (i < pr.rows && k < pr.last) {
      const float ratio = served(pr.ratios[pr.pair(at.s, k, i)]);
      value = finish_pair<kGrad>(pr, at, i, k, near, ratio, sum[r] + pool[r * 128 + lane]);
      count = ratio != 0.0f;
    }
    value = reduce_lanes(value);
    count = reduce_lanes(count);
    if (at.lane != 0) continue;
    values[at.shifts * kBandRows + at.rows * kTile + r] = value;
    counts[at.shifts * kBandRows + at.rows * kTile + r] = count;
  }
  kl_p = reduce_lanes(kl_p);
  __syncthreads();
  const int row = int(threadIdx.x) / kTile, i = at.first_row + row;
  if (at.lane != 0 || i >= pr.rows) return;
  double value = kl_p;
  float count = 0.0f;
  for (int n = 0; n < kTiles; ++n) {
    value += values[n * kBandRows + row];
    count += counts[n * kBandRows + row];
  }
  const int to = at.part(pr) * int(pr.rows) + i;
  const float weight = pr.row_weight ? pr.row_weight[i] : 1.0f;
  pr.band_values[to] = count == 0.0f ? 0.0 : value;
  if (kGrad) pr.kl_p[to] = count == 0.0f ? INFINITY : kl_p / weight;  // of no pair, no logarithms
}

template <bool kGrad>
__global__ void __launch_bounds__(kBandThreads, 1)
    band_terms_kernel(const __grid_constant__ BandProblem pr) {
  if (is_set(pr.skip) || is_set(pr.scattered)) return;
  extern __shared__ __align__(16) float pool[];
  const Place at(pr);
  const Chunk chunk(pool);
  int modes[kTiles];
#pragma unroll
  for (int n = 0; n < kTiles; ++n) modes[n] = pr.modes[at.tile_modes(pr) + n];
  const int mode = pr.modes[at.tile_modes(pr) + at.shifts];
  float half_ratio[kPairs], kappa[kPairs], kl_p = 0.0f;
#pragma unroll
  for (int n = 0; n < kPairs; ++n) {
    const int i = at.row(n % kTile), k = at.slot(n / kTile);
    const bool there = i < pr.rows && k < pr.last;
    half_ratio[n] = there ? 0.5f * served(pr.ratios[pr.pair(at.s, k, i)]) : 0.0f;
    kappa[n] = 0.0f;
  }
  stage_rows(pr, at, chunk);
  for (int first = 0; first < int(pr.classes); first += kChunk) {
    __syncthreads();
    stage(pr, first, chunk);
#pragma unroll 1
    for (int turn = 0; turn < kTurns; ++turn) {
      __syncthreads();
      const int cell = at.cell(turn) * kTile, c = cell + at.lane;
      if (first + cell >= int(pr.classes)) {
        continue;
      } else if (mode == kFarMode) {
        add_cell<kGrad, kFarMode>(at, c, chunk, half_ratio, kappa);
      } else if (mode == kDroppedMode) {
        add_cell<kGrad, kDroppedMode>(at, c, chunk, half_ratio, kappa);
      } else if (mode == kNearMode) {
        add_cell<kGrad, kNearMode>(at, c, chunk, half_ratio, kappa);
      }
    }
    __syncthreads();
    add_steps(modes, chunk);
    __syncthreads();
    kl_p += store<kGrad>(pr, at, first, chunk);
  }
  finish<kGrad>(pr, at, mode == kNearMode, kl_p, kappa, pool);
}

}  // namespace

void band_terms(const BandProblem& pr, cudaStream_t stream) {
  constexpr int kBytes = kTermsFloats * int(sizeof(float));
  static_assert(kBytes == kBandSharedBytes, "what the launcher asks the device for");
  const auto kernel = pr.want_grad ? band_terms_kernel<true> : band_terms_kernel<false>;
  allow_shared(kernel, kBytes);
  kernel<<<band_grid(pr), kBandThreads, kBytes, stream>>>(pr);
}

}  // namespace cuda
}  // namespace mcr
