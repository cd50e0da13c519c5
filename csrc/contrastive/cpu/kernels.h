#pragma once

#include "contrastive/block.h"
#include "contrastive/stripe.h"
#include "core/by_type.h"

namespace mcr {

// H of rows [begin, end) of a stripe; see nt_xent.h and sup_con.h.
template <class T, class Out>
using WeightsLoop = void (*)(const SimilarityStripe<T>&, int64_t begin, int64_t end,
                             const RowWeights<T>&, const WeightsPanel<Out>&);

template <class T>
struct WeightsLoops {
  WeightsLoop<T, T> fixed, running;                   // whether the sums have a running maximum
  WeightsLoop<T, uint16_t> fixed_bf16, running_bf16;  // float only
};

template <class T>
struct ContrastiveLoops {
  void (*normalize_rows)(const T* x, const int64_t* order, int64_t begin, int64_t end,
                         int64_t width, T* z, T* norm);
  void (*triangle)(const T* z, int64_t begin, int64_t end, int64_t rows, int64_t width, T* dots,
                   int64_t stride);
  void (*weighted_rows)(const T* h, int64_t stride, const T* z, int64_t begin, int64_t end,
                        int64_t rows, int64_t width, T* dz);
  void (*exp_sums)(const SimilarityStripe<T>&, int64_t begin, int64_t end, const ExpSums<T>&);
  void (*running_exp_sums)(const SimilarityStripe<T>&, int64_t begin, int64_t end,
                           const ExpSums<T>&);
  void (*project_rows)(const T* g, const T* z, const T* norm, const int64_t* order, int64_t begin,
                       int64_t end, int64_t width, T factor, T* grad_x);
  void (*to_bfloat16)(const float* from, int64_t n, uint16_t* to);
  void (*add_bfloat16)(const uint16_t* from, int64_t n, float* to);
  // Of one loss: its positive pairs' sum, and what row_c and c get of them, if it needs that.
  double (*positives)(const SimilarityStripe<T>&, int64_t begin, int64_t end, const RowWeights<T>&,
                      T* row_c, double* c);
  WeightsLoops<T> weights;
};

// H of rows [begin, end) of a stripe of a block, of what is known of its rows and its columns.
template <class T, class Out>
using BlockWeightsLoop = void (*)(const BlockStripe<T>&, int64_t begin, int64_t end,
                                  const BlockStats<T>& rows, const BlockStats<T>& columns,
                                  const WeightsPanel<Out>&);

template <class T>
struct BlockWeightsLoops {
  BlockWeightsLoop<T, T> fixed, running;
  BlockWeightsLoop<T, uint16_t> fixed_bf16, running_bf16;  // float only
};

// Of one loss, over rows [begin, end) of a stripe; see block_loops.h.
template <class T>
struct BlockLoops {
  void (*sums)(const BlockStripe<T>&, int64_t begin, int64_t end, const PartialSums<T>&);
  void (*running_sums)(const BlockStripe<T>&, int64_t begin, int64_t end, const PartialSums<T>&);
  void (*pairs)(const BlockStripe<T>&, int64_t begin, int64_t end, const BlockPairs<T>&);
  BlockWeightsLoops<T> weights;
};

struct ContrastiveKernels {
  ByType<ContrastiveLoops> nt_xent, sup_con;
  ByType<BlockLoops> nt_xent_blocks, sup_con_blocks;
};

}  // namespace mcr
