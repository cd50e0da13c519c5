// The schemas of every op, once. A backend adds its kernels in its own files with
// STABLE_TORCH_LIBRARY_IMPL; fakes and autograd are added in Python, in mcr_fast/ops/<op>.py.
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include <string>

#include "dispatch.h"

#if defined(__clang__)
#define MCR_COMPILER "clang " __clang_version__
#elif defined(__GNUC__)
#define MCR_COMPILER "gcc " __VERSION__
#else
#define MCR_COMPILER "unknown compiler"
#endif

namespace mcr {
namespace {

// Empty `request`: what is active. Otherwise makes that instruction set active first.
std::string cpu_capability(const std::string& request) {
  STD_TORCH_CHECK(request.empty() || set_cpu_capability(request.c_str()), "cpu_capability: '",
                  request, "' is not available; this CPU and this build offer: ",
                  cpu_capabilities(/*runnable_only=*/true));
  return cpu_kernels().capability;
}

std::string build_info() {
  constexpr unsigned long long target = TORCH_TARGET_VERSION;
  return std::string(MCR_COMPILER) + "; torch stable ABI " + std::to_string(target >> 56) + "." +
         std::to_string((target >> 48) & 0xff) +
         "; cpu: " + cpu_capabilities(/*runnable_only=*/false);
}

}  // namespace
}  // namespace mcr

STABLE_TORCH_LIBRARY(mcr_fast, m) {
  m.def("cpu_capability(str request) -> str");
  m.def("build_info() -> str");
  m.def("first_non_permutation(Tensor rows) -> Tensor");

  m.def(
      "permuted_divergence_fwd(Tensor contributions, Tensor? bias, Tensor? order, Tensor? donors, "
      "Tensor? labels, Tensor? present, Tensor? sample_weight, int[] subsets, str strategy, "
      "str clean_path, str divergence, str exclude, bool want_grad) "
      "-> (Tensor divergences, Tensor unit_grad, Tensor unit_grad_bias)");
  m.def(
      "permuted_divergence_bwd(Tensor grad, Tensor unit_grad, Tensor unit_grad_bias, "
      "Tensor contributions, Tensor? bias, Tensor? order, Tensor? donors, Tensor? labels, "
      "Tensor? present, Tensor? sample_weight, int[] subsets, str strategy, str clean_path, "
      "str divergence, str exclude) -> (Tensor grad_contributions, Tensor grad_bias)");

  m.def(
      "linear_permuted_divergence_fwd(Tensor[] latents, Tensor weight, Tensor? bias, "
      "Tensor? order, Tensor? donors, Tensor? labels, Tensor? present, Tensor? sample_weight, "
      "int[] subsets, str strategy, str clean_path, str divergence, str exclude, bool want_grad) "
      "-> (Tensor divergences, Tensor unit_grad, Tensor unit_grad_bias, Tensor contributions)");
  m.def(
      "linear_permuted_divergence_bwd(Tensor? grad, Tensor unit_grad, Tensor unit_grad_bias, "
      "Tensor contributions, Tensor? grad_contributions, int[] wanted, Tensor[] latents, "
      "Tensor weight, Tensor? bias, Tensor? order, Tensor? donors, Tensor? labels, "
      "Tensor? present, Tensor? sample_weight, int[] subsets, str strategy, str clean_path, "
      "str divergence, str exclude) "
      "-> (Tensor[] grad_latents, Tensor grad_weight, Tensor grad_bias)");

  m.def(
      "regularizer_fwd(Tensor[] latents, Tensor weight, Tensor? bias, Tensor? order, "
      "Tensor? donors, Tensor? labels, Tensor? present, Tensor? sample_weight, int[] subsets, "
      "str strategy, str clean_path, str divergence, str exclude, Tensor classes, "
      "str contrastive, float temperature, float mipd_weight, float contrastive_weight, "
      "bool want_grad) "
      "-> (Tensor loss, Tensor mipd, Tensor contrastive, Tensor logits, Tensor divergences, "
      "Tensor importance, Tensor unit_grad, Tensor unit_grad_bias, Tensor unit_grad_rows)");
  m.def(
      "regularizer_bwd(Tensor? grad_loss, Tensor? grad_mipd, Tensor? grad_contrastive, "
      "Tensor? grad_logits, Tensor unit_grad, Tensor unit_grad_bias, Tensor unit_grad_rows, "
      "float mipd_weight, float contrastive_weight, int[] wanted, Tensor[] latents, "
      "Tensor weight) -> (Tensor[] grad_latents, Tensor grad_weight, Tensor grad_bias)");

  m.def(
      "row_divergence_fwd(Tensor perturbed, Tensor clean, Tensor rows, Tensor? row_weight, "
      "str divergence, bool want_grad, bool notes, bool mean) "
      "-> (Tensor total, Tensor weight, Tensor of_perturbed, Tensor unit_grad_clean)");
  m.def(
      "row_divergence_bwd(Tensor grad, Tensor? weight, Tensor of_perturbed, "
      "Tensor unit_grad_clean, Tensor perturbed, Tensor clean, Tensor rows, Tensor? row_weight, "
      "str divergence, bool notes) -> (Tensor grad_perturbed, Tensor grad_clean)");

  m.def(
      "nt_xent_fwd(Tensor embeddings, Tensor labels, Tensor? present, float temperature, "
      "bool want_grad) -> (Tensor loss, Tensor unit_grad)");
  m.def("nt_xent_bwd(Tensor grad, Tensor unit_grad, ScalarType dtype) -> Tensor");

  m.def(
      "sup_con_fwd(Tensor embeddings, Tensor labels, Tensor? present, float temperature, "
      "bool want_grad) -> (Tensor loss, Tensor unit_grad)");
  m.def("sup_con_bwd(Tensor grad, Tensor unit_grad, ScalarType dtype) -> Tensor");

  m.def(
      "contrastive_sums(Tensor rows, Tensor row_codes, Tensor? row_marks, Tensor columns, "
      "Tensor column_codes, Tensor? column_marks, int offset, str loss, float temperature) "
      "-> Tensor");
  m.def(
      "contrastive_pairs(Tensor rows, Tensor row_codes, Tensor? row_marks, Tensor columns, "
      "Tensor column_codes, Tensor? column_marks, int offset, str loss, Tensor log_sum, "
      "float temperature) -> (Tensor loss, Tensor count, Tensor log_weight)");
  m.def(
      "contrastive_gradient(Tensor rows, Tensor row_codes, Tensor? row_marks, Tensor columns, "
      "Tensor column_codes, Tensor? column_marks, int offset, str loss, Tensor row_stats, "
      "Tensor column_stats, float temperature) -> Tensor");

  m.def("reconstruction_loss_fwd(Tensor[] latents, Tensor reconstruction) -> Tensor");
  m.def(
      "reconstruction_loss_bwd(Tensor grad, Tensor[] latents, Tensor reconstruction) "
      "-> (Tensor[] grad_latents, Tensor grad_reconstruction)");
}

// Not tied to a device: they take no tensor.
STABLE_TORCH_LIBRARY_IMPL(mcr_fast, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&mcr::cpu_capability));
  m.impl("build_info", TORCH_BOX(&mcr::build_info));
}
