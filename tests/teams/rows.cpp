// The row algorithms of the CUDA kernels on teams of the host: a lane of the GPU's team is an
// element of a vector here, so every step is taken by all lanes at once. Compiled once for each
// team, with MCR_VEC_BYTES for its lanes.
#include <algorithm>
#include <vector>

#include "permuted_divergence/far.h"
#include "row_divergence/held.h"
#include "teams.h"

namespace mcr {
namespace MCR_ISA {
namespace {

// As DeviceTeam: the far terms and the second tile of logarithms are for the CPU.
struct Team : RowTeam<float> {
  static constexpr bool kFarTerms = false, kTilesAreMemory = false;

  static void load_padded(const float* row, int64_t steps, float* tile) {
    constexpr int W = kWidth<float>;
    for (int64_t n = 0; n < steps; ++n) store(tile + n * W, load(row + n * W));
  }
  static const float* stage(const float* tile, int64_t) { return tile; }
  static void add_staged(float* row, int64_t classes, const float* tile, int64_t steps,
                         float factor) {
    add_to_row<RowTeam<float>>(row, classes, tile, steps, factor);
  }
  static void store_record(FarRecord<float>* to, float ratio, float scale, float offset) {
    to->ratio = ratio;
    to->gradient[0] = scale;
    to->gradient[1] = offset;
  }
  static void load_record(const FarRecord<float>* from, float& ratio, float& scale, float& offset) {
    ratio = from->ratio;
    scale = from->gradient[0];
    offset = from->gradient[1];
  }
  template <class F>
  static int64_t first_of(int64_t first, int64_t last, const F& holds) {
    while (first < last && !holds(first)) ++first;
    return first < last ? first : last;
  }
  static bool all(bool x) { return x; }
  static int32_t opaque(int32_t x) { return x; }
  template <class X>
  static X reciprocal(X x) {
    return 1.0f / x;
  }
  static float quick_log2(float x) { return scalar_log2(x); }
  static Vec<float> quick_log2(Vec<float> x) { return log2(x); }
};

// The parts of a row's pairs one after the other, the first one last.
struct Parts {
  std::vector<std::vector<float>>& left;  // by the other parts, in the order of the calls
  size_t& call;
  int part, parts;
  bool live;

  bool leads() const { return part == 0 && live; }
  void add_tile(float* tile, int64_t steps) const { add_all(tile, steps * kWidth<float>); }
  void add(float& x) const { add_all(&x, 1); }
  void add(bool& x) const {
    float y = x;
    add_all(&y, 1);
    x = y != 0;
  }
  void add(double& x) const {
    float y = 0;
    if (part > 0) y = float(x);
    add_all(&y, 1);
    if (part == 0) x += y;
  }

 private:
  void add_all(float* x, int64_t count) const {
    for (int64_t n = 0; n < count; ++n, ++call) {
      if (part > 0) left[part].push_back(x[n]);
      for (int p = 1; part == 0 && p < parts; ++p) x[n] += left[p][call];
    }
  }
};

// Calls f with each part of a row's pairs.
template <class F>
void in_parts(int parts, bool live, const F& f) {
  std::vector<std::vector<float>> left(parts);
  for (int part = parts - 1; part >= 0; --part) {
    size_t call = 0;
    f(Parts{left, call, part, parts, live});
  }
}

// Tiles full of NaN: what a row does not write itself must not show.
std::vector<float> dirty(int64_t count) { return std::vector<float>(count, NAN); }

template <class D, bool kGrad>
void run(const SidesProblem<float>& pr, int count) {
  constexpr int W = kWidth<float>;
  for (int64_t r = 0; r <= pr.rows; ++r) {  // a team beyond the last row runs along
    const int64_t i = r < pr.rows ? r : 0;
    in_parts(count, r < pr.rows && pr.row_has_pairs(r), [&](const Parts& parts) {
      std::vector<float> memory = dirty(SideTiles<float>::kCount * pr.steps * W);
      own_side_of<Team, D, kGrad>(pr, i, pr.steps, memory.data(), parts);
    });
    for (int m = 0; kGrad && m < pr.modalities && r == pr.rows; ++m) {
      for (int64_t j = 0; j < pr.rows; ++j) {
        in_parts(count, pr.donor_has_pairs(m, j), [&](const Parts& parts) {
          std::vector<float> memory = dirty(4 * pr.steps * W);
          donor_side<Team, D>(pr, m, j, pr.steps, memory.data(), parts);
        });
      }
    }
  }
}

template <class D>
void run_chunks(SidesProblem<float> pr, int64_t chunk, int64_t spare_steps, int parts) {
  constexpr int W = kWidth<float>;
  pr.steps = (pr.classes + W - 1) / W + spare_steps;
  std::vector<PairNumbers<float>> pairs(pr.num_subsets * pr.rows * chunk, {NAN, NAN});
  std::vector<float> clean = dirty(pr.rows * pr.classes), clean_lse = dirty(pr.rows);
  pr.pairs = pairs.data();
  pr.clean = clean.data();
  pr.clean_lse = clean_lse.data();
  for (pr.first = 0; pr.first < pr.permutations; pr.first = pr.last) {
    pr.last = pr.first + chunk < pr.permutations ? pr.first + chunk : pr.permutations;
    if (pr.want_grad) {
      run<D, true>(pr, parts);
    } else {
      run<D, false>(pr, parts);
    }
  }
}

template <bool kGrad, bool kTable>
void run_far(const FarProblem<float>& pr, int count) {
  constexpr int W = kWidth<float>;
  for (int64_t r = 0; r <= pr.rows; ++r) {
    const int64_t i = r < pr.rows ? r : 0;
    in_parts(count, r < pr.rows, [&](const Parts& parts) {
      std::vector<float> memory = dirty(FarTiles<float>::kCount * pr.steps * W);
      far_own_side_of<Team, kGrad, kTable>(pr, i, pr.steps, memory.data(), parts);
    });
  }
  for (int64_t j = 0; kGrad && j < pr.rows; ++j) {
    in_parts(count, true, [&](const Parts& parts) {
      std::vector<float> memory = dirty(6 * pr.steps * W);
      far_donor_side<Team, kTable>(pr, j, pr.steps, memory.data(), parts);
    });
  }
  run<Jsd, kGrad>(pr, count);
}

struct FloatRows {
  const RowDivergenceProblem<float>& pr;

