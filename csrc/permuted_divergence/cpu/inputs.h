// The inputs of permuted_divergence as its row loops read them.
#pragma once

#include <vector>

#include "cpu/tensors.h"
#include "dispatch.h"
#include "permuted_divergence/arguments.h"

namespace mcr {

// Owns what a PermutedDivergenceProblem points to: converted, in the order of positions, padded or
// transposed for the team that runs it.
template <class T>
class PermutedDivergenceInputs {
 public:
  // Of arguments that have been checked.
  explicit PermutedDivergenceInputs(const PermutedDivergenceArguments& arguments);

  const PermutedDivergenceProblem<T>& problem() const { return problem_; }
  const PermutedDivergenceKernels& kernels() const { return kernels_; }
  int64_t modalities() const { return M_; }
  int64_t rows() const { return N_; }
  int64_t classes() const { return C_; }
  bool lanes() const { return problem_.team != TeamKind::kRow; }
  bool class_major() const { return problem_.team == TeamKind::kLanesShifted; }
  int64_t width() const {
    return sizeof(T) == sizeof(float) ? kernels_.float_width : kernels_.double_width;
  }
  int64_t row_at(int64_t position) const { return order_ ? order_[position] : position; }
  // Class-major: rows of one class, repeated past the last one.
  int64_t columns() const { return columns_; }
  // The sum of the pair weights of subset s.
  double weight_sum(int s) const { return weight_sums_[s]; }

 private:
  void read_donors(const OptionalTensor& order, const OptionalTensor& donors);
  void read_table(const Tensor& donors);
  void read_conditions(const OptionalTensor& labels, const OptionalTensor& present,
                       const OptionalTensor& sample_weight);
  void choose_team();
  void lay_out(const Tensor& contributions);
  void lay_out_bias(const OptionalTensor& bias);
  void center();
  void sum_weights();

  int64_t M_, N_, C_;
  const PermutedDivergenceKernels& kernels_;  // fetched once: a call never mixes instruction sets
  PermutedDivergenceProblem<T> problem_ = {};
  std::vector<uint32_t> subsets_, present_;
  std::vector<int64_t> labels_;
  std::vector<T> row_weight_;
  std::vector<double> weight_sums_;
  std::vector<Tensor> kept_alive_;
  const int64_t* order_ = nullptr;
  Buffer<int32_t> table_;
  Buffer<T> contributions_, powers_, bias_;
  int64_t columns_ = 0;
};

}  // namespace mcr
