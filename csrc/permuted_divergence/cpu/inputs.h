// The inputs of permuted_divergence as its row loops read them.
#pragma once

#include <atomic>

#include "cpu/tensors.h"
#include "dispatch.h"
#include "permuted_divergence/arguments.h"
#include "permuted_divergence/cpu/permutations.h"

namespace mcr {

// Up to this many classes a lane of the vector takes a whole row; beyond, the tiles of a lane team
// leave L1, and that costs more than a row team's padding and reductions. Measured.
constexpr int64_t kMaxLaneClasses = 48;

// Owns what a PermutedDivergenceProblem points to: converted, in the order of positions, padded or
// transposed for the team that runs it.
template <class T>
class PermutedDivergenceInputs {
 public:
  // Of arguments that have been checked.
  explicit PermutedDivergenceInputs(const PermutedDivergenceArguments& arguments)
      : M(arguments.contributions.size(0)),
        N(arguments.contributions.size(1)),
        C(arguments.contributions.size(2)),
        loops(cpu_kernels().permuted_divergence.of(T())),
        width(loops.width),
        traits_(traits_of(divergence_kind(arguments.divergence))) {
    read_options(arguments, problem);
    subsets_.assign(arguments.subsets.begin(), arguments.subsets.end());
    problem.subsets = subsets_.data();
    read_donors(arguments.order, arguments.donors);
    read_conditions(arguments.labels, arguments.present, arguments.sample_weight);
    const bool takes_lanes = sizeof(T) == sizeof(float) && C <= kMaxLaneClasses;
    problem.team = !takes_lanes    ? TeamKind::kRow
                   : problem.table ? TeamKind::kLanesGathered
                                   : TeamKind::kLanesShifted;
    lay_out(contiguous_as(arguments.contributions, scalar_type_of<T>()));
    lay_out_bias(arguments.bias);
    center();
    sum_weights();
  }

  bool lanes() const { return problem.team != TeamKind::kRow; }
  bool class_major() const { return problem.team == TeamKind::kLanesShifted; }
  int64_t row_at(int64_t position) const { return order_ ? order_[position] : position; }
  // Class-major: rows of one class, repeated past the last one.
  int64_t columns() const { return (2 * N + 2 * width - 1) / width * width; }
  // The sum of the pair weights of subset s.
  double weight_sum(int64_t s) const { return weight_sums_[s]; }

  const int64_t M, N, C;
  const PermutedDivergenceLoops<T>& loops;  // fetched once: a call never mixes instruction sets
  const int64_t width;
  PermutedDivergenceProblem<T> problem = {};

 private:
  void read_donors(const OptionalTensor& order, const OptionalTensor& donors) {
    problem.permutations = std::max<int64_t>(N - 1, 0);
    if (!donors || N == 0) return;
    kept_alive_.push_back(contiguous_as(*donors, ScalarType::Long));
    const Tensor d = kept_alive_.back();
    problem.own_donors = d.size(0) > 1;
    problem.permutations = d.size(1);
    if (!order) return read_table(d);
    kept_alive_.push_back(contiguous_as(*order, ScalarType::Long));
    order_ = data<const int64_t>(kept_alive_.back());
    STD_TORCH_CHECK(first_non_permutation(order_, 1, N) < 0,
                    "permutations.order must be a permutation of 0..", N - 1);
    problem.shifts = data<const int64_t>(d);
    for (int64_t k = 0; k < d.numel(); ++k) {
      STD_TORCH_CHECK(problem.shifts[k] >= 1 && problem.shifts[k] < N,
                      "permutations.shifts must be in 1..N-1 = 1..", N - 1, ", got ",
                      problem.shifts[k]);
    }
  }

  void read_table(const Tensor& donors) {
    STD_TORCH_CHECK(N < (int64_t{1} << 31), "permuted_divergence: more than 2^31 rows");
    const int64_t* from = data<const int64_t>(donors);
    // Whole vectors of indices: a lane past the last row reads row 0 and adds 0 to it.
    const int64_t padded = (N + width - 1) / width * width;
    const int64_t count = donors.size(0) * donors.size(1);
    table_.resize(count * padded);
    std::atomic<int64_t> wrong{-1};
    for_each_range(count, grain_of(kGrain, padded), [&](int64_t begin, int64_t end) {
      const int64_t found = first_non_permutation(from + begin * N, end - begin, N);
      // not thrown from here, where another thread may be at work
      if (found >= 0) wrong = begin + found;
      for (int64_t r = begin; r < end; ++r) {
        for (int64_t a = 0; a < N; ++a) table_[r * padded + a] = int32_t(from[r * N + a]);
        std::fill(&table_[r * padded] + N, &table_[r * padded] + padded, 0);
      }
    });
    STD_TORCH_CHECK(wrong < 0, "every row of permutations must be a permutation of 0..", N - 1,
                    ", but permutations[", wrong % donors.size(1), "] is ",
                    listed(from + wrong * N));
    problem.table_stride = padded;
    problem.table = table_.get();
  }

  // The first of a row's donors, for an error.
  std::string listed(const int64_t* donors) const {
    std::string text = "[";
    for (int64_t i = 0; i < std::min<int64_t>(N, 16); ++i) {
      text += (i ? ", " : "") + std::to_string(donors[i]);
    }
    return text + "]" + (N > 16 ? "..." : "");
  }

