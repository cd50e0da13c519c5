// Launcher of permuted_divergence: lays the contributions out for the row loops, cuts the rows into
// parts and puts the parts' sums and gradients together.
#include "permuted_divergence_problem.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "cpu/dispatch.h"
#include "cpu/divergence_options.h"
#include "cpu/tensors.h"

namespace mcr {
namespace {

constexpr double kLog2e = 1.44269504088896340736;
constexpr int64_t kGrain = 1 << 14;  // elements: about 10 us of one core

// Up to this many classes a lane of the vector takes a whole row; beyond, the tiles of a lane team
// leave L1 and its gathers cost more than a row team's padding and reductions. Measured.
constexpr int64_t kMaxLaneClassesShifted = 64;
constexpr int64_t kMaxLaneClassesGathered = 32;

struct Options {
  std::vector<int64_t> subsets;
  std::string strategy, clean_path, divergence, exclude;
};

template <class T>
class PermutedDivergence {
 public:
  PermutedDivergence(const Tensor& contributions, const OptionalTensor& bias,
                     const OptionalTensor& order, const OptionalTensor& donors,
                     const OptionalTensor& labels, const OptionalTensor& present,
                     const OptionalTensor& sample_weight, const Options& options)
      : M_(contributions.size(0)),
        N_(contributions.size(1)),
        C_(contributions.size(2)),
        options_(options) {
    read_options();
    read_donors(order, donors);
    read_masks(labels, present, sample_weight);
    choose_team();
    lay_out(contributions, bias);
    store_powers();
    sum_weights();
  }

  bool empty() const { return N_ == 0 || C_ == 0 || problem_.permutations == 0; }
  int64_t subsets() const { return int64_t(subsets_.size()); }

  // values [S]; with want_grad also the gradient for the upstream gradient `upstream` [S] (null: 1),
  // to grad [M, N, C] and grad_bias [C].
  void run(const T* upstream, bool want_grad, T* values, T* grad, T* grad_bias);

 private:
  bool lanes() const { return problem_.team != TeamKind::kRow; }
  int64_t width() const {
    const auto& kernels = cpu_kernels().permuted_divergence;
    return sizeof(T) == sizeof(float) ? kernels.float_width : kernels.double_width;
  }
  int64_t row_at(int64_t position) const { return order_ ? order_[position] : position; }

  void read_options();
  void read_donors(const OptionalTensor& order, const OptionalTensor& donors);
  void read_masks(const OptionalTensor& labels, const OptionalTensor& present,
                  const OptionalTensor& sample_weight);
  void choose_team();
  void lay_out(const Tensor& contributions, const OptionalTensor& bias);
  void store_powers();
  void sum_weights();
  void gather(const std::vector<PermutedDivergencePart<T>>& parts, T* grad, T* grad_bias) const;

  int64_t M_, N_, C_;
  Options options_;
  PermutedDivergenceProblem<T> problem_ = {};
  std::vector<uint32_t> subsets_, present_;
  std::vector<int64_t> labels_;
  std::vector<T> row_weight_, factors_;
  std::vector<double> weight_sums_;
  std::vector<Tensor> kept_alive_;
  const int64_t* order_ = nullptr;
  Buffer<int32_t> table_;
  Buffer<T> contributions_, powers_, row_max_, bias_;
  int64_t columns_ = 0;  // lane teams: rows of one class, repeated past the last one
};

template <class T>
void PermutedDivergence<T>::read_options() {
  problem_.divergence = divergence_kind(options_.divergence);
  const std::string& path = options_.clean_path;
  problem_.clean_path = path == "shared"   ? CleanPath::kShared
                        : path == "routed" ? CleanPath::kRouted
                                           : CleanPath::kDetached;
  const std::string& strategy = options_.strategy;
  problem_.outsider = strategy == "greedy" ? -1 : strategy == "independent" ? 0 : 1;
  problem_.exclude = options_.exclude == "self"         ? Exclude::kSelf
                     : options_.exclude == "same_label" ? Exclude::kSameLabel
                                                        : Exclude::kNone;
  subsets_.assign(options_.subsets.begin(), options_.subsets.end());
  problem_.subsets = subsets_.data();
  problem_.num_subsets = int(subsets_.size());
  problem_.modalities = int(M_);
  problem_.rows = N_;
}

template <class T>
void PermutedDivergence<T>::read_donors(const OptionalTensor& order, const OptionalTensor& donors) {
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
    problem_.shifts = from;
    return;
  }
  STD_TORCH_CHECK(N_ < (int64_t{1} << 31), "permuted_divergence: more than 2^31 rows");
  // Whole vectors of indices: a lane past the last row reads row 0 and adds 0 to it.
  const int64_t W = width(), padded = (N_ + W - 1) / W * W;
  const int64_t count = d.size(0) * d.size(1);
  table_.resize(count * padded);
  for_each_range(count, std::max<int64_t>(1, kGrain / padded), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t a = 0; a < N_; ++a) table_[r * padded + a] = int32_t(from[r * N_ + a]);
      std::fill(&table_[r * padded] + N_, &table_[r * padded] + padded, 0);
    }
  });
  problem_.table_stride = padded;
  problem_.table = table_.get();
}

