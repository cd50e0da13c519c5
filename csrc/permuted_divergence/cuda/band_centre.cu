// The last kernel of a band (band.h): what is linear in a class of a pair, and the gradients.
#include "cuda/blocks.h"
#include "permuted_divergence/cuda/band.h"

namespace mcr {
namespace cuda {
namespace {

// Blocks that 32 rows in a circle are in: the last one may be short.
constexpr int kGivers = 3;

// In shared memory: e of the rows' donors, g of those that the rows give to, r kappa of either.
struct Sides {
  float *e, *g, *to_rows, *to_donors;  // the latter two [shift, row]
  float *shares, *own_shares;          // of the rows that g is of, and of the block's rows
  int* places;                         // [kGivers, row] block and place in `given`, or -1
  int* rows;                           // where the block's rows are in the gradients
  __device__ explicit Sides(float* pool)
      : e(pool),
        g(e + kOfDonors),
        to_rows(g + kOfDonors),
        to_donors(to_rows + kBandRows * kBandRows),
        shares(to_donors + kBandRows * kBandRows),
        own_shares(shares + kBandDonors + 1),
        places(reinterpret_cast<int*>(own_shares + kBandRows)),
        rows(places + kGivers * kBandRows) {}
};
constexpr int kCentreFloats =
    2 * kOfDonors + kBandDonors + 1 + (2 * kBandRows + kGivers + 2) * kBandRows;

// A block has 32 rows and a chunk of classes, and the subsets and bands one after the other.
struct Band {
  int first_row, first_class, first_slot, part, s, m;  // part: [band, subset]
  int donors, receivers;  // the first of the 63 rows that the block takes from, and gives to

