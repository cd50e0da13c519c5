// Threads of a GPU that share a row, under the names of vector_team.h: in each step a thread has a
// piece of neighbouring numbers, which it reads and writes at once. It needs `to_float` and
// `assign` of the storage types: of cuda/blocks.h, or of whoever lets a host take the threads in
// turn.
#pragma once

#include <stdint.h>

#include "core/macros.h"

namespace mcr {
namespace MCR_ISA {

// The numbers of a piece: as many as 16 bytes of either storage hold.
constexpr int piece_of(int64_t bytes, int64_t other_bytes) {
  return bytes == 2 && other_bytes == 2 ? 8 : 4;
}

// log2 of the threads of a row, up to 256: four steps a row, so that several reads are under way.
inline int log_lanes_of(int64_t width, int piece) {
  int log_lanes = 0;
  while (log_lanes < 8 && (int64_t{4} << log_lanes) * piece < width) ++log_lanes;
  return log_lanes;
}

template <int kCount>
struct Piece {
  float x[kCount];

  template <class F>
  MCR_FN static Piece of(const F& number) {
    Piece piece;
    for (int i = 0; i < kCount; ++i) piece.x[i] = number(i);
    return piece;
  }
  MCR_FN Piece operator-() const {
    return of([&](int i) { return -x[i]; });
  }
  MCR_FN Piece operator-(const Piece& b) const {
    return of([&](int i) { return x[i] - b.x[i]; });
  }
  MCR_FN Piece operator*(const Piece& b) const {
    return of([&](int i) { return x[i] * b.x[i]; });
  }
  MCR_FN void operator+=(const Piece& b) {
    *this = of([&](int i) { return x[i] + b.x[i]; });
  }
  MCR_FN friend Piece operator*(float factor, const Piece& b) {
    return of([&](int i) { return factor * b.x[i]; });
  }
};

// 2^log_lanes threads side by side. Every piece lies at a multiple of its size, and a row is a
// whole number of pieces.
template <int kCount>
class PieceTeam {
 public:
  using V = Piece<kCount>;
  static constexpr int64_t kStepsPerSum = 64;

  MCR_FN PieceTeam(unsigned thread, int log_lanes)
      : log_lanes_(log_lanes), offset_(int(thread & ((1u << log_lanes) - 1)) * kCount) {}

  MCR_FN int64_t whole_steps(int64_t width) const { return (width / kCount) >> log_lanes_; }
  // Whether this thread has a piece in the last step, which need not reach all of them.
  MCR_FN bool has_rest(int64_t width) const { return at(whole_steps(width)) < width; }
  template <class In>
  MCR_FN V load(const In* row, int64_t n) const {
    const Stored<In> stored = *reinterpret_cast<const Stored<In>*>(row + at(n));
    return V::of([&](int i) { return to_float(stored.x[i]); });
  }
  template <class Out>
  MCR_FN void store(Out* row, int64_t n, const V& piece) const {
    Stored<Out> stored;
    for (int i = 0; i < kCount; ++i) assign(&stored.x[i], piece.x[i]);
    *reinterpret_cast<Stored<Out>*>(row + at(n)) = stored;
  }
  template <class In>
  MCR_FN V load_rest(const In* row, int64_t n, int64_t) const {
    return load(row, n);
  }
  template <class Out>
  MCR_FN void store_rest(Out* row, int64_t n, int64_t, const V& piece) const {
    store(row, n, piece);
  }
  MCR_FN double total(const V& piece) const {
    float sum = piece.x[0];
    for (int i = 1; i < kCount; ++i) sum += piece.x[i];
    return sum;
  }

 private:
  // Its alignment makes one instruction of a read or a write.
  template <class In>
  struct alignas(kCount * sizeof(In)) Stored {
    In x[kCount];
  };

  MCR_FN int64_t at(int64_t n) const { return (n << log_lanes_) * kCount + offset_; }

  int log_lanes_, offset_;
};

}  // namespace MCR_ISA
}  // namespace mcr