template <class T>
void PermutedDivergence<T>::read_masks(const OptionalTensor& labels, const OptionalTensor& present,
                                       const OptionalTensor& sample_weight) {
  if (problem_.exclude == Exclude::kSameLabel) {
    const Tensor codes = contiguous_as(*labels, ScalarType::Long);
    const int64_t* from = codes.const_data_ptr<int64_t>();
    for (int64_t a = 0; a < N_; ++a) labels_.push_back(from[row_at(a)]);
    problem_.labels = labels_.data();
  }
  if (present) {
    const Tensor mask = torch::stable::contiguous(*present);
    const bool* from = mask.const_data_ptr<bool>();
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
    for (int64_t a = 0; a < N_; ++a) row_weight_.push_back(from[row_at(a)]);
    problem_.row_weight = row_weight_.data();
  }
  problem_.masked = present || problem_.exclude != Exclude::kNone;
}

template <class T>
void PermutedDivergence<T>::choose_team() {
  problem_.team = TeamKind::kRow;
  if (sizeof(T) != sizeof(float)) return;
  if (problem_.table) {
    if (C_ <= kMaxLaneClassesGathered) problem_.team = TeamKind::kLanesGathered;
  } else if (C_ <= kMaxLaneClassesShifted) {
    problem_.team = TeamKind::kLanesShifted;
  }
}

template <class T>
void PermutedDivergence<T>::lay_out(const Tensor& contributions, const OptionalTensor& bias) {
  const Tensor source = contiguous_as(contributions, scalar_type_of<T>());
  const T* from = source.const_data_ptr<T>();
  const bool in_log2 = problem_.divergence != DivergenceKind::kSquaredError;
  const T unit = in_log2 ? T(kLog2e) : T(1);
  const int64_t W = width();
  problem_.steps = lanes() ? C_ : (C_ + W - 1) / W;
  columns_ = (2 * N_ + 2 * W - 1) / W * W;
  const int64_t padded = lanes() ? C_ : problem_.steps * W;
  problem_.modality_stride = lanes() ? C_ * columns_ : N_ * padded;
  problem_.row_stride = padded;
  problem_.step_stride = lanes() ? columns_ : W;
  contributions_.resize(M_ * problem_.modality_stride);
  bias_.resize(padded);
  problem_.contributions = contributions_.get();
  problem_.bias = bias_.get();
  if (N_ == 0) return;

  if (lanes()) {
    for_each_range(M_ * C_, std::max<int64_t>(1, kGrain / columns_), [&](int64_t begin, int64_t end) {
      for (int64_t mc = begin; mc < end; ++mc) {
        const T* column = from + mc / C_ * N_ * C_ + mc % C_;
        T* to = &contributions_[mc * columns_];
        for (int64_t a = 0; a < N_; ++a) to[a] = column[row_at(a) * C_] * unit;
        for (int64_t a = N_; a < columns_; ++a) to[a] = to[a - N_];
      }
    });
  } else {
    for_each_range(M_ * N_, std::max<int64_t>(1, kGrain / padded), [&](int64_t begin, int64_t end) {
      for (int64_t mn = begin; mn < end; ++mn) {
        const T* row = from + (mn / N_ * N_ + row_at(mn % N_)) * C_;
        T* to = &contributions_[mn * padded];
        for (int64_t c = 0; c < C_; ++c) to[c] = row[c] * unit;
        std::fill(to + C_, to + padded, T(0));
      }
    });
  }
  std::fill(&bias_[0], &bias_[0] + padded, T(0));
  if (bias) {
    const Tensor b = contiguous_as(*bias, scalar_type_of<T>());
    for (int64_t c = 0; c < C_; ++c) bias_[c] = b.const_data_ptr<T>()[c] * unit;
  }
  // The padding is no class of the softmax.
  if (problem_.divergence == DivergenceKind::kJsd) {
    std::fill(&bias_[0] + C_, &bias_[0] + padded, T(-1e30));
  }
}

