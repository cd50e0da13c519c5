#include "contrastive/cpu/similarities.h"

#include <cstring>

#include "contrastive/arguments.h"
#include "cpu/products.h"

namespace mcr {
namespace {

constexpr double kLog2e = 1.44269504088896340736;
constexpr int64_t kGrain = 1 << 15;  // numbers a thread should get to itself when it only copies

// All the memory of a call, as far as the batch allows: the whole triangle up to about 5,000 rows;
// beyond, a part of it. The rest is computed again in each sweep.
constexpr int64_t kWorkspaceBytes = int64_t{96} << 20;

// Below, products in bfloat16 save nothing, and they cost digits.
constexpr int64_t kMinBfloat16Rows = 512;

// Columns of H that are made and multiplied at once, while they are in cache. And torch's bfloat16
// products keep a compiled kernel of half a megabyte for every shape and stride: panels have few.
constexpr int64_t kPanelRows = 1024;

// Strides of the similarities are whole vectors of any instruction set and number type.
int64_t padded(int64_t columns) { return (columns + 15) / 16 * 16; }

int64_t row_grain(int64_t width) { return std::max<int64_t>(1, kGrain / (width + 1)); }

}  // namespace

template <class T>
Similarities<T>::Similarities(const SimilarityKernels<T>& kernels, const Tensor& embeddings,
                              const Tensor& labels, const OptionalTensor& present,
                              double temperature, bool want_grad)
    : kernels_(kernels),
      embeddings_(embeddings),
      all_rows_(embeddings.size(0)),
      width_(embeddings.size(1)),
      scale_(kLog2e / temperature),
      want_grad_(want_grad) {
  check_rows(embeddings, labels, present, temperature);
  sort_rows(labels, present);
  bfloat16_ = want_grad && rows_ >= kMinBfloat16Rows &&
              embeddings.scalar_type() == ScalarType::BFloat16 && has_bfloat16_products();
  // 2^(-2 scale), the least exponential there is, and its inverse times a number of rows must be
  // numbers of float32.
  running_max_ = !(2 * scale_ + std::log2(double(rows_) + 1) < 120);
  normalize(embeddings);
  plan_memory();
}

template <class T>
void Similarities<T>::sort_rows(const Tensor& labels, const OptionalTensor& present) {
  const Tensor codes = contiguous_as(labels, ScalarType::Long);
  const int64_t* code = codes.const_data_ptr<int64_t>();
  const OptionalTensor marks = present ? contiguous_as(*present, ScalarType::Bool) : present;
  const bool* there = marks ? marks->template const_data_ptr<bool>() : nullptr;
  std::vector<std::pair<int64_t, int64_t>> sorted;
  sorted.reserve(all_rows_);
  for (int64_t i = 0; i < all_rows_; ++i) {
    if (!there || there[i]) sorted.emplace_back(code[i], i);
  }
  std::sort(sorted.begin(), sorted.end());
  rows_ = int64_t(sorted.size());
  order_.resize(rows_);
  class_begin_.resize(rows_);
  class_end_.resize(rows_);
  for (int64_t begin = 0, end; begin < rows_; begin = end) {
    for (end = begin; end < rows_ && sorted[end].first == sorted[begin].first; ++end) {
      order_[end] = sorted[end].second;
    }
    std::fill(&class_begin_[begin], &class_begin_[begin] + (end - begin), begin);
    std::fill(&class_end_[begin], &class_end_[begin] + (end - begin), end);
  }
}

template <class T>
void Similarities<T>::normalize(const Tensor& embeddings) {
  const Tensor x = contiguous_as(embeddings, scalar_type_of<T>());
  const T* from = x.const_data_ptr<T>();
  z_.resize(rows_ * width_ + 16);
  norm_.resize(rows_ + 16);
  if (bfloat16_) z_bf16_.resize(rows_ * width_ + 16);
  for_each_range(rows_, row_grain(width_), [&](int64_t begin, int64_t end) {
    kernels_.normalize_rows(from, order_.data(), begin, end, width_, z_.get(), norm_.get());
    if constexpr (std::is_same_v<T, float>) {
      const int64_t at = begin * width_, count = (end - begin) * width_;
      if (bfloat16_) kernels_.to_bfloat16(&z_[at], count, &z_bf16_[at]);
    }
  });
}

template <class T>
void Similarities<T>::plan_memory() {
  const int64_t batch = rows_ * width_;
  int64_t bytes = batch * sizeof(T) + std::min(rows_, kStripeRows) * padded(rows_) * sizeof(T);
  if (want_grad_) bytes += batch * sizeof(T);
  if (bfloat16_) bytes += batch * sizeof(uint16_t);
  const int64_t stripes = (rows_ + kStripeRows - 1) / kStripeRows;
  for (int64_t i = 0; i < stripes; ++i) {
    bytes += kStripeRows * padded(rows_ - i * kStripeRows) * sizeof(T);
    if (bytes > kWorkspaceBytes) break;
    ++num_kept_;
  }
  kept_.resize(num_kept_);
  if (num_kept_ < stripes) {
    const int64_t first = num_kept_ * kStripeRows;
    scratch_.resize(std::min(rows_ - first, kStripeRows) * padded(rows_ - first));
  }
}

template <class T>
SimilarityStripe<T> Similarities<T>::stripe(int64_t index, int64_t columns) {
  const int64_t first = index * kStripeRows, rows = std::min(kStripeRows, rows_ - first);
  const bool kept = index < num_kept_;
  const int64_t made = kept ? rows_ - first : columns, stride = padded(made);
  const bool known = kept && kept_[index].get();
  if (kept && !known) kept_[index].resize(rows * stride);
  T* dots = kept ? kept_[index].get() : scratch_.get();
  if (!known) {
    const T* z = z_.get() + first * width_;
    multiply(matrix(z, rows, width_, width_, 1), matrix(z, width_, made, 1, width_), 0,
             matrix(dots, rows, made, stride, 1));
    // A product may round (a, b) and (b, a) differently; sums and gradient must see one value.
    for_each_range(rows, kStripeRows / 4, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        for (int64_t j = 0; j < r; ++j) dots[r * stride + j] = dots[j * stride + r];
      }
    });
  }
  return {
      dots, stride, first, rows, columns, first, T(scale_), class_begin_.data(), class_end_.data()};
}

