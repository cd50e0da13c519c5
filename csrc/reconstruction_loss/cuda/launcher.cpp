// CUDA launcher of reconstruction_loss: modalities of one dtype run together, each of them beside
// its own columns of the reconstruction.
#include "cuda/tensors.h"
#include "reconstruction_loss/arguments.h"
#include "reconstruction_loss/cuda/kernels.h"
#include "reconstruction_loss/piece_team.h"

namespace mcr {
namespace cuda {
namespace {

// x itself where the numbers of a row lie side by side.
Tensor with_rows(const Tensor& x) {
  return x.size(1) <= 1 || x.stride(1) == 1 ? x : torch::stable::contiguous(x);
}

bool multiple(const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

struct Launches {
  std::vector<Tensor> latents;  // [N, D_m]
  Tensor reconstruction;        // [N, sum of D_m]
  int64_t rows, elements;
  std::vector<ReconstructionParts> all;

  Launches(const std::vector<Tensor>& given, const Tensor& h)
      : reconstruction(with_rows(h)), rows(h.size(0)), elements(h.numel()) {
    int64_t column = 0;
    for (const Tensor& z : given) {
      latents.push_back(with_rows(z));
      storage_of(z);  // refuses float64
      if (rows > 0 && z.size(1) > 0) add(int64_t(latents.size()) - 1, column);
      column += z.size(1);
    }
  }

  double mean() const { return 1.0 / double(std::max<int64_t>(1, elements)); }

  // With somewhere to write the gradients: theirs of the latents, and that of the reconstruction.
  void write_to(const std::vector<Tensor>& grads, const Tensor& grad_h) {
    char* to = data<char>(grad_h);
    for (size_t m = 0, at = 0, within = 0; m < grads.size(); ++m) {
      const int64_t width = grads[m].size(1);
      if (rows == 0 || width == 0) continue;
      if (within == size_t(all[at].count)) ++at, within = 0;
      ReconstructionPart& part = all[at].parts[within++];
      part.grad_latents = data<void>(grads[m]);
      part.grad_reconstruction = to;
      part.grad_stride = grad_h.size(1);
      to += width * grad_h.element_size();
    }
  }

 private:
  void add(int64_t m, int64_t column) {
    const Tensor& z = latents[m];
    const int64_t z_bytes = z.element_size(), h_bytes = reconstruction.element_size();
    ReconstructionPart part = {};
    part.latents = data<const void>(z);
    part.reconstruction = data<const char>(reconstruction) + column * h_bytes;
    part.latents_stride = z.stride(0);
    part.reconstruction_stride = reconstruction.stride(0);
    part.width = z.size(1);
    const int piece = piece_of(z_bytes, h_bytes);
    // the gradients begin where torch's allocator lets a tensor begin, far more than 16 bytes apart
    const bool in_pieces =
        part.width % piece == 0 && column % piece == 0 && reconstruction.size(1) % piece == 0 &&
        part.latents_stride % piece == 0 && part.reconstruction_stride % piece == 0 &&
        multiple(part.latents, z_bytes * piece) && multiple(part.reconstruction, h_bytes * piece);
    const Storage storage = storage_of(z);
    if (all.empty() || all.back().count == kMaxParts || all.back().latents != storage ||
        all.back().in_pieces != in_pieces) {
      ReconstructionParts next = {};
      next.rows = rows;
      next.in_pieces = in_pieces;
      next.latents = storage;
      next.reconstruction = storage_of(reconstruction);
      all.push_back(next);
    }
    ReconstructionParts& parts = all.back();
    parts.parts[parts.count] = part;
    parts.log_lanes[parts.count++] = log_lanes_of(part.width, in_pieces ? piece : 1);
  }
};

Tensor reconstruction_loss_fwd_cuda(const std::vector<Tensor>& latents,  // M of [N, D_m]
                                    const Tensor& reconstruction) {      // [N, sum of D_m]
  check_parts(latents, reconstruction);
  const OnDeviceOf device(reconstruction);
  const Launches launches(latents, reconstruction);
  int64_t count = 0;
  for (const ReconstructionParts& parts : launches.all) count += parts.count * blocks_of(parts);
  const Tensor partial = empty_beside(reconstruction, {count}, ScalarType::Double);
  double* to = data<double>(partial);
  for (const ReconstructionParts& parts : launches.all) {
    sum_squared_errors(parts, launches.mean(), to, device.stream());
    to += parts.count * blocks_of(parts);
  }
  const Tensor loss = empty_beside(reconstruction, {}, ScalarType::Float);
  sum_values(data<double>(partial), 1, count, data<float>(loss), nullptr, device.stream());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return loss;
}

std::tuple<std::vector<Tensor>, Tensor> reconstruction_loss_bwd_cuda(
    const Tensor& grad,                  // []
    const std::vector<Tensor>& latents,  // M of [N, D_m]
    const Tensor& reconstruction) {      // [N, sum of D_m]
  check_parts(latents, reconstruction).check_number("grad", grad);
  const OnDeviceOf device(reconstruction);
  const Tensor upstream = contiguous_as(grad, ScalarType::Float);
  Launches launches(latents, reconstruction);
  const Tensor grad_h =
      empty_beside(reconstruction, reconstruction.sizes(), reconstruction.scalar_type());
  std::vector<Tensor> grads;
  for (const Tensor& z : latents) {
    grads.push_back(empty_beside(z, z.sizes(), z.scalar_type()));
  }
  launches.write_to(grads, grad_h);
  for (const ReconstructionParts& parts : launches.all) {
    grad_squared_errors(parts, 2 * launches.mean(), data<const float>(upstream), device.stream());
  }
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {grads, grad_h};
}

}  // namespace
}  // namespace cuda
}  // namespace mcr

STABLE_TORCH_LIBRARY_IMPL(mcr_fast, CUDA, m) {
  m.impl("reconstruction_loss_fwd", TORCH_BOX(&mcr::cuda::reconstruction_loss_fwd_cuda));
  m.impl("reconstruction_loss_bwd", TORCH_BOX(&mcr::cuda::reconstruction_loss_bwd_cuda));
}