template <class T>
void PermutedDivergence<T>::store_powers() {
  problem_.max_stride = lanes() ? columns_ : N_;
  const bool used = problem_.divergence == DivergenceKind::kJsd && problem_.team != TeamKind::kLanesGathered;
  if (!used || N_ == 0) return;
  powers_.resize(M_ * problem_.modality_stride);
  row_max_.resize(M_ * problem_.max_stride);
  problem_.powers = powers_.get();
  problem_.row_max = row_max_.get();
  const int64_t blocks = lanes() ? M_ * columns_ / width() : M_ * N_;
  const auto& kernels = cpu_kernels().permuted_divergence;
  for_each_range(blocks, std::max<int64_t>(1, kGrain / (problem_.steps * width())),
                 [&](int64_t begin, int64_t end) {
                   if constexpr (sizeof(T) == sizeof(float)) {
                     kernels.powers_float(problem_, begin, end, powers_.get(), row_max_.get());
                   } else {
                     kernels.powers_double(problem_, begin, end, powers_.get(), row_max_.get());
                   }
                 });
}

template <class T>
void PermutedDivergence<T>::sum_weights() {
  double all_rows = double(N_);
  if (problem_.row_weight) {
    all_rows = 0;
    for (const T w : row_weight_) all_rows += double(w);
  }
  weight_sums_.assign(subsets_.size(), all_rows * double(problem_.permutations));
  if (!problem_.masked) return;
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

template <class T>
void PermutedDivergence<T>::run(const T* upstream, bool want_grad, T* values, T* grad,
                                T* grad_bias) {
  const int64_t S = subsets();
  const double classes = problem_.divergence == DivergenceKind::kJsd ? 1.0 : double(C_);
  factors_.assign(S, T(0));
  for (int64_t s = 0; s < S; ++s) {
    const double g = upstream ? double(upstream[s]) : 1.0;
    if (weight_sums_[s] != 0) factors_[s] = T(g / (weight_sums_[s] * classes));
  }
  problem_.factors = factors_.data();
  problem_.want_grad = want_grad;

  const int64_t W = width();
  const int64_t blocks = lanes() ? (N_ + W - 1) / W : N_;
  const int64_t count = std::min(blocks, part_count(S * problem_.permutations * N_ * C_, kGrain));
  const int64_t grad_size = want_grad ? M_ * problem_.modality_stride : 0;
  const int64_t tile = problem_.steps * W;
  problem_.group = group_of_rows<T>(tile);
  const int64_t fixed = (8 + 2 * problem_.group) * tile;
  const int64_t part_size = grad_size + fixed;
  Buffer<T> memory(count * part_size);
  std::vector<double> part_values(count * S, 0.0);
  std::vector<PermutedDivergencePart<T>> parts(count);
  const auto& kernels = cpu_kernels().permuted_divergence;
  for_each_part(count, [&](int64_t p) {
    T* base = memory.get() + p * part_size;
    parts[p] = {base + fixed, base, base + tile, &part_values[p * S]};
    std::fill(base, base + tile, T(0));
    std::fill(parts[p].grad, parts[p].grad + grad_size, T(0));
    const int64_t begin = blocks * p / count, end = blocks * (p + 1) / count;
    if constexpr (sizeof(T) == sizeof(float)) {
      kernels.run_float(problem_, begin, end, parts[p]);
    } else {
      kernels.run_double(problem_, begin, end, parts[p]);
    }
  });
  for (int64_t s = 0; s < S; ++s) {
    double total = 0;
    for (int64_t p = 0; p < count; ++p) total += part_values[p * S + s];
    values[s] = T(total);
  }
  if (want_grad) gather(parts, grad, grad_bias);
}

template <class T>
void PermutedDivergence<T>::gather(const std::vector<PermutedDivergencePart<T>>& parts, T* grad,
                                   T* grad_bias) const {
  const int64_t W = width();
  if (lanes()) {
    for_each_range(M_ * C_, std::max<int64_t>(1, kGrain / columns_), [&](int64_t begin, int64_t end) {
      for (int64_t mc = begin; mc < end; ++mc) {
        T* column = grad + mc / C_ * N_ * C_ + mc % C_;
        for (int64_t a = 0; a < N_; ++a) {
          T total = 0;
          for (const auto& part : parts) {
            for (int64_t i = a; i < columns_; i += N_) total += part.grad[mc * columns_ + i];
          }
          column[row_at(a) * C_] = total;
        }
      }
    });
  } else {
    const int64_t padded = problem_.row_stride;
    for_each_range(M_ * N_, std::max<int64_t>(1, kGrain / padded), [&](int64_t begin, int64_t end) {
      for (int64_t mn = begin; mn < end; ++mn) {
        T* row = grad + (mn / N_ * N_ + row_at(mn % N_)) * C_;
        std::copy_n(parts[0].grad + mn * padded, C_, row);
        for (size_t p = 1; p < parts.size(); ++p) {
          const T* from = parts[p].grad + mn * padded;
          for (int64_t c = 0; c < C_; ++c) row[c] += from[c];
        }
      }
    });
  }
  for (int64_t c = 0; c < C_; ++c) {
    T total = 0;
    for (const auto& part : parts) {
      if (!lanes()) total += part.grad_bias[c];
      for (int64_t l = 0; lanes() && l < W; ++l) total += part.grad_bias[c * W + l];
    }
    grad_bias[c] = total;
  }
}

template <class T>
std::tuple<Tensor, Tensor, Tensor> forward(PermutedDivergence<T>& op, const Tensor& contributions,
                                           const T* upstream, bool want_grad) {
  const int64_t M = contributions.size(0), N = contributions.size(1), C = contributions.size(2);
  const ScalarType dtype = scalar_type_of<T>();
  const Tensor values = new_empty(contributions, {op.subsets()}, dtype);
  const Tensor grad = want_grad ? new_empty(contributions, {M, N, C}, dtype)
                                : new_empty(contributions, {0, 0, 0}, dtype);
  const Tensor grad_bias = new_empty(contributions, {want_grad ? C : 0}, dtype);
  T* v = values.mutable_data_ptr<T>();
  T* g = grad.mutable_data_ptr<T>();
  T* b = grad_bias.mutable_data_ptr<T>();
  if (op.empty()) {
    std::fill_n(v, op.subsets(), T(0));
    std::fill_n(g, grad.numel(), T(0));
    std::fill_n(b, grad_bias.numel(), T(0));
  } else {
    op.run(upstream, want_grad, v, g, b);
  }
  return {values, grad, grad_bias};
}

std::tuple<Tensor, Tensor, Tensor> permuted_divergence_fwd_cpu(
    const Tensor& contributions,          // [M, N, C]
    const OptionalTensor& bias,           // [C]
    const OptionalTensor& order,          // [N]
    const OptionalTensor& donors,         // [1 or M, K] shifts or [1 or M, K, N] table
    const OptionalTensor& labels,         // [N]
    const OptionalTensor& present,        // [N, M]
    const OptionalTensor& sample_weight,  // [N]
    const std::vector<int64_t>& subsets, const std::string& strategy,
    const std::string& clean_path, const std::string& divergence, const std::string& exclude,
    bool want_grad) {
  const Options options{subsets, strategy, clean_path, divergence, exclude};
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    PermutedDivergence<T> op(contributions, bias, order, donors, labels, present, sample_weight,
                             options);
    return forward<T>(op, contributions, nullptr, want_grad);
  };
  return accumulation_type(contributions) == ScalarType::Double ? run(double{}) : run(float{});
}

