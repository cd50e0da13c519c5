// Launchers of the contrastive losses by blocks of columns.
#include <torch/csrc/stable/library.h>

#include "contrastive/cpu/block.h"
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

// Rows [begin, end) of a stripe for each thread.
template <class T, class F>
void for_rows(const BlockStripe<T>& stripe, const F& f) {
  for_each_range(stripe.rows, grain_of(kGrain, stripe.columns), f);
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

// Statistics [.., R] of a set of rows in its order, times a factor; a vector to spare at the end.
template <class T>
Buffer<T> sorted(const T* from, const SortedRows& set, double factor) {
  Buffer<T> to(set.size() + 16);
  for (int64_t a = 0; a < set.size(); ++a) to[a] = T(double(from[set.order[a]]) * factor);
  std::fill_n(to.get() + set.size(), 16, T(0));
  return to;
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

// What H takes of a set of rows, from statistics [2, R]: (log of the sum, log W) of nt_xent, (log
// of the sum, 1 / number of positives) of sup_con.
template <class T>
struct Statistics {
  Buffer<T> weight, other;

  Statistics(const Tensor& given, const SortedRows& set, bool over_pairs, bool log_weights) {
    const Tensor stats = contiguous_as(given, scalar_type_of<T>());
    const T *first = data<const T>(stats), *second = first + stats.size(1);
    other = over_pairs ? sorted(first, set, kLog2e) : sorted(second, set, 1);
    weight = over_pairs ? sorted(second, set, kLog2e) : sorted(first, set, -kLog2e);
    if (log_weights) return;
    for (int64_t a = 0; a < set.size(); ++a) weight[a] = std::exp2(weight[a]);
  }
  BlockStats<T> view() const { return {weight.get(), other.get()}; }
};

// H U row by row, in the order of the sorted rows. H takes the place of the similarities; or in
// bfloat16 a place of its own, as do U and the product, which is added up in float32.
template <class T>
class GradientSum {
 public:
  GradientSum(const Given& given, Block<T>& block, const Tensor& row_stats,
              const Tensor& column_stats)
      : block_(block),
        weights_(loops_of<T>(given).weights),
        of_rows_(row_stats, block.row_set(), given.over_pairs, block.running()),
        of_columns_(column_stats, block.column_set(), given.over_pairs, block.running()),
        bfloat16_(std::is_same_v<T, float> && has_bfloat16_products() &&
                  given.rows.x.scalar_type() == ScalarType::BFloat16 &&
                  block.rows() >= kBlockRows && block.column_set().size() >= kBlockColumns) {
    g_.resize(block.rows() * block.width() + 16);
    std::memset(g_.get(), 0, size_t(block.rows() * block.width()) * sizeof(T));
    if (!bfloat16_) return;
    h_bf16_.resize(kBlockRows * kBlockColumns);
    u_bf16_.resize(kBlockColumns * block.width() + 16);
    product_bf16_.resize(kBlockRows * block.width() + 16);
  }

  void add(const BlockStripe<T>& stripe, const T* u) {
    const int64_t D = block_.width(), Q = stripe.columns;
    T* g = g_.get() + stripe.first * D;
    if constexpr (std::is_same_v<T, float>) {
      if (bfloat16_) return add_bfloat16(stripe, u, g);
    }
    const WeightsPanel<T> h = {0, Q, stripe.dots, stripe.stride};
    make(stripe, block_.running() ? weights_.running : weights_.fixed, h);
    multiply(matrix(h.weights, stripe.rows, Q, h.stride, 1), matrix(u, Q, D, D, 1), 1,
             matrix(g, stripe.rows, D, D, 1));
  }

  // [R, D] in the order of the rows as given.
  Tensor result(int64_t all_rows) const {
    const int64_t D = block_.width();
    const Tensor made = empty_cpu({all_rows, D}, scalar_type_of<T>());
    T* to = data<T>(made);
    if (block_.rows() < all_rows) std::memset(to, 0, size_t(all_rows * D) * sizeof(T));
    for (int64_t a = 0; a < block_.rows(); ++a) {
      std::copy_n(g_.get() + a * D, D, to + block_.row_set().order[a] * D);
    }
    return made;
  }

 private:
  template <class Out>
  void make(const BlockStripe<T>& stripe, BlockWeightsLoop<T, Out> loop,
            const WeightsPanel<Out>& h) {
    const BlockStats<T> rows = of_rows_.view(), columns = of_columns_.view();
    for_rows(stripe,
             [&](int64_t begin, int64_t end) { loop(stripe, begin, end, rows, columns, h); });
  }

  void add_bfloat16(const BlockStripe<float>& stripe, const float* u, float* g) {
    const ContrastiveLoops<float>& loops = row_loops<float>();
    const int64_t D = block_.width(), Q = stripe.columns;
    const WeightsPanel<uint16_t> h = {0, Q, h_bf16_.get(), kBlockColumns};
    make(stripe, block_.running() ? weights_.running_bf16 : weights_.fixed_bf16, h);
    if (stripe.first == 0) {  // a panel's first stripe
      for_each_range(Q * D, kCopyGrain, [&](int64_t begin, int64_t end) {
        loops.to_bfloat16(u + begin, end - begin, &u_bf16_[begin]);
      });
    }
    multiply(matrix(h.weights, stripe.rows, Q, h.stride, 1), matrix(u_bf16_.get(), Q, D, D, 1), 0,
             matrix(product_bf16_.get(), stripe.rows, D, D, 1));
    for_each_range(stripe.rows * D, kCopyGrain, [&](int64_t begin, int64_t end) {
      loops.add_bfloat16(&product_bf16_[begin], end - begin, g + begin);
    });
  }

  const Block<T>& block_;
  const BlockWeightsLoops<T>& weights_;
  const Statistics<T> of_rows_, of_columns_;
  const bool bfloat16_;
  Buffer<T> g_;
  Buffer<uint16_t> h_bf16_, u_bf16_, product_bf16_;
};

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
    GradientSum<T> sum(given, block, row_stats, column_stats);
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
