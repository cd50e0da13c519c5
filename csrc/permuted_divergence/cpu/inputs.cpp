// Lays the inputs of permuted_divergence out for its row loops.
#include "permuted_divergence/cpu/inputs.h"

#include <algorithm>
#include <atomic>

#include "permuted_divergence/cpu/permutations.h"

namespace mcr {
namespace {

constexpr int64_t kGrain = 1 << 14;  // elements: about 10 us of one core

// Up to this many classes a lane of the vector takes a whole row; beyond, the tiles of a lane team
// leave L1, and that costs more than a row team's padding and reductions. Measured.
constexpr int64_t kMaxLaneClasses = 48;

// The first of the numbers, for an error.
std::string listed(const int64_t* numbers, int64_t count) {
  std::string text = "[";
  for (int64_t i = 0; i < std::min<int64_t>(count, 16); ++i) {
    text += (i ? ", " : "") + std::to_string(numbers[i]);
  }
  return text + "]" + (count > 16 ? "..." : "");
}

constexpr double kLog2e = 1.44269504088896340736;
constexpr double kFarthest = 1e20;  // as jsd.h

// How a number is laid out: within kFarthest and in powers of two for the divergence of Bernoullis,
// NaN where it is not finite. The softmax's rows get there once their largest is known.
template <class T>
struct Units {
  bool saturates;

  explicit Units(DivergenceKind divergence) : saturates(traits_of(divergence).binary) {}
  T operator()(T x) const {
    if (!saturates) return x;
    return std::min(std::max(x, T(-kFarthest)), T(kFarthest)) * T(kLog2e) + T(0) * x;
  }
};

// A row of the softmax: less its largest, and in units of log2.
template <class T>
void center_row(T* row, int64_t classes) {
  T top = row[0];
  for (int64_t c = 1; c < classes; ++c) top = std::max(top, row[c]);
  for (int64_t c = 0; c < classes; ++c) {
    row[c] = std::max(row[c] - top, T(-kFarthest)) * T(kLog2e) + T(0) * row[c];
  }
}

}  // namespace

template <class T>
PermutedDivergenceInputs<T>::PermutedDivergenceInputs(const PermutedDivergenceArguments& arguments)
    : M_(arguments.contributions.size(0)),
      N_(arguments.contributions.size(1)),
      C_(arguments.contributions.size(2)),
      kernels_(cpu_kernels().permuted_divergence) {
  read_options(arguments, problem_);
  subsets_.assign(arguments.subsets.begin(), arguments.subsets.end());
  problem_.subsets = subsets_.data();
  read_donors(arguments.order, arguments.donors);
  read_conditions(arguments.labels, arguments.present, arguments.sample_weight);
  choose_team();
  lay_out(arguments.contributions);
  lay_out_bias(arguments.bias);
  center();
  sum_weights();
}

template <class T>
void PermutedDivergenceInputs<T>::read_donors(const OptionalTensor& order,
                                              const OptionalTensor& donors) {
  problem_.permutations = std::max<int64_t>(N_ - 1, 0);
  if (!donors || N_ == 0) return;
  const Tensor d = contiguous_as(*donors, ScalarType::Long);
  const int64_t* from = d.const_data_ptr<int64_t>();
  problem_.own_donors = d.size(0) > 1;
  problem_.permutations = d.size(1);
  kept_alive_.push_back(d);
  if (order) {
    kept_alive_.push_back(contiguous_as(*order, ScalarType::Long));
    order_ = kept_alive_.back().template const_data_ptr<int64_t>();
    STD_TORCH_CHECK(first_non_permutation(order_, 1, N_) < 0,
                    "permutations.order must be a permutation of 0..", N_ - 1);
    for (int64_t k = 0; k < d.numel(); ++k) {
      STD_TORCH_CHECK(from[k] >= 1 && from[k] < N_, "permutations.shifts must be in 1..N-1 = 1..",
                      N_ - 1, ", got ", from[k]);
    }
    problem_.shifts = from;
    return;
  }
  read_table(d);
}

template <class T>
void PermutedDivergenceInputs<T>::read_table(const Tensor& donors) {
  STD_TORCH_CHECK(N_ < (int64_t{1} << 31), "permuted_divergence: more than 2^31 rows");
  const int64_t* from = donors.const_data_ptr<int64_t>();
  // Whole vectors of indices: a lane past the last row reads row 0 and adds 0 to it.
  const int64_t W = width(), padded = (N_ + W - 1) / W * W;
  const int64_t count = donors.size(0) * donors.size(1);
  table_.resize(count * padded);
  std::atomic<int64_t> wrong{-1};
  for_each_range(count, std::max<int64_t>(1, kGrain / padded), [&](int64_t begin, int64_t end) {
    const int64_t found = first_non_permutation(from + begin * N_, end - begin, N_);
    // not thrown from here, where another thread may be at work
    if (found >= 0) wrong = begin + found;
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t a = 0; a < N_; ++a) table_[r * padded + a] = int32_t(from[r * N_ + a]);
      std::fill(&table_[r * padded] + N_, &table_[r * padded] + padded, 0);
    }
  });
  STD_TORCH_CHECK(wrong < 0, "every row of permutations must be a permutation of 0..", N_ - 1,
                  ", but permutations[", wrong % donors.size(1), "] is ",
                  listed(from + wrong * N_, N_));
  problem_.table_stride = padded;
  problem_.table = table_.get();
}

