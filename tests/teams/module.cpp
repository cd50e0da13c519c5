// Python's way to rows.cpp and its neighbours. Memory comes as addresses of tensors that the caller
// keeps.
#include <pybind11/pybind11.h>

#include "permuted_divergence/options.h"
#include "reconstruction.h"
#include "teams.h"

namespace py = pybind11;

void add_similarities(py::module_& m);

namespace {

template <class T>
T* address(const py::dict& from, const char* name) {
  const py::object value = from[name];
  return value.is_none() ? nullptr : reinterpret_cast<T*>(value.cast<uintptr_t>());
}

// Into one whose other members are 0.
void read_problem(const py::dict& from, mcr::SidesProblem<float>& pr) {
  const auto number = [&](const char* name) { return from[name].cast<int64_t>(); };
  const auto text = [&](const char* name) { return from[name].cast<std::string>(); };
  pr.contributions = address<float>(from, "contributions");
  pr.bias = address<float>(from, "bias");
  pr.modalities = int(number("modalities"));
  pr.rows = number("rows");
  pr.classes = number("classes");
  pr.row_stride = number("row_stride");
  pr.permutations = number("permutations");
  pr.table = address<int32_t>(from, "table");
  pr.table_stride = pr.rows;
  pr.receivers = address<int32_t>(from, "receivers");
  pr.shifts = address<int64_t>(from, "shifts");
  pr.order = address<int64_t>(from, "order");
  pr.own_donors = number("own_donors") != 0;
  pr.exclude = mcr::exclude(text("exclude"));
  pr.labels = address<int64_t>(from, "labels");
  pr.present = address<uint32_t>(from, "present");
  pr.row_weight = address<float>(from, "row_weight");
  pr.may_drop = pr.present != nullptr || pr.exclude != mcr::Exclude::kNone;
  pr.subsets = address<uint32_t>(from, "subsets");
  pr.num_subsets = int(number("num_subsets"));
  pr.factors = address<float>(from, "factors");
  pr.outsider = mcr::outsider(text("strategy"));
  pr.clean_path = mcr::clean_path(text("clean_path"));
  pr.divergence = mcr::divergence_kind(text("divergence"));
  pr.want_grad = number("want_grad") != 0;
  pr.row_values = address<double>(from, "row_values");
  pr.grad = address<float>(from, "grad");
  pr.grad_bias_rows = address<float>(from, "grad_bias_rows");
}

void pull(int lanes, const py::dict& from, int64_t chunk, int64_t spare_steps, int parts) {
  const auto run = lanes == 4   ? mcr::lanes4::pull
                   : lanes == 8 ? mcr::lanes8::pull
                                : mcr::lanes32::pull;
  mcr::SidesProblem<float> pr = {};
  read_problem(from, pr);
  run(pr, chunk, spare_steps, parts);
}

void pull_far(int lanes, const py::dict& from, int64_t chunk, int parts) {
  mcr::FarProblem<float> pr = {};
  read_problem(from, pr);
  pr.powers = address<float>(from, "powers");
  pr.bias_powers = address<float>(from, "bias_powers");
  pr.left = address<int32_t>(from, "left");
  const auto run = lanes == 4   ? mcr::lanes4::pull_far
                   : lanes == 8 ? mcr::lanes8::pull_far
                                : mcr::lanes32::pull_far;
  run(pr, chunk, parts);
}

void hold(int lanes, const py::dict& from, int64_t spare_steps, int parts) {
  mcr::RowDivergenceProblem<float> pr = {};
  pr.perturbed = address<float>(from, "perturbed");
  pr.clean = address<float>(from, "clean");
  pr.start = address<int64_t>(from, "start");
  pr.members = address<int64_t>(from, "members");
  pr.row_weight = address<float>(from, "row_weight");
  pr.classes = from["classes"].cast<int64_t>();
  pr.divergence = mcr::divergence_kind(from["divergence"].cast<std::string>());
  pr.factor = 1.0f / float(mcr::traits_of(pr.divergence).terms(pr.classes));
  pr.want_grad = from["want_grad"].cast<bool>();
  pr.grad_perturbed = address<float>(from, "grad_perturbed");
  pr.grad_clean = address<float>(from, "grad_clean");
  const auto run = lanes == 4   ? mcr::lanes4::hold
                   : lanes == 8 ? mcr::lanes8::hold
                                : mcr::lanes32::hold;
  run(pr, from["rows"].cast<int64_t>(), spare_steps, parts, address<double>(from, "sums"));
}

double reconstruct(const py::dict& from) {
  mcr::ReconstructionRun given = {};
  given.part.latents = address<void>(from, "latents");
  given.part.reconstruction = address<void>(from, "reconstruction");
  given.part.latents_stride = from["latents_stride"].cast<int64_t>();
  given.part.reconstruction_stride = from["reconstruction_stride"].cast<int64_t>();
  given.part.width = from["width"].cast<int64_t>();
  given.part.grad_latents = address<void>(from, "grad_latents");
  given.part.grad_reconstruction = address<void>(from, "grad_reconstruction");
  given.part.grad_stride = from["grad_stride"].cast<int64_t>();
  given.rows = from["rows"].cast<int64_t>();
  given.blocks = from["blocks"].cast<int64_t>();
  given.latents_bytes = from["latents_bytes"].cast<int>();
  given.reconstruction_bytes = from["reconstruction_bytes"].cast<int>();
  given.in_pieces = from["in_pieces"].cast<bool>();
  given.factor = from["factor"].cast<float>();
  return mcr::threads::reconstruct(given);
}

}  // namespace

PYBIND11_MODULE(mcr_teams, m) {
  m.def("pull", &pull);
  m.def("pull_far", &pull_far);
  m.def("hold", &hold);
  m.def("reconstruct", &reconstruct);
  add_similarities(m);
}
