// Launchers of the contrastive losses by blocks of columns.
#include <torch/csrc/stable/library.h>

#include "contrastive/cpu/block.h"
#include "contrastive/cpu/block_gradient.h"
#include "core/arguments.h"
#include "dispatch.h"

namespace mcr {
namespace {

// The arguments that the three ops share.
struct Given {
  RowSet rows, columns;
  int64_t offset;
  bool over_pairs;  // nt_xent, not sup_con
  double temperature;
};

// `loss` is checked first, as it decides what the others are.
Given check_block(const Arguments& arguments, const RowSet& rows, const RowSet& columns,
                  int64_t offset, const std::string& loss, double temperature) {
  arguments.check("rows", rows.x, Holds::kFloats, {kAnySize, kAnySize});
  arguments.check("columns", columns.x, Holds::kFloats, {kAnySize, rows.x.size(1)});
  const int64_t R = rows.x.size(0), Q = columns.x.size(0);
  arguments.check("row_codes", rows.codes, Holds::kIndices, {R});
  arguments.check("row_marks", rows.marks, Holds::kMarks, {R});
  arguments.check("column_codes", columns.codes, Holds::kIndices, {Q});
  arguments.check("column_marks", columns.marks, Holds::kMarks, {Q});
  STD_TORCH_CHECK(rows.x.scalar_type() == columns.x.scalar_type(),
                  "rows and columns must have one dtype");
  STD_TORCH_CHECK(offset == -1 || (offset >= 0 && offset <= Q && R <= Q - offset),
                  "offset must be -1, or leave room for ", R, " rows among ", Q, " columns, got ",
                  offset);
  STD_TORCH_CHECK(temperature > 0, "temperature must be above 0, got ", temperature);
  return {rows, columns, offset, place_of("loss", loss, {"nt_xent", "sup_con"}) == 0, temperature};
}

template <class T>
const ContrastiveLoops<T>& row_loops() {
  return cpu_kernels().contrastive.nt_xent.of(T());
}

template <class T>
const BlockLoops<T>& loops_of(const Given& given) {
  const ContrastiveKernels& kernels = cpu_kernels().contrastive;
  return (given.over_pairs ? kernels.nt_xent_blocks : kernels.sup_con_blocks).of(T());
}

// f(T(), block) with the type of the arithmetic.
template <class F>
auto with_block(const Given& given, const F& f) {
  return with_arithmetic(is_double(given.rows.x), [&](auto zero) {
    using T = decltype(zero);
    Block<T> block(row_loops<T>(), given.rows, given.columns, given.offset, given.temperature);
    return f(zero, block);
  });
}

// A sum of powers of two, kept relative to their largest.
struct PowerSum {
  double max = 0, sum = 0;

