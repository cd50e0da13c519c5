// Launcher of reconstruction_loss.
#include <torch/csrc/stable/library.h>

#include "cpu/tensors.h"
#include "dispatch.h"
#include "reconstruction_loss/arguments.h"

namespace mcr {
namespace {

constexpr int64_t kBlock = 1 << 14;  // elements summed in one go; a block's sum has a fixed place

// What the loops read: bfloat16, float32 and float64 as they are where all inputs are of that
// dtype; else, and float16, as float32, and with any float64 as float64: nothing is rounded.
ScalarType storage_type(const std::vector<Tensor>& latents, const Tensor& reconstruction) {
  ScalarType storage = reconstruction.scalar_type();
  for (const Tensor& z : latents) {
    if (z.scalar_type() == storage) continue;
    const bool is_double = z.scalar_type() == ScalarType::Double || storage == ScalarType::Double;
    storage = is_double ? ScalarType::Double : ScalarType::Float;
  }
  return storage == ScalarType::Half ? ScalarType::Float : storage;
}

// f(loops) for the storage.
template <class F>
auto with_loops(ScalarType storage, const F& f) {
  const ReconstructionLossKernels& kernels = cpu_kernels().reconstruction_loss;
  switch (storage) {
    case ScalarType::Double:
      return f(kernels.f64);
    case ScalarType::BFloat16:
      return f(kernels.bf16);
    default:
      return f(kernels.f32);
  }
}

struct Inputs {
  std::vector<Tensor> latents;  // [N, D_m]
  Tensor reconstruction;        // [N, sum of D_m]
  int64_t rows, width, block_rows;

  Inputs(const std::vector<Tensor>& given, const Tensor& h)
      : reconstruction(contiguous_as(h, storage_type(given, h))),
        rows(h.size(0)),
        width(h.size(1)) {
    for (const Tensor& z : given) latents.push_back(contiguous_as(z, reconstruction.scalar_type()));
    block_rows = std::max<int64_t>(1, kBlock / std::max<int64_t>(1, width));
  }

  // f(block, begin, end) for blocks of rows side by side.
  template <class F>
  void for_each_block(const F& f) const {
    for_each(blocks(), 4,
             [&](int64_t i) { f(i, i * block_rows, std::min(rows, (i + 1) * block_rows)); });
  }
  double count() const { return double(std::max<int64_t>(1, rows * width)); }
  int64_t blocks() const { return (rows + block_rows - 1) / block_rows; }
};

// Every modality beside its columns of the reconstruction.
std::vector<ReconstructionPart> parts_of(const Inputs& in) {
  std::vector<ReconstructionPart> parts;
  const char* h = data<const char>(in.reconstruction);
  for (const Tensor& z : in.latents) {
    ReconstructionPart part = {};
    part.latents = data<const void>(z);
    part.reconstruction = h;
    part.width = part.latents_stride = z.size(1);
    part.reconstruction_stride = part.grad_stride = in.width;
    parts.push_back(part);
    h += part.width * z.element_size();
  }
  return parts;
}

template <class T, class In>
Tensor forward(const ReconstructionLossLoops<T, In>& loops, const Inputs& in) {
  const auto parts = parts_of(in);
  std::vector<double> sums(in.blocks(), 0.0);
  in.for_each_block([&](int64_t block, int64_t begin, int64_t end) {
    for (const auto& part : parts) sums[block] += loops.squared_error(part, begin, end);
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  const Tensor loss = empty_cpu({}, scalar_type_of<T>());
  *data<T>(loss) = T(total / in.count());
  return loss;
}

template <class T, class In>
std::tuple<std::vector<Tensor>, Tensor> backward(const ReconstructionLossLoops<T, In>& loops,
                                                 const Tensor& grad, const Inputs& in) {
  auto parts = parts_of(in);
  const Tensor grad_h = torch::stable::empty_like(in.reconstruction);
  std::vector<Tensor> grads;
  In* to = data<In>(grad_h);
  for (size_t m = 0; m < parts.size(); ++m) {
    grads.push_back(torch::stable::empty_like(in.latents[m]));
    parts[m].grad_latents = data<void>(grads[m]);
    parts[m].grad_reconstruction = to;
    to += parts[m].width;
  }
  const T factor = T(2 * double(number_of<T>(grad)) / in.count());
  in.for_each_block([&](int64_t, int64_t begin, int64_t end) {
    for (const auto& part : parts) loops.squared_error_grad(part, begin, end, factor);
  });
  return {grads, grad_h};
}

Tensor reconstruction_loss_fwd_cpu(const std::vector<Tensor>& latents,  // M of [N, D_m]
                                   const Tensor& reconstruction) {      // [N, sum of D_m]
  check_parts(latents, reconstruction);
  const Inputs in(latents, reconstruction);
  return with_loops(in.reconstruction.scalar_type(),
                    [&](const auto& loops) { return forward(loops, in); });
}

std::tuple<std::vector<Tensor>, Tensor> reconstruction_loss_bwd_cpu(
    const Tensor& grad,                  // []
    const std::vector<Tensor>& latents,  // M of [N, D_m]
    const Tensor& reconstruction) {      // [N, sum of D_m]
  check_parts(latents, reconstruction).check_number("grad", grad);
  const Inputs in(latents, reconstruction);
  auto [grads, grad_h] = with_loops(in.reconstruction.scalar_type(),
                                    [&](const auto& loops) { return backward(loops, grad, in); });
  const auto cast = [](const Tensor& x, ScalarType dtype) {
    return x.scalar_type() == dtype ? x : torch::stable::to(x, dtype);
  };
  for (size_t m = 0; m < grads.size(); ++m) grads[m] = cast(grads[m], latents[m].scalar_type());
  return {grads, cast(grad_h, reconstruction.scalar_type())};
}

}  // namespace
}  // namespace mcr

STABLE_TORCH_LIBRARY_IMPL(mcr_fast, CPU, m) {
  m.impl("reconstruction_loss_fwd", TORCH_BOX(&mcr::reconstruction_loss_fwd_cpu));
  m.impl("reconstruction_loss_bwd", TORCH_BOX(&mcr::reconstruction_loss_bwd_cpu));
}