template <class T>
void Similarities<T>::sum_exponentials(const int64_t* enter) {
  sum_ = per_row<double>();
  max_ = per_row<T>();
  log2_sum_ = per_row<T>();
  std::fill_n(max_.get(), rows_, T(running_max_ ? -4 : 1));  // below any similarity, or the bound
  const int64_t partials = padded(rows_) + kTileColumns;     // kStripeRows of each tile
  Buffer<T> row_max(running_max_ ? partials : 0), row_sum(partials);
  for_each_stripe(false, [&](const SimilarityStripe<T>& s) {
    for_each_tile(s, [&](int64_t tile, int64_t begin, int64_t end) {
      const ExpSums<T> sums = {enter, row_max.get() + tile * kStripeRows,
                               row_sum.get() + tile * kStripeRows, max_.get(), sum_.get()};
      (running_max_ ? kernels_.running_exp_sums : kernels_.exp_sums)(s, begin, end, sums);
    });
    for (int64_t i = 0; i < tiles(s) * kStripeRows; ++i) {
      if (i % kStripeRows >= s.rows) continue;
      const int64_t a = s.first + i % kStripeRows;
      if (running_max_) {
        add_running(a, row_max[i], row_sum[i]);
      } else {
        sum_[a] += double(row_sum[i]);
      }
    }
  });
  for (int64_t a = 0; a < rows_; ++a) log2_sum_[a] = T(std::log2(sum_[a]));
}

template <class T>
void Similarities<T>::add_running(int64_t a, T max, T sum) {
  const T top = std::max(max_[a], max);
  sum_[a] = sum_[a] * std::exp2(double(max_[a] - top) * scale_) +
            double(sum) * std::exp2(double(max - top) * scale_);
  max_[a] = top;
}

