// What similarities.cpp is compiled for: the teams of teams.h.
#pragma once

#include "contrastive/stripe.h"

// `nt_xent`: that loss, otherwise sup_con. Strides leave room for whole vectors.
#define MCR_TEAM_OF_SIMILARITIES(NAME)                                                             \
  namespace NAME {                                                                                 \
  void contrast_rows(const ScaledStripe<float>& stripe, bool nt_xent, bool running_max,            \
                     const RowResults<float>& to);                                                 \
  void contrast_weights(const ScaledStripe<float>& stripe, bool nt_xent, bool running_max,         \
                        const RowWeights<float>& rows, float* h);                                  \
  void scale_rows(const float* x, int64_t rows, int64_t width, int64_t stride, int top, float* to, \
                  float* inverse, float* inverse_norm);                                            \
  void project_rows(const float* g, const float* scaled, int64_t rows, int64_t width,              \
                    int64_t stride, const float* inverse, const float* inverse_norm, float factor, \
                    float* to);                                                                    \
  }

namespace mcr {
MCR_TEAM_OF_SIMILARITIES(lanes4)
MCR_TEAM_OF_SIMILARITIES(lanes8)
MCR_TEAM_OF_SIMILARITIES(lanes32)
}  // namespace mcr