  void read_conditions(const OptionalTensor& labels, const OptionalTensor& present,
                       const OptionalTensor& sample_weight) {
    if (problem.exclude == Exclude::kSameLabel) {
      const Tensor codes = contiguous_as(*labels, ScalarType::Long);
      for (int64_t a = 0; a < N; ++a) labels_.push_back(data<const int64_t>(codes)[row_at(a)]);
      problem.labels = labels_.data();
    }
    if (present) {
      const Tensor marks = contiguous_as(*present, ScalarType::Bool);
      const bool* from = data<const bool>(marks);
      for (int64_t a = 0; a < N; ++a) {
        uint32_t bits = 0;
        for (int64_t m = 0; m < M; ++m) bits |= uint32_t(from[row_at(a) * M + m]) << m;
        present_.push_back(bits);
      }
      problem.present = present_.data();
    }
    if (sample_weight) {
      const Tensor weight = contiguous_as(*sample_weight, scalar_type_of<T>());
      const T* from = data<const T>(weight);
      for (int64_t a = 0; a < N; ++a) {
        row_weight_.push_back(from[row_at(a)]);
        STD_TORCH_CHECK(!(row_weight_[a] < 0), "sample_weight must not be negative, got ",
                        row_weight_[a]);
      }
      problem.row_weight = row_weight_.data();
    }
  }

  // How a number is laid out: within kFarthest and in powers of two for the divergence of
  // Bernoullis, NaN where it is not finite. The softmax's rows get there once their largest is
  // known.
  T in_units(T x) const {
    if (!traits_.binary) return x;
    return std::min(std::max(x, T(-kFarthest)), T(kFarthest)) * T(kLog2e) + T(0) * x;
  }

  // A row of the softmax: less its largest, and in units of log2.
  void center_row(T* row) const {
    T top = row[0];
    for (int64_t c = 1; c < C; ++c) top = std::max(top, row[c]);
    for (int64_t c = 0; c < C; ++c) {
      row[c] = std::max(row[c] - top, T(-kFarthest)) * T(kLog2e) + T(0) * row[c];
    }
  }

  void lay_out(const Tensor& contributions) {
    const T* from = data<const T>(contributions);
    problem.steps = lanes() ? C : (C + width - 1) / width;
    const int64_t padded = lanes() ? (C + 3) / 4 * 4 : problem.steps * width;
    problem.modality_stride = class_major() ? C * columns() : N * padded;
    problem.row_stride = padded;
    problem.step_stride = class_major() ? columns() : width;
    contributions_.resize(M * problem.modality_stride);
    problem.contributions = contributions_.get();
    if (N == 0) return;
    if (class_major()) {
      const int64_t wide = columns();
      for_each(M * C, grain_of(kGrain, wide), [&](int64_t mc) {
        const T* column = from + mc / C * N * C + mc % C;
        T* to = &contributions_[mc * wide];
        for (int64_t a = 0; a < N; ++a) to[a] = in_units(column[row_at(a) * C]);
        for (int64_t a = N; a < wide; ++a) to[a] = to[a - N];
      });
      return;
    }
    for_each(M * N, grain_of(kGrain, padded), [&](int64_t mn) {
      const T* row = from + (mn / N * N + row_at(mn % N)) * C;
      T* to = &contributions_[mn * padded];
      for (int64_t c = 0; c < C; ++c) to[c] = in_units(row[c]);
      if (traits_.softmax && lanes()) center_row(to);
      // For the softmax the padding is no class (lay_out_bias); it is not to be the largest either.
      std::fill(to + C, to + padded, traits_.softmax ? to[0] : T(0));
    });
  }

  void lay_out_bias(const OptionalTensor& bias) {
    bias_.resize(problem.row_stride);
    problem.bias = bias_.get();
    std::fill_n(bias_.get(), C, T(0));
    if (bias) {
      const Tensor b = contiguous_as(*bias, scalar_type_of<T>());
      for (int64_t c = 0; c < C; ++c) bias_[c] = in_units(data<const T>(b)[c]);
      if (traits_.softmax && C > 0) center_row(bias_.get());
    }
    // The padding is no class of the softmax.
    std::fill(bias_.get() + C, bias_.get() + problem.row_stride,
              traits_.softmax ? T(kNoClass) : T(0));
  }

  void center() {
    if (!traits_.softmax || problem.team == TeamKind::kLanesGathered || N == 0) return;
    powers_.resize(M * problem.modality_stride);
    problem.powers = powers_.get();
    const int64_t blocks = class_major() ? M * columns() / width : M * N;
    for_each_range(blocks, grain_of(kGrain, problem.steps * width),
                   [&](int64_t begin, int64_t end) {
                     loops.center(problem, begin, end, contributions_.get(), powers_.get());
                   });
  }

  void sum_weights() {
    double all_rows = double(N);
    if (problem.row_weight) {
      all_rows = 0;
      for (const T w : row_weight_) all_rows += double(w);
    }
    const int64_t K = problem.permutations;
    weight_sums_.assign(subsets_.size(), all_rows * double(K));
    if (!problem.may_drop) return;
    for (size_t s = 0; s < subsets_.size(); ++s) {
      // Row sums first: their order does not depend on who adds them up.
      std::vector<double> row_sums(N);
      for_each(N, grain_of(kGrain, std::max<int64_t>(1, K)), [&](int64_t a) {
        int64_t kept = 0;
        for (int64_t k = 0; k < K; ++k) kept += problem.keeps(subsets_[s], k, a);
        const double weight = problem.row_weight ? double(row_weight_[a]) : 1.0;
        row_sums[a] = kept == 0 ? 0.0 : double(kept) * weight;
      });
      weight_sums_[s] = 0;
      for (const double sum : row_sums) weight_sums_[s] += sum;
    }
  }

  const DivergenceTraits traits_;
  std::vector<uint32_t> subsets_, present_;
  std::vector<int64_t> labels_;
  std::vector<T> row_weight_;
  std::vector<double> weight_sums_;
  std::vector<Tensor> kept_alive_;
  const int64_t* order_ = nullptr;
  Buffer<int32_t> table_;
  Buffer<T> contributions_, powers_, bias_;
};

}  // namespace mcr