  // `scale` times a maximum is in units of log2.
  void add(double other_max, double other_sum, double scale) {
    if (other_sum == 0) return;
    if (sum == 0) max = other_max;
    const double top = std::max(max, other_max);
    sum = sum * std::exp2((max - top) * scale) + other_sum * std::exp2((other_max - top) * scale);
    max = top;
  }
};

// Row by row, -inf or 0 where a row does not count.
template <class T>
Tensor filled(int64_t count, T value) {
  const Tensor to = empty_cpu({count}, scalar_type_of<T>());
  std::fill_n(data<T>(to), count, value);
  return to;
}

template <class T>
Tensor block_sums(const Given& given, Block<T>& block) {
  const BlockLoops<T>& loops = loops_of<T>(given);
  const int64_t P = block.rows();
  std::vector<PowerSum> sums(P);
  std::vector<T> max(P), sum(P);
  const PartialSums<T> part = {max.data(), sum.data()};
  block.for_each_stripe(kBlockRows, false, [&](const BlockStripe<T>& stripe, const T*) {
    for_rows(stripe, [&](int64_t begin, int64_t end) {
      (block.running() ? loops.running_sums : loops.sums)(stripe, begin, end, part);
    });
    for (int64_t a = stripe.first; a < stripe.first + stripe.rows; ++a) {
      sums[a].add(double(max[a]), double(sum[a]), block.scale());
    }
  });
  const Tensor log_sum = filled<T>(given.rows.x.size(0), T(-INFINITY));
  T* to = data<T>(log_sum);
  for (int64_t a = 0; a < P; ++a) {
    const double apart = (sums[a].max - 1) * block.scale();  // 0 where nothing was added
    to[block.row_set().order[a]] = T((std::log2(sums[a].sum) + apart) * kLn2);
  }
  return log_sum;
}

template <class T>
std::tuple<Tensor, Tensor, Tensor> block_pairs(const Given& given, Block<T>& block,
                                               const Tensor& log_sum) {
  const BlockLoops<T>& loops = loops_of<T>(given);
  const int64_t P = block.rows(), R = given.rows.x.size(0);
  const Tensor given_sums = contiguous_as(log_sum, scalar_type_of<T>());
  Buffer<T> log2_sum;
  if (given.over_pairs) log2_sum = sorted(data<const T>(given_sums), block.row_set(), kLog2e);
  std::vector<PowerSum> weights(P);
  std::vector<double> losses(P), part_of_loss(P);
  std::vector<T> max(P), sum(P);
  const BlockPairs<T> part = {log2_sum.get(), part_of_loss.data(), {max.data(), sum.data()}};
  block.for_each_stripe(kPairRows, true, [&](const BlockStripe<T>& stripe, const T*) {
    for_rows(stripe, [&](int64_t begin, int64_t end) { loops.pairs(stripe, begin, end, part); });
    for (int64_t a = stripe.first; a < stripe.first + stripe.rows; ++a) {
      losses[a] += part_of_loss[a];
      weights[a].add(double(max[a]), double(sum[a]), 1);
    }
  });
  const Tensor loss = filled<T>(R, T(0)), count = filled<T>(R, T(0));
  const Tensor log_weight = filled<T>(given.over_pairs ? R : 0, T(-INFINITY));
  T *loss_to = data<T>(loss), *count_to = data<T>(count), *weight_to = data<T>(log_weight);
  const double unit = given.over_pairs ? kLn2 : kLn2 * block.scale();
  for (int64_t a = 0; a < P; ++a) {
    const int64_t to = block.row_set().order[a];
    loss_to[to] = T(losses[a] * unit);
    count_to[to] = T(block.positives(a));
    if (given.over_pairs) weight_to[to] = T((std::log2(weights[a].sum) + weights[a].max) * kLn2);
  }
  return {loss, count, log_weight};
}

Tensor contrastive_sums(const Tensor& rows,                  // [R, D]
                        const Tensor& row_codes,             // [R]
                        const OptionalTensor& row_marks,     // [R]
                        const Tensor& columns,               // [Q, D]
                        const Tensor& column_codes,          // [Q]
                        const OptionalTensor& column_marks,  // [Q]
                        int64_t offset, const std::string& loss, double temperature) {
  const Arguments arguments("contrastive_sums", rows);
  const Given given = check_block(arguments, {rows, row_codes, row_marks},
                                  {columns, column_codes, column_marks}, offset, loss, temperature);
  return with_block(given, [&](auto, auto& block) { return block_sums(given, block); });
}

std::tuple<Tensor, Tensor, Tensor> contrastive_pairs(
    const Tensor& rows, const Tensor& row_codes, const OptionalTensor& row_marks,
    const Tensor& columns, const Tensor& column_codes, const OptionalTensor& column_marks,
    int64_t offset, const std::string& loss,
    const Tensor& log_sum,  // [R]; sup_con does not read it
    double temperature) {
  const Arguments arguments("contrastive_pairs", rows);
  const Given given = check_block(arguments, {rows, row_codes, row_marks},
                                  {columns, column_codes, column_marks}, offset, loss, temperature);
  const int64_t sums = given.over_pairs ? rows.size(0) : kAnySize;
  arguments.check_unit("log_sum", log_sum, is_double(rows), {sums});
  return with_block(given, [&](auto, auto& block) { return block_pairs(given, block, log_sum); });
}

Tensor contrastive_gradient(const Tensor& rows, const Tensor& row_codes,
                            const OptionalTensor& row_marks, const Tensor& columns,
                            const Tensor& column_codes, const OptionalTensor& column_marks,
                            int64_t offset, const std::string& loss,
                            const Tensor& row_stats,     // [2, R]
                            const Tensor& column_stats,  // [2, Q]
                            double temperature) {
  const Arguments arguments("contrastive_gradient", rows);
  const Given given = check_block(arguments, {rows, row_codes, row_marks},
                                  {columns, column_codes, column_marks}, offset, loss, temperature);
  arguments.check_unit("row_stats", row_stats, is_double(rows), {2, rows.size(0)});
  arguments.check_unit("column_stats", column_stats, is_double(rows), {2, columns.size(0)});
  return with_block(given, [&](auto zero, auto& block) {
    using T = decltype(zero);
    const bool of_bfloat16 = rows.scalar_type() == ScalarType::BFloat16;
    GradientSum<T> sum(block, loops_of<T>(given).weights, given.over_pairs, of_bfloat16, row_stats,
                       column_stats);
    block.for_each_stripe(kBlockRows, false,
                          [&](const BlockStripe<T>& stripe, const T* u) { sum.add(stripe, u); });
    return sum.result(rows.size(0));
  });
}

}  // namespace
}  // namespace mcr

STABLE_TORCH_LIBRARY_IMPL(mcr_fast, CPU, m) {
  m.impl("contrastive_sums", TORCH_BOX(&mcr::contrastive_sums));
  m.impl("contrastive_pairs", TORCH_BOX(&mcr::contrastive_pairs));
  m.impl("contrastive_gradient", TORCH_BOX(&mcr::contrastive_gradient));
}
