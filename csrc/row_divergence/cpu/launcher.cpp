// Launcher of row_divergence: groups the perturbed rows by clean row and cuts the clean rows into
// parts of equal work.
#include "cpu/tensors.h"
#include "dispatch.h"
#include "divergence/options.h"
#include "row_divergence/arguments.h"

namespace mcr {
namespace {

// The perturbed rows by clean row, in their own order within one: a counting sort.
struct Grouping {
  std::vector<int64_t> start;    // [N + 1]
  std::vector<int64_t> members;  // [R]

  Grouping(const int64_t* rows, int64_t R, int64_t N) : start(N + 1, 0), members(R) {
    for (int64_t r = 0; r < R; ++r) {
      STD_TORCH_CHECK(rows[r] >= 0 && rows[r] < N, "row_divergence: rows[", r, "] is ", rows[r],
                      ", but clean has ", N, " rows");
      ++start[rows[r] + 1];
    }
    for (int64_t i = 0; i < N; ++i) start[i + 1] += start[i];
    std::vector<int64_t> next(start.begin(), start.end() - 1);
    for (int64_t r = 0; r < R; ++r) members[next[rows[r]]++] = r;
  }

  // First clean row of part p: the parts hold about as many perturbed rows each.
  int64_t boundary(int64_t p, int64_t parts) const {
    const int64_t N = int64_t(start.size()) - 1;
    if (p == parts) return N;
    const int64_t rows = start[N] * p / parts;
    return std::lower_bound(start.begin(), start.end() - 1, rows) - start.begin();
  }
};

// What the rows weigh together, `row_weight` null where each weighs 1.
template <class T>
double weight_of(const T* row_weight, int64_t R) {
  if (!row_weight) return double(R);
  double sum = 0;
  for (int64_t r = 0; r < R; ++r) {
    STD_TORCH_CHECK(!(row_weight[r] < 0), "row_weight must not be negative, got ", row_weight[r]);
    sum += double(row_weight[r]);
  }
  return sum;
}

template <class T>
T mean_or_zero(T sum, T weight) {
  return weight == 0 ? T(0) : sum / weight;
}

template <class T>
std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& perturbed_in,
                                                   const Tensor& clean_in, const Tensor& rows_in,
                                                   const OptionalTensor& row_weight,
                                                   const std::string& divergence, bool want_grad,
                                                   bool mean) {
  const ScalarType dtype = scalar_type_of<T>();
  const Tensor perturbed = contiguous_as(perturbed_in, dtype);
  const Tensor clean = contiguous_as(clean_in, dtype);
  const Tensor rows = contiguous_as(rows_in, ScalarType::Long);
  const int64_t R = perturbed.size(0), C = perturbed.size(1), N = clean.size(0);
  const Grouping grouping(data<const int64_t>(rows), R, N);

  const Tensor total = empty_cpu({}, dtype), weight = empty_cpu({}, dtype);
  const Tensor grad_perturbed = empty_cpu({want_grad ? R : 0, want_grad ? C : 0}, dtype);
  const Tensor grad_clean = empty_cpu({want_grad ? N : 0, want_grad ? C : 0}, dtype);
  RowDivergenceProblem<T> pr = {};
  pr.perturbed = data<const T>(perturbed);
  pr.clean = data<const T>(clean);
  pr.start = grouping.start.data();
  pr.members = grouping.members.data();
  pr.classes = C;
  pr.divergence = divergence_kind(divergence);
  pr.factor = T(1) / T(traits_of(pr.divergence).terms(C));
  pr.want_grad = want_grad;
  pr.grad_perturbed = data<T>(grad_perturbed);
  pr.grad_clean = data<T>(grad_clean);
  if (want_grad) std::fill_n(pr.grad_clean, N * C, T(0));

  const Tensor weights = row_weight ? contiguous_as(*row_weight, dtype) : clean;
  if (row_weight) pr.row_weight = data<const T>(weights);
  const T together = T(weight_of(pr.row_weight, R));

  const RowDivergenceLoops<T>& loops = cpu_kernels().row_divergence.of(T());
  const int64_t W = loops.width;
  pr.steps = (C + W - 1) / W;
  pr.group = group_of_rows<T>(std::max<int64_t>(1, pr.steps) * W);
  const int64_t scratch = (6 + 2 * pr.group) * pr.steps * W;
  const int64_t parts = part_count(R * C);
  Buffer<T> memory(parts * scratch);
  std::vector<double> values(parts, 0.0);
  if (C > 0) {
    for_each(parts, 1, [&](int64_t p) {
      values[p] = loops.run(pr, grouping.boundary(p, parts), grouping.boundary(p + 1, parts),
                            memory.get() + p * scratch);
    });
  }
  double sum = 0;
  for (const double value : values) sum += value;
  *data<T>(total) = mean ? mean_or_zero(T(sum), together) : T(sum);
  *data<T>(weight) = together;
  return {total, weight, grad_perturbed, grad_clean};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> row_divergence_fwd_cpu(
    const Tensor& perturbed,           // [R, C]
    const Tensor& clean,               // [N, C]
    const Tensor& rows,                // [R] int64
    const OptionalTensor& row_weight,  // [R]
    const std::string& divergence, bool want_grad,
    bool notes,  // a GPU's
    bool mean) {
  check_held_rows(perturbed, clean, rows, row_weight);
  check_no_notes(notes);
  return with_arithmetic(is_double(perturbed) || is_double(clean), [&](auto zero) {
    return forward<decltype(zero)>(perturbed, clean, rows, row_weight, divergence, want_grad, mean);
  });
}

std::tuple<Tensor, Tensor> row_divergence_bwd_cpu(
    const Tensor& grad,                 // [], of total
    const OptionalTensor& weight,       // [], of a mean
    const Tensor& unit_grad_perturbed,  // [R, C]
    const Tensor& unit_grad_clean,      // [N, C]
    const Tensor& perturbed,            // their dtypes
    const Tensor& clean,
    const Tensor&,          // rows, with the next two: what a gradient that is made anew takes
    const OptionalTensor&,  // row_weight
    const std::string&,     // divergence
    bool notes) {
  check_no_notes(notes);
  const bool in_double = is_double(perturbed) || is_double(clean);
  check_held_gradients(grad, weight, unit_grad_perturbed, unit_grad_clean, perturbed, clean,
                       in_double);
  return with_arithmetic(in_double, [&](auto zero) -> std::tuple<Tensor, Tensor> {
    auto g = number_of<decltype(zero)>(grad);
    if (weight) g = mean_or_zero(g, number_of<decltype(zero)>(*weight));
    return {scaled(unit_grad_perturbed, g, perturbed.scalar_type()),
            scaled(unit_grad_clean, g, clean.scalar_type())};
  });
}

}  // namespace
}  // namespace mcr

STABLE_TORCH_LIBRARY_IMPL(mcr_fast, CPU, m) {
  m.impl("row_divergence_fwd", TORCH_BOX(&mcr::row_divergence_fwd_cpu));
  m.impl("row_divergence_bwd", TORCH_BOX(&mcr::row_divergence_bwd_cpu));
}