std::tuple<Tensor, Tensor> permuted_divergence_bwd_cpu(
    const Tensor& grad,            // [S]
    const Tensor& unit_grad,       // [M, N, C], for an upstream gradient of ones
    const Tensor& unit_grad_bias,  // [C]
    const Tensor& contributions,   // and on: as the forward took them
    const OptionalTensor& bias, const OptionalTensor& order, const OptionalTensor& donors,
    const OptionalTensor& labels, const OptionalTensor& present,
    const OptionalTensor& sample_weight, const std::vector<int64_t>& subsets,
    const std::string& strategy, const std::string& clean_path, const std::string& divergence,
    const std::string& exclude) {
  const ScalarType dtype = contributions.scalar_type();
  const ScalarType bias_dtype = bias ? bias->scalar_type() : dtype;
  const auto run = [&](auto zero) -> std::tuple<Tensor, Tensor> {
    using T = decltype(zero);
    const Tensor upstream = contiguous_as(grad, scalar_type_of<T>());
    const T* g = upstream.const_data_ptr<T>();
    bool equal = true;
    for (int64_t s = 0; s < upstream.numel(); ++s) equal = equal && g[s] == g[0];
    if (equal) {
      return {scaled<T>(unit_grad, g[0], dtype), scaled<T>(unit_grad_bias, g[0], bias_dtype)};
    }
    const Options options{subsets, strategy, clean_path, divergence, exclude};
    PermutedDivergence<T> op(contributions, bias, order, donors, labels, present, sample_weight,
                             options);
    const auto [values, to_contributions, to_bias] = forward<T>(op, contributions, g, true);
    return {contiguous_as(to_contributions, dtype), contiguous_as(to_bias, bias_dtype)};
  };
  return accumulation_type(contributions) == ScalarType::Double ? run(double{}) : run(float{});
}

}  // namespace
}  // namespace mcr

STABLE_TORCH_LIBRARY_IMPL(mcr_fast, CPU, m) {
  m.impl("permuted_divergence_fwd", TORCH_BOX(&mcr::permuted_divergence_fwd_cpu));
  m.impl("permuted_divergence_bwd", TORCH_BOX(&mcr::permuted_divergence_bwd_cpu));
}