  __device__ Band(const BandProblem& pr, int band, int subset)
      : first_row(int(blockIdx.x) * kBandRows),
        first_class(int(blockIdx.y) * kChunk),
        first_slot(int(pr.first) + band * kBandRows),
        part(band * pr.num_subsets + subset),
        s(subset),
        m(pr.taken(subset)) {
    const int64_t shift = int64_t(pr.first_shift()) + first_slot;
    donors = int((first_row + shift) % pr.rows);
    const int64_t i = (first_row - shift - (kBandRows - 1)) % pr.rows;
    receivers = int(i < 0 ? i + pr.rows : i);
  }
};

// Where the donor in row threadIdx.x of the block is among what other blocks left of theirs.
__device__ void find_places(const BandProblem& pr, const Band& at, const Sides& x) {
  const int row = int(threadIdx.x), N = int(pr.rows);
  if (row >= kBandRows) return;
  int i = in_circle(at.receivers + row, N);
  int ahead = kBandRows;  // shifts that are still to come, the last of them first
  for (int n = 0; n < kGivers; ++n) {
    const int block = i / kBandRows, end = (block + 1) * kBandRows;
    const int donor = i % kBandRows + ahead - 1;  // of the block's rows, row i's of that shift
    x.places[n * kBandRows + row] = ahead > 0 ? block * kBandDonors + donor : -1;
    ahead -= (end < N ? end : N) - i;
    i = end < N ? end : 0;
  }
}

__device__ void stage_numbers(const BandProblem& pr, const Band& at, const Sides& x) {
  const int N = int(pr.rows);
  if (threadIdx.x < kBandDonors) {
    x.shares[threadIdx.x] = share_of(pr, in_circle(at.receivers + int(threadIdx.x), N));
  }
#pragma unroll
  for (int n = int(threadIdx.x); n < kBandRows * kBandRows; n += kBandThreads) {
    const int shift = n / kBandRows, row = at.first_row + n % kBandRows;
    const bool is_pair = at.first_slot + shift < pr.last && row < N;
    const int i = in_circle(at.receivers + n % kBandRows + kBandRows - 1 - shift, N);
    const int64_t slot = at.first_slot - pr.first + shift;
    const float* from = pr.pull + (slot * pr.num_subsets + at.s) * pr.rows;
    x.to_rows[n] = is_pair ? from[row] : 0.0f;
    x.to_donors[n] = is_pair ? from[i] : 0.0f;
  }
}

__device__ __forceinline__ void stage_powers(const BandProblem& pr, const Band& at,
                                             const Sides& x) {
  const int N = int(pr.rows);
  for_quads(kBandDonors, [&](int n, int c) {
    const int from = at.first_class + c;
    float4 e = all_of(0.0f), g = e;
    if (from < pr.row_stride) {
      const int j = in_circle(at.donors + n, N), i = in_circle(at.receivers + n, N);
      e = quad(pr.powers + (pr.offset(at.m, j) + from));
      g = quad(pr.powers + (pr.offset(1 - at.m, i) + from)) * quad(pr.bias_powers + from);
    }
    put(x.e + row_at(n) + c, e);
    put(x.g + row_at(n) + c, g * all_of(x.shares[n]));
  });
}

// Of a class and eight rows: what is added to each as a row, as a donor, and to its clean row.
struct Sums {
  float own[kTile], given[kTile], logs[kTile];
};

// sums[r] += numbers[n, r] x[kBack ? r - n : r + n] over a tile's shifts n; x is at the first of
// the 15 rows that the tile meets.
template <bool kBack>
__device__ __forceinline__ void add_tile(const float* numbers, const float* x,
                                         float (&sums)[kTile]) {
  float met[kTileDonors];
#pragma unroll
  for (int d = 0; d < kTileDonors; ++d) met[d] = x[row_at(d)];
#pragma unroll
  for (int n = 0; n < kTile; ++n) {
    alignas(16) float factors[kTile];
#pragma unroll
    for (int r = 0; r < kTile; r += 4) put(factors + r, quad(numbers + n * kBandRows + r));
#pragma unroll
    for (int r = 0; r < kTile; ++r) {
      sums[r] = fmaf(factors[r], met[kBack ? kTile - 1 + r - n : r + n], sums[r]);
    }
  }
}

// own += sum r kappa e, given += sum r kappa g over all shifts of the band.
__device__ __forceinline__ void add_linear(const Sides& x, int tile, int c, Sums& sums) {
#pragma unroll 1
  for (int shifts = 0; shifts < kTiles; ++shifts) {
    const int first = shifts * kTile * kBandRows + tile * kTile;
    // row r takes from donor r + n by shift n, and gives to receiver 31 + r - n
    add_tile<false>(x.to_rows + first, x.e + row_at((tile + shifts) * kTile) + c, sums.own);
    add_tile<true>(x.to_donors + first, x.g + row_at((tile - shifts + kTiles - 1) * kTile) + c,
                   sums.given);
  }
}

// What the second kernel left, of the rows and, by each block that it gave to, of the donors.
// Behind the last row the last one is read again: nothing is stored there.
__device__ __forceinline__ void add_terms(const BandProblem& pr, const Band& at, const Sides& x,
                                          int tile, int c, Sums& sums) {
  const uint32_t size = uint32_t(pr.row_stride), first = at.first_class + c;
  const float* given = pr.given + (uint32_t(at.part) * gridDim.x * kBandDonors * size + first);
#pragma unroll
  for (int r = 0; r < kTile; ++r) {
    const int n = tile * kTile + r, row = at.first_row + n, N = int(pr.rows);
    const int from = at.part * N + (row < N ? row : N - 1);
    const float kl_p = pr.kl_p[from], log = pr.logs[uint32_t(from) * size + first];
    sums.logs[r] += kl_p == INFINITY ? 0.0f : log - kl_p;
    sums.own[r] = fmaf(-2.0f, pr.own[uint32_t(from) * size + first], sums.own[r]);
  }
#pragma unroll 1
  for (int g = 0; g < kGivers; ++g) {
#pragma unroll
    for (int r = 0; r < kTile; ++r) {
      const int place = x.places[g * kBandRows + tile * kTile + r];
      if (place >= 0) sums.given[r] = fmaf(-2.0f, given[uint32_t(place) * size], sums.given[r]);
    }
  }
}

// What a class of eight rows gets altogether.
struct Gradients {
  float of[2][kTile], bias[kTile];
};

// The gradients of one subset, routed. Behind the last row are others, or memory that was taken for
// this: nothing is stored there.
__device__ __forceinline__ void route(const BandProblem& pr, const Sides& x, int s, int tile, int c,
                                      const Sums& sums, Gradients& to) {
  const int m = pr.taken(s), first = int(blockIdx.x) * kBandRows + tile * kTile;
  const float* powers = pr.powers + (pr.offset(m, first) + c);
  const float* others = pr.powers + (pr.offset(1 - m, first) + c);
  const float factor = pr.factors[s] * float(MCR_ISA::kHalfLn2), bias = pr.bias_powers[c];
  const float head = float(pr.head(s)), clean_head = float(pr.clean_head(s));
  const float clean = float(pr.clean_route(s, m)), other_clean = float(pr.clean_route(s, 1 - m));
#pragma unroll
  for (int r = 0; r < kTile; ++r) {
    const float a = factor * powers[r * int(pr.row_stride)];
    const float g = others[r * int(pr.row_stride)] * bias * x.own_shares[tile * kTile + r];
    const float u = factor * g * sums.own[r], v = g * a * sums.logs[r];
    const float taken = fmaf(clean, v, a * sums.given[r]);
    const float kept = fmaf(other_clean, v, float(pr.outsider) * u);
    to.of[0][r] += m == 0 ? taken : kept;
    to.of[1][r] += m == 0 ? kept : taken;
    to.bias[r] += fmaf(head, u, clean_head * v);
  }
}

// Added to what is there, or where the first bands come first with what poisons it.
__device__ __forceinline__ void store(const BandProblem& pr, const Sides& x, int tile, int c,
                                      const Gradients& from) {
  const uint32_t C = uint32_t(pr.classes), other = uint32_t(pr.rows) * C;
  const bool first = pr.first == 0;
  const float poison = first && pr.poison ? *pr.poison : 0.0f;
  const auto add = [&](float* to, float x) { *to = x + (first ? poison : *to); };
#pragma unroll
  for (int r = 0; r < kTile; ++r) {
    const int n = tile * kTile + r, row = int(blockIdx.x) * kBandRows + n;
    if (row >= int(pr.rows)) return;
    const uint32_t to = uint32_t(x.rows[n]) * C + c;
    add(pr.grad + to, from.of[0][r]);
    add(pr.grad + to + other, from.of[1][r]);
    if (pr.grad_bias_rows) add(pr.grad_bias_rows + uint32_t(row) * C + c, from.bias[r]);
  }
}

__global__ void __launch_bounds__(kBandThreads, 2)
    band_centre_kernel(const __grid_constant__ BandProblem pr, int bands) {
  const bool scattered = is_set(pr.scattered);
  if (is_set(pr.skip) || (scattered && pr.first != 0)) return;
  extern __shared__ __align__(16) float pool[];
  const Sides sides(pool);
  const int lane = int(threadIdx.x) % kTile, tile = int(threadIdx.x) / kTile % kTiles;
  const int c = int(threadIdx.x) / 32 * kTile + lane;  // of the chunk
  const int of_row = int(blockIdx.y) * kChunk + c, first = int(blockIdx.x) * kBandRows;
  if (threadIdx.x < kBandRows) {
    const int row = in_circle(first + int(threadIdx.x), int(pr.rows));
    sides.own_shares[threadIdx.x] = share_of(pr, row);
    sides.rows[threadIdx.x] = int(pr.order ? pr.order[row] : row);
  }
  Gradients all = {};
  for (int s = 0; s < pr.num_subsets && !scattered; ++s) {
    Sums sums = {};
    for (int band = 0; band < bands; ++band) {
      const Band at(pr, band, s);
      __syncthreads();
      stage_numbers(pr, at, sides);
      find_places(pr, at, sides);
      __syncthreads();
      stage_powers(pr, at, sides);
      __syncthreads();
      if (of_row >= pr.classes) continue;
      add_linear(sides, tile, c, sums);
      add_terms(pr, at, sides, tile, c, sums);
    }
    if (of_row >= pr.classes) continue;
    route(pr, sides, s, tile, of_row, sums, all);
  }
  __syncthreads();  // where there is no subset to go through
  if (of_row < pr.classes) store(pr, sides, tile, of_row, all);
}

// The values of the rows, none of them below 0 but for its rounding.
__global__ void __launch_bounds__(kBlockThreads)
    band_values_kernel(const __grid_constant__ BandProblem pr, int bands) {
  if (is_set(pr.skip) || is_set(pr.scattered)) return;
  const int64_t count = pr.num_subsets * pr.rows;
  for (int64_t n = first_index(); n < count; n += index_step()) {
    double value = 0;
    for (int band = 0; band < bands; ++band) value += pr.band_values[band * count + n];
    if (value < 0) value = 0;
    pr.row_values[n] += value * double(pr.factors[n / pr.rows]) * MCR_ISA::kHalfLn2;
  }
}

}  // namespace

void band_centre(const BandProblem& pr, cudaStream_t stream) {
  const dim3 grid = band_grid(pr);
  const int bands = int(grid.y);
  band_values_kernel<<<blocks_for(pr.num_subsets * pr.rows), kBlockThreads, 0, stream>>>(pr, bands);
  if (!pr.want_grad) return;
  const dim3 chunks(grid.x, unsigned((pr.classes + kChunk - 1) / kChunk));
  constexpr int kBytes = kCentreFloats * int(sizeof(float));
  band_centre_kernel<<<chunks, kBandThreads, kBytes, stream>>>(pr, bands);
}

}  // namespace cuda
}  // namespace mcr