  void perturbed(int64_t r, int64_t steps, float fill, float limit, float* tile) const {
    read(pr.perturbed + r * pr.classes, steps, fill, limit, tile);
  }
  void clean(int64_t i, int64_t steps, float fill, float limit, float* tile) const {
    read(pr.clean + i * pr.classes, steps, fill, limit, tile);
  }

 private:
  void read(const float* row, int64_t steps, float fill, float limit, float* tile) const {
    constexpr int W = kWidth<float>;
    for (int64_t n = 0; n < steps; ++n) {
      store(tile + n * W, Team::load_step(row, n, pr.classes, fill));
    }
    for (int64_t c = 0; c < pr.classes; ++c) {
      tile[c] = std::min(std::max(tile[c], -limit), limit) + 0 * tile[c];
    }
  }
};

template <class D, bool kGrad, bool kAhead>
void run_held(const RowDivergenceProblem<float>& pr, int64_t rows, int count, double* sums) {
  constexpr int W = kWidth<float>;
  for (int64_t r = 0; r <= rows; ++r) {  // a team beyond the last row runs along
    in_parts(count, r < rows, [&](const Parts& parts) {
      std::vector<float> memory = dirty(HeldTiles<float, kAhead>::kCount * pr.steps * W);
      double value = 0, weight = 0;
      hold_rows<Team, D, kGrad, kAhead>(pr, FloatRows{pr}, r < rows ? r : 0, pr.steps,
                                        memory.data(), value, weight, parts);
      if (!parts.leads()) return;
      sums[0] += value;
      sums[1] += weight;
    });
  }
}

// In several parts with the next row read ahead, else without.
template <class D>
void run_held(RowDivergenceProblem<float> pr, int64_t rows, int64_t spare_steps, int parts,
              double* sums) {
  pr.steps = (pr.classes + kWidth<float> - 1) / kWidth<float> + spare_steps;
  const auto f = parts > 1 ? (pr.want_grad ? run_held<D, true, true> : run_held<D, false, true>)
                           : (pr.want_grad ? run_held<D, true, false> : run_held<D, false, false>);
  f(pr, rows, parts, sums);
}

}  // namespace

void hold(const RowDivergenceProblem<float>& pr, int64_t rows, int64_t spare_steps, int parts,
          double* sums) {
  with_divergence(pr.divergence, [&](auto divergence) {
    run_held<decltype(divergence)>(pr, rows, spare_steps, parts, sums);
  });
}

void pull(const SidesProblem<float>& pr, int64_t chunk, int64_t spare_steps, int parts) {
  with_divergence(pr.divergence, [&](auto divergence) {
    run_chunks<decltype(divergence)>(pr, chunk, spare_steps, parts);
  });
}

void pull_far(FarProblem<float> pr, int64_t chunk, int parts) {
  constexpr int W = kWidth<float>;
  pr.steps = pr.row_stride / W;
  std::vector<FarRecord<float>> records(pr.num_subsets * pr.rows * chunk, {NAN, {{NAN, NAN}}, NAN});
  std::vector<float> clean = dirty(pr.rows * pr.classes), clean_lse = dirty(pr.rows);
  pr.records = records.data();
  pr.clean = clean.data();
  pr.clean_lse = clean_lse.data();
  for (int m = 0; m < 2; ++m) pr.subset_of[m] = -1;
  for (int s = 0; s < pr.num_subsets; ++s) pr.subset_of[pr.taken(s)] = s;
  for (pr.first = 0; pr.first < pr.permutations; pr.first = pr.last) {
    pr.last = pr.first + chunk < pr.permutations ? pr.first + chunk : pr.permutations;
    const auto f = pr.want_grad ? (pr.table ? run_far<true, true> : run_far<true, false>)
                                : (pr.table ? run_far<false, true> : run_far<false, false>);
    f(pr, parts);
  }
}

}  // namespace MCR_ISA
}  // namespace mcr