template <class T>
void PermutedDivergenceInputs<T>::read_conditions(const OptionalTensor& labels,
                                                  const OptionalTensor& present,
                                                  const OptionalTensor& sample_weight) {
  if (problem_.exclude == Exclude::kSameLabel) {
    const Tensor codes = contiguous_as(*labels, ScalarType::Long);
    const int64_t* from = codes.const_data_ptr<int64_t>();
    for (int64_t a = 0; a < N_; ++a) labels_.push_back(from[row_at(a)]);
    problem_.labels = labels_.data();
  }
  if (present) {
    const Tensor marks = contiguous_as(*present, ScalarType::Bool);
    const bool* from = marks.const_data_ptr<bool>();
    for (int64_t a = 0; a < N_; ++a) {
      uint32_t bits = 0;
      for (int64_t m = 0; m < M_; ++m) bits |= uint32_t(from[row_at(a) * M_ + m]) << m;
      present_.push_back(bits);
    }
    problem_.present = present_.data();
  }
  if (sample_weight) {
    const Tensor weight = contiguous_as(*sample_weight, scalar_type_of<T>());
    const T* from = weight.const_data_ptr<T>();
    for (int64_t a = 0; a < N_; ++a) {
      row_weight_.push_back(from[row_at(a)]);
      STD_TORCH_CHECK(!(row_weight_[a] < 0), "sample_weight must not be negative, got ",
                      row_weight_[a]);
    }
    problem_.row_weight = row_weight_.data();
  }
}

template <class T>
void PermutedDivergenceInputs<T>::choose_team() {
  problem_.team = TeamKind::kRow;
  if (sizeof(T) != sizeof(float) || C_ > kMaxLaneClasses) return;
  problem_.team = problem_.table ? TeamKind::kLanesGathered : TeamKind::kLanesShifted;
}

