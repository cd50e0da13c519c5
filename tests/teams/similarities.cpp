// The row algorithms of the contrastive losses on teams of the host, compiled as rows.cpp.
#include "similarities.h"

#include <math.h>

#include "contrastive/embedding_rows.h"
#include "contrastive/nt_xent.h"
#include "contrastive/sup_con.h"

namespace mcr {
namespace MCR_ISA {
namespace {

using Team = RowTeam<float>;

template <bool kRunningMax>
void rows(const ScaledStripe<float>& stripe, bool nt_xent, const RowResults<float>& to) {
  for (int64_t r = 0; r < stripe.rows; ++r) {
    if (stripe.first + r >= stripe.columns) continue;
    if (nt_xent) {
      NtXent::row<Team, kRunningMax>(stripe, r, to);
    } else {
      SupCon::row<Team, kRunningMax>(stripe, r, to);
    }
  }
}

template <bool kRunningMax>
void weights(const ScaledStripe<float>& stripe, bool nt_xent, const RowWeights<float>& rows,
             float* h) {
  for (int64_t r = 0; r < stripe.rows; ++r) {
    if (stripe.first + r >= stripe.columns) continue;
    const auto finish = [&](int64_t j, Vec<float> x) { return x * load(stripe.inverse + j); };
    const auto sink = [&](int64_t j, Vec<float> x) { store(h + r * stripe.stride + j, x); };
    if (nt_xent) {
      NtXent::weights<Team, kRunningMax>(stripe, r, 0, stripe.columns, rows, finish, sink);
    } else {
      SupCon::weights<Team, kRunningMax>(stripe, r, 0, stripe.columns, rows, finish, sink);
    }
  }
}

}  // namespace

void contrast_rows(const ScaledStripe<float>& stripe, bool nt_xent, bool running_max,
                   const RowResults<float>& to) {
  return running_max ? rows<true>(stripe, nt_xent, to) : rows<false>(stripe, nt_xent, to);
}

void contrast_weights(const ScaledStripe<float>& stripe, bool nt_xent, bool running_max,
                      const RowWeights<float>& rows, float* h) {
  return running_max ? weights<true>(stripe, nt_xent, rows, h)
                     : weights<false>(stripe, nt_xent, rows, h);
}

void scale_rows(const float* x, int64_t count, int64_t width, int64_t stride, int top, float* to,
                float* inverse, float* inverse_norm) {
  for (int64_t a = 0; a < count; ++a) {
    const float* from = x + a * stride;
    const RowScale scale = scale_row<Team>(
        width, top, [&](int64_t d) { return load(from + d); },
        [&](int64_t d, Vec<float> v) { store(to + a * stride + d, v); });
    inverse[a] = scale.inverse;
    inverse_norm[a] = scale.inverse_norm;
  }
}

void project_rows(const float* g, const float* scaled, int64_t count, int64_t width, int64_t stride,
                  const float* inverse, const float* inverse_norm, float factor, float* to) {
  for (int64_t a = 0; a < count; ++a) {
    project_row<Team>(
        width, {inverse[a], inverse_norm[a]}, factor,
        [&](int64_t d) { return load(g + a * stride + d); },
        [&](int64_t d) { return load(scaled + a * stride + d); },
        [&](int64_t d, Vec<float> v) { store(to + a * stride + d, v); });
  }
}

}  // namespace MCR_ISA
}  // namespace mcr
