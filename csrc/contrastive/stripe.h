// What the launchers of the contrastive losses tell their row algorithms. Plain data, one
// definition for every instruction set.
#pragma once

#include <stdint.h>

#include "core/units.h"

namespace mcr {

// Columns a tile has at most. A tile has one owner, so what it adds up per column needs no atomics.
constexpr int kTileColumns = 256;

// A stripe of the similarity matrix: rows a = first .. first + rows - 1 of the batch against the
// columns b = first_column .. . The rows are sorted by label, so the rows of a's label are the
// range [class_begin[a], class_end[a]). Columns are counted from `first_column` in dots and in tile
// bounds, from 0 in all that is per row of the batch; that memory has a vector to spare at its end.
template <class T>
struct SimilarityStripe {
  T* dots;         // [rows, stride] z_a . z_b
  int64_t stride;  // a multiple of any vector width, >= columns
  int64_t first, rows, columns;
  int64_t first_column;
  T scale;                     // log2(e) / temperature
  const int64_t* class_begin;  // [P]
  const int64_t* class_end;    // [P]
};

// Sums of 2^((z_a . z_b - max) * scale) for each row a; a max is a similarity, 1 where none is
// kept.
template <class T>
struct ExpSums {
  const int64_t* enter;  // [P] first column > a that row a sums
  T* row_max;            // [rows] of this tile
  T* row_sum;            // [rows] of this tile
  T* max;                // [P] so far; the tile updates its columns
  double* sum;           // [P] likewise
};

// The sums when they are complete, as the gradient needs them.
template <class T>
struct RowWeights {
  const T* weight;    // [P] over the sum
  const T* max;       // [P]
  const T* log2_sum;  // [P]
};

// What rows leave once all their columns are known.
template <class T>
struct RowResults {
  double* loss;                // [P] in units of log2
  T *weight, *max, *log2_sum;  // [P] RowWeights
};

// Columns [begin, end) of a stripe's H; begin is a multiple of any vector width.
template <class Out>
struct WeightsPanel {
  int64_t begin, end;
  Out* weights;    // [rows, stride]
  int64_t stride;  // room for whole vectors
};

}  // namespace mcr