template <class T>
void PermutedDivergenceInputs<T>::lay_out(const Tensor& contributions) {
  const Tensor source = contiguous_as(contributions, scalar_type_of<T>());
  const Units<T> units(problem_.divergence);
  const bool softmax = traits_of(problem_.divergence).softmax;
  const bool centered = softmax && problem_.team == TeamKind::kLanesGathered;
  const T* from = source.const_data_ptr<T>();
  const int64_t W = width();
  problem_.steps = lanes() ? C_ : (C_ + W - 1) / W;
  columns_ = (2 * N_ + 2 * W - 1) / W * W;
  const int64_t padded = lanes() ? (C_ + 3) / 4 * 4 : problem_.steps * W;
  problem_.modality_stride = class_major() ? C_ * columns_ : N_ * padded;
  problem_.row_stride = padded;
  problem_.step_stride = class_major() ? columns_ : W;
  contributions_.resize(M_ * problem_.modality_stride);
  problem_.contributions = contributions_.get();
  if (N_ == 0) return;

  if (class_major()) {
    for_each_range(M_ * C_, std::max<int64_t>(1, kGrain / columns_),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t mc = begin; mc < end; ++mc) {
                       const T* column = from + mc / C_ * N_ * C_ + mc % C_;
                       T* to = &contributions_[mc * columns_];
                       for (int64_t a = 0; a < N_; ++a) to[a] = units(column[row_at(a) * C_]);
                       for (int64_t a = N_; a < columns_; ++a) to[a] = to[a - N_];
                     }
                   });
  } else {
    for_each_range(M_ * N_, std::max<int64_t>(1, kGrain / padded), [&](int64_t begin, int64_t end) {
      for (int64_t mn = begin; mn < end; ++mn) {
        const T* row = from + (mn / N_ * N_ + row_at(mn % N_)) * C_;
        T* to = &contributions_[mn * padded];
        for (int64_t c = 0; c < C_; ++c) to[c] = units(row[c]);
        if (centered) center_row(to, C_);
        // For the softmax the padding is no class (lay_out_bias); it is not to be the largest
        // either.
        std::fill(to + C_, to + padded, softmax ? to[0] : T(0));
      }
    });
  }
}

template <class T>
void PermutedDivergenceInputs<T>::lay_out_bias(const OptionalTensor& bias) {
  const int64_t padded = problem_.row_stride;
  bias_.resize(padded);
  problem_.bias = bias_.get();
  std::fill(bias_.get(), bias_.get() + padded, T(0));
  if (bias) {
    const Tensor b = contiguous_as(*bias, scalar_type_of<T>());
    const Units<T> units(problem_.divergence);
    for (int64_t c = 0; c < C_; ++c) bias_[c] = units(b.const_data_ptr<T>()[c]);
    if (traits_of(problem_.divergence).softmax && C_ > 0) center_row(bias_.get(), C_);
  }
  // The padding is no class of the softmax.
  if (traits_of(problem_.divergence).softmax) {
    std::fill(bias_.get() + C_, bias_.get() + padded, T(-1e30));
  }
}

template <class T>
void PermutedDivergenceInputs<T>::center() {
  const bool used =
      traits_of(problem_.divergence).softmax && problem_.team != TeamKind::kLanesGathered;
  if (!used || N_ == 0) return;
  powers_.resize(M_ * problem_.modality_stride);
  problem_.powers = powers_.get();
  const int64_t blocks = class_major() ? M_ * columns_ / width() : M_ * N_;
  for_each_range(
      blocks, std::max<int64_t>(1, kGrain / (problem_.steps * width())),
      [&](int64_t begin, int64_t end) {
        if constexpr (sizeof(T) == sizeof(float)) {
          kernels_.center_float(problem_, begin, end, contributions_.get(), powers_.get());
        } else {
          kernels_.center_double(problem_, begin, end, contributions_.get(), powers_.get());
        }
      });
}

template <class T>
void PermutedDivergenceInputs<T>::sum_weights() {
  double all_rows = double(N_);
  if (problem_.row_weight) {
    all_rows = 0;
    for (const T w : row_weight_) all_rows += double(w);
  }
  weight_sums_.assign(subsets_.size(), all_rows * double(problem_.permutations));
  if (!problem_.may_drop) return;
  for (size_t s = 0; s < subsets_.size(); ++s) {
    // Row sums first: their order does not depend on who adds them up.
    std::vector<double> row_sums(N_);
    for_each_range(N_, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, problem_.permutations)),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t a = begin; a < end; ++a) {
                       int64_t kept = 0;
                       for (int64_t k = 0; k < problem_.permutations; ++k) {
                         kept += problem_.keeps(subsets_[s], k, a);
                       }
                       const double weight = problem_.row_weight ? double(row_weight_[a]) : 1.0;
                       row_sums[a] = kept == 0 ? 0.0 : double(kept) * weight;
                     }
                   });
    weight_sums_[s] = 0;
    for (const double sum : row_sums) weight_sums_[s] += sum;
  }
}

template class PermutedDivergenceInputs<float>;
template class PermutedDivergenceInputs<double>;

}  // namespace mcr
