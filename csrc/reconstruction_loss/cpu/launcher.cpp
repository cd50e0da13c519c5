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

const auto& loops_of(float, float) { return cpu_kernels().reconstruction_loss.f32; }
const auto& loops_of(double, double) { return cpu_kernels().reconstruction_loss.f64; }
const auto& loops_of(float, uint16_t) { return cpu_kernels().reconstruction_loss.bf16; }

// Runs f(T, In) for the arithmetic type and the storage type.
template <class F>
auto dispatch(ScalarType storage, const F& f) {
  switch (storage) {
    case ScalarType::Double:
      return f(double(), double());
    case ScalarType::BFloat16:
      return f(float(), uint16_t());
    default:
      return f(float(), float());
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
    for_each_range(blocks(), 4, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        f(i, i * block_rows, std::min(rows, (i + 1) * block_rows));
      }
    });
  }
  int64_t blocks() const { return (rows + block_rows - 1) / block_rows; }
};

// Every modality beside its columns of the reconstruction.
template <class In>
std::vector<ReconstructionPart<In, In>> parts_of(const Inputs& in) {
  std::vector<ReconstructionPart<In, In>> parts;
  const In* h = data<const In>(in.reconstruction);
  for (const Tensor& z : in.latents) {
    ReconstructionPart<In, In> part = {};
    part.latents = data<const In>(z);
    part.reconstruction = h;
    part.width = part.latents_stride = z.size(1);
    part.reconstruction_stride = part.grad_stride = in.width;
    parts.push_back(part);
    h += part.width;
  }
  return parts;
}

template <class T, class In>
Tensor forward(const Inputs& in) {
  const auto& loops = loops_of(T(), In());
  const auto parts = parts_of<In>(in);
  std::vector<double> sums(in.blocks(), 0.0);
  in.for_each_block([&](int64_t block, int64_t begin, int64_t end) {
    for (const auto& part : parts) sums[block] += loops.squared_error(part, begin, end);
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  const Tensor loss = empty_cpu({}, scalar_type_of<T>());
  const double count = double(std::max<int64_t>(1, in.rows * in.width));
  *data<T>(loss) = T(total / count);
  return loss;
}

template <class T, class In>
std::tuple<std::vector<Tensor>, Tensor> backward(T grad, const Inputs& in) {
  const auto& loops = loops_of(T(), In());
  auto parts = parts_of<In>(in);
  const Tensor grad_h = torch::stable::empty_like(in.reconstruction);
  std::vector<Tensor> grads;
  In* to = data<In>(grad_h);
  for (size_t m = 0; m < parts.size(); ++m) {
    grads.push_back(torch::stable::empty_like(in.latents[m]));
    parts[m].grad_latents = data<In>(grads[m]);
    parts[m].grad_reconstruction = to;
    to += parts[m].width;
  }
  const T factor = T(2 * double(grad) / double(std::max<int64_t>(1, in.rows * in.width)));
  in.for_each_block([&](int64_t, int64_t begin, int64_t end) {
    for (const auto& part : parts) loops.squared_error_grad(part, begin, end, factor);
  });
  return {grads, grad_h};
}

Tensor reconstruction_loss_fwd_cpu(const std::vector<Tensor>& latents,  // M of [N, D_m]
                                   const Tensor& reconstruction) {      // [N, sum of D_m]
  check_parts(latents, reconstruction);
  const Inputs in(latents, reconstruction);
  return dispatch(in.reconstruction.scalar_type(),
                  [&](auto T, auto In) { return forward<decltype(T), decltype(In)>(in); });
}

std::tuple<std::vector<Tensor>, Tensor> reconstruction_loss_bwd_cpu(
    const Tensor& grad,                  // []
    const std::vector<Tensor>& latents,  // M of [N, D_m]
    const Tensor& reconstruction) {      // [N, sum of D_m]
  check_parts(latents, reconstruction).check_number("grad", grad);
  const Inputs in(latents, reconstruction);
  auto [grads, grad_h] = dispatch(in.reconstruction.scalar_type(), [&](auto T, auto In) {
    using Arithmetic = decltype(T);
    const Tensor upstream = contiguous_as(grad, scalar_type_of<Arithmetic>());
    return backward<Arithmetic, decltype(In)>(*data<const Arithmetic>(upstream), in);
  });
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