template <class T>
Tensor Similarities<T>::gradient(const WeightsKernels<T>& loops, const Buffer<T>& weight,
                                 T factor) {
  dz_.resize(rows_ * width_ + 16);
  std::memset(dz_.get(), 0, rows_ * width_ * sizeof(T));
  const int64_t panel_rows = std::min(padded(rows_), kPanelRows);
  if (bfloat16_) {
    h_bf16_.resize(kStripeRows * panel_rows);
    product_bf16_.resize(panel_rows * width_ + 16);
  } else {
    h_.resize(std::min(rows_, kStripeRows) * panel_rows);
  }
  const RowWeights<T> weights = row_weights(weight.get());
  for_each_stripe(false, [&](const SimilarityStripe<T>& s) {
    for (int64_t begin = 0, end; begin < s.columns; begin = end) {
      end = std::min(((s.first + begin) / kPanelRows + 1) * kPanelRows - s.first, s.columns);
      if constexpr (std::is_same_v<T, float>) {
        if (bfloat16_) {
          add_panel(s, weights, running_max_ ? loops.running_bf16 : loops.fixed_bf16,
                    WeightsPanel<uint16_t>{begin, end, h_bf16_.get(), panel_rows}, z_bf16_);
          continue;
        }
      }
      add_panel(s, weights, running_max_ ? loops.running : loops.fixed,
                WeightsPanel<T>{begin, end, h_.get(), panel_rows}, z_);
    }
    if (s.first / kStripeRows < num_kept_) kept_[s.first / kStripeRows].resize(0);
  });
  scratch_.resize(0);
  const Tensor grad = empty_cpu({all_rows_, width_}, scalar_type_of<T>());
  T* to = grad.template mutable_data_ptr<T>();
  if (rows_ < all_rows_) std::memset(to, 0, all_rows_ * width_ * sizeof(T));
  for_each_range(rows_, row_grain(width_), [&](int64_t begin, int64_t end) {
    kernels_.project_rows(dz_.get(), z_.get(), norm_.get(), order_.data(), begin, end, width_,
                          factor, to);
  });
  return grad;
}

// H is symmetric, so a panel H_IJ of its upper triangle serves twice: dZ_I += H_IJ Z_J and, right
// of the diagonal block, dZ_J += H_IJ^T Z_I.
template <class T>
template <class Number>
void Similarities<T>::add_panel(const SimilarityStripe<T>& s, const RowWeights<T>& weights,
                                WeightsLoop<T, Number> loop, const WeightsPanel<Number>& h,
                                const Buffer<Number>& z) {
  const int64_t D = width_, columns = h.end - h.begin, stride = h.stride;
  for_each_range(s.rows, std::max<int64_t>(1, (1 << 14) / columns),
                 [&](int64_t begin, int64_t end) { loop(s, begin, end, weights, h); });
  const Number* z_rows = z.get() + s.first * D;
  add_product(matrix(h.weights, s.rows, columns, stride, 1),
              matrix(z_rows + h.begin * D, columns, D, D, 1), s.first, s.rows);
  const int64_t diagonal = h.begin == 0 ? s.rows : 0, right = columns - diagonal;
  if (right == 0) return;
  add_product(matrix(h.weights + diagonal, right, s.rows, 1, stride),
              matrix(z_rows, s.rows, D, D, 1), s.first + h.begin + diagonal, right);
}

// dZ[first, first + rows) += a b. A product of bfloat16 matrices comes in bfloat16, so it is kept
// apart and added up in float32.
template <class T>
void Similarities<T>::add_product(const Tensor& a, const Tensor& b, int64_t first, int64_t rows) {
  T* dz = dz_.get() + first * width_;
  if (!bfloat16_) return multiply(a, b, 1, matrix(dz, rows, width_, width_, 1));
  multiply(a, b, 0, matrix(product_bf16_.get(), rows, width_, width_, 1));
  if constexpr (std::is_same_v<T, float>) {
    for_each_range(rows * width_, kGrain, [&](int64_t begin, int64_t end) {
      kernels_.add_bfloat16(&product_bf16_[begin], end - begin, dz + begin);
    });
  }
}

template class Similarities<float>;
template class Similarities<double>;

Tensor scaled_unit_grad(const Tensor& grad, const Tensor& unit_grad, ScalarType dtype) {
  const Arguments arguments("the contrastive losses", unit_grad);
  arguments.check_number("grad", grad);
  const ScalarType unit_dtype = unit_grad.scalar_type();
  arguments.check_unit("unit_grad", unit_grad, unit_dtype == ScalarType::Double,
                       {kAnySize, kAnySize});
  const Tensor upstream = contiguous_as(grad, unit_dtype);
  return unit_dtype == ScalarType::Double
             ? scaled(unit_grad, *upstream.const_data_ptr<double>(), dtype)
             : scaled(unit_grad, *upstream.const_data_ptr<float>(), dtype);
}

}  // namespace mcr
