// The loops of linear.h for one instruction set.
#pragma once

#include "cpu/linear_kernels.h"
#include "linear.h"

namespace mcr {
namespace MCR_ISA {

constexpr LinearKernels kLinearKernels = {linear_forward, linear_grad_z, linear_grad_w};

}  // namespace MCR_ISA
}  // namespace mcr
