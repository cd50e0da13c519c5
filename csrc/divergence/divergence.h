// A divergence between one clean row z and one perturbed row w with its gradients to both: the row
// algorithm that permuted_divergence and row_divergence share, on every team. A divergence is a
// type with these static members. D and its gradients to the rows are in nats; what goes from one
// member to another, `acc` too, is in units of the divergence's own. InOnePass has three of the
// members for a divergence that goes class by class.
//
//   kTraits          its line of kDivergences
//   prepare          what all rows held against z need of it, into CleanRow; returns log2 of its
//                    normaliser, and in `top` its largest logit: 0 without a softmax
//   first_pass       what has to be known of the whole of w before its terms: its mass, as a power
//                    of two and a rest (`total`); or nothing (InOnePass)
//   second_pass      D of the pair in nats, never below 0, summed over the classes: the op divides
//                    it by traits.terms(); with kGrad also sink(n, dD/dw), and the terms of dD/dz
//                    added up in `acc`, both times the pair's weight
//   clean_part       what of z the donor side keeps
//   perturbed_grad   dD/dw of a class again, from clean_part and what the passes left
//   clean_kl, of_clean, clean_grad    dD/dz from `acc`, once for all pairs of z
//
// Rows are padded to whole vectors. For all but a softmax z and w hold 0 there, and D has to be 0
// of that. An infinite number gives NaN, even where both rows have it (`poison`).
#pragma once

#include "divergence/binary_jsd.h"
#include "divergence/jsd.h"
#include "divergence/squared_error.h"

namespace mcr {
namespace MCR_ISA {

// f(D()) for the divergence of that kind.
template <class F>
auto with_divergence(DivergenceKind kind, const F& f) {
  switch (kind) {
    case DivergenceKind::kJsd:
      return f(Jsd());
    case DivergenceKind::kSquaredError:
      return f(SquaredError());
    case DivergenceKind::kBinaryJsd:
      return f(BinaryJsd());
  }
  __builtin_unreachable();
}

}  // namespace MCR_ISA
}  // namespace mcr
