// A block of the contrastive losses: anchors against columns that may be another process's rows.
// Both are sorted by label, so that a row's positives are one range of columns. Similarities are
// made in stripes of rows and panels of columns, and none of them is kept.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "contrastive/cpu/kernels.h"
#include "core/units.h"
#include "cpu/products.h"
#include "cpu/tensors.h"

namespace mcr {

// A stripe's similarities, and the columns that they are of, stay in cache from the product that
// makes them to the one that takes H. And torch's bfloat16 products keep a compiled kernel of half
// a megabyte for every shape and stride: panels have few.
constexpr int64_t kBlockRows = 256, kBlockColumns = 1024;

// Rows whose positives are found in one product: fewer, as only columns of their labels count.
constexpr int64_t kPairRows = 64;

// Rows of one set that count, by label.
struct SortedRows {
  std::vector<int64_t> order, codes;  // where each stood; its label

  SortedRows(const Tensor& given_codes, const OptionalTensor& marks) {
    const Tensor codes_of = contiguous_as(given_codes, ScalarType::Long);
    const int64_t* code = data<const int64_t>(codes_of);
    const OptionalTensor marks_of = marks ? contiguous_as(*marks, ScalarType::Bool) : marks;
    const bool* mark = marks_of ? data<const bool>(*marks_of) : nullptr;
    std::vector<std::pair<int64_t, int64_t>> sorted;
    sorted.reserve(codes_of.size(0));
    for (int64_t i = 0; i < codes_of.size(0); ++i) {
      if (!mark || mark[i]) sorted.emplace_back(code[i], i);
    }
    std::sort(sorted.begin(), sorted.end());
    for (const auto& [label, place] : sorted) {
      codes.push_back(label);
      order.push_back(place);
    }
  }
  int64_t size() const { return int64_t(order.size()); }
};

// A set of rows as the ops take it.
struct RowSet {
  const Tensor& x;              // [R, D]
  const Tensor& codes;          // [R]
  const OptionalTensor& marks;  // [R]
};

template <class T>
class Block {
 public:
  Block(const ContrastiveLoops<T>& of_rows, const RowSet& rows, const RowSet& columns,
        int64_t offset, double temperature)
      : loops_(of_rows),
        rows_(rows.codes, rows.marks),
        columns_(columns.codes, columns.marks),
        x_columns_(contiguous_as(columns.x, scalar_type_of<T>())),
        width_(rows.x.size(1)),
        scale_(kLog2e / temperature) {
    find_classes();
    find_own(offset, columns.codes.size(0));
    z_.resize(rows_.size() * width_ + 16);
    z_panel_.resize(std::min(columns_.size(), kBlockColumns) * width_ + 16);
    norm_.resize(std::max(rows_.size(), kBlockColumns) + 16);
    const Tensor x = contiguous_as(rows.x, scalar_type_of<T>());
    normalize(x, rows_, 0, rows_.size(), z_);
  }

  int64_t rows() const { return rows_.size(); }  // P: those that count
  const SortedRows& row_set() const { return rows_; }
  const SortedRows& column_set() const { return columns_; }
  double scale() const { return scale_; }  // log2(e) / temperature
  int64_t width() const { return width_; }
  // Whether powers of logits have to be kept in range one by one: 2^(-2 scale), the least there is,
  // and its inverse times any number of rows are then no numbers of float32.
  bool running() const { return !(2 * scale_ < 100); }
  int64_t positives(int64_t a) const {
    const bool own = own_[a] >= class_begin_[a] && own_[a] < class_end_[a];
    return class_end_[a] - class_begin_[a] - int64_t(own);
  }

  // f(stripe, z of its columns) for stripes of `height` rows, panel by panel; cut to the columns
  // that hold positives if only those count.
  template <class F>
  void for_each_stripe(int64_t height, bool positives_only, const F& f) {
    const int64_t P = rows_.size(), Q = columns_.size();
    Buffer<T> dots(std::min(height, P) * padded(std::min(kBlockColumns, Q)));
    for (int64_t panel = 0, stop; panel < Q; panel = stop) {
      stop = std::min(panel + kBlockColumns, Q);
      bool made = false;
      for (int64_t first = 0; first < P; first += height) {
        const int64_t count = std::min(height, P - first);
        const int64_t last = first + count - 1;
        const int64_t low = positives_only ? std::max(panel, class_begin_[first]) : panel;
        const int64_t high = positives_only ? std::min(stop, class_end_[last]) : stop;
        if (low >= high) continue;
        if (!made) normalize(x_columns_, columns_, panel, stop, z_panel_);
        made = true;
        const T* z_columns = z_panel_.get() + (low - panel) * width_;
        const int64_t stride = padded(high - low);
        multiply(matrix(z_.get() + first * width_, count, width_, width_, 1),
                 matrix(z_columns, width_, high - low, 1, width_), 0,
                 matrix(dots.get(), count, high - low, stride, 1));
        f(BlockStripe<T>{{dots.get(), stride, first, count, high - low, low, T(scale_),
                          class_begin_.data(), class_end_.data()},
                         own_.data()},
          z_columns);
      }
    }
  }

  // Strides are whole vectors of any instruction set and number type.
  static int64_t padded(int64_t columns) { return (columns + 15) / 16 * 16; }

 private:
  // Where the columns of each row's label begin and end.
  void find_classes() {
    const auto& codes = columns_.codes;
    class_begin_.resize(rows_.size());
    class_end_.resize(rows_.size());
    int64_t begin = 0, end = 0;
    for (int64_t a = 0; a < rows_.size(); ++a) {
      const int64_t code = rows_.codes[a];
      if (a == 0 || code != rows_.codes[a - 1]) {
        for (begin = end; begin < columns_.size() && codes[begin] < code;) ++begin;
        for (end = begin; end < columns_.size() && codes[end] == code;) ++end;
      }
      class_begin_[a] = begin;
      class_end_[a] = end;
    }
  }

  void find_own(int64_t offset, int64_t all_columns) {
    own_.assign(rows_.size(), -1);
    if (offset < 0) return;
    std::vector<int64_t> place(all_columns, -1);
    for (int64_t b = 0; b < columns_.size(); ++b) place[columns_.order[b]] = b;
    for (int64_t a = 0; a < rows_.size(); ++a) own_[a] = place[offset + rows_.order[a]];
  }

  void normalize(const Tensor& x, const SortedRows& of, int64_t first, int64_t stop,
                 const Buffer<T>& to) {
    const T* from = data<const T>(x);
    for_each_range(stop - first, grain_of(kCopyGrain, width_ + 1), [&](int64_t begin, int64_t end) {
      loops_.normalize_rows(from, of.order.data() + first, begin, end, width_, to.get(),
                            norm_.get());
    });
  }

  const ContrastiveLoops<T>& loops_;
  const SortedRows rows_, columns_;
  const Tensor x_columns_;  // [Q, D] as given
  const int64_t width_;
  const double scale_;
  std::vector<int64_t> class_begin_, class_end_, own_;
  Buffer<T> z_, z_panel_, norm_;
};

}  // namespace mcr
