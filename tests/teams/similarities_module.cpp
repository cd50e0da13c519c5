// Python's way to similarities.cpp.
#include <pybind11/pybind11.h>

#include "similarities.h"

namespace py = pybind11;

namespace {

template <class T>
T* address(uintptr_t at) {
  return reinterpret_cast<T*>(at);
}

#define MCR_CALL(LANES, FUNCTION, ...)  \
  (LANES == 4   ? mcr::lanes4::FUNCTION \
   : LANES == 8 ? mcr::lanes8::FUNCTION \
                : mcr::lanes32::FUNCTION)(__VA_ARGS__)

mcr::ScaledStripe<float> stripe_of(const py::dict& from) {
  const auto number = [&](const char* name) { return from[name].cast<int64_t>(); };
  const auto at = [&](const char* name) { return from[name].cast<uintptr_t>(); };
  mcr::ScaledStripe<float> stripe = {};
  stripe.dots = address<float>(at("dots"));
  stripe.stride = number("stride");
  stripe.first = number("first");
  stripe.rows = number("rows");
  stripe.columns = number("columns");
  stripe.scale = from["scale"].cast<float>();
  stripe.class_begin = address<int64_t>(at("class_begin"));
  stripe.class_end = address<int64_t>(at("class_end"));
  stripe.inverse = address<float>(at("inverse"));
  return stripe;
}

void contrast_rows(int lanes, const py::dict& stripe, bool nt_xent, bool running_max,
                   uintptr_t loss, uintptr_t weight, uintptr_t max, uintptr_t log2_sum,
                   uintptr_t c) {
  const mcr::RowResults<float> to = {address<double>(loss), address<float>(weight),
                                     address<float>(max), address<float>(log2_sum),
                                     address<float>(c)};
  MCR_CALL(lanes, contrast_rows, stripe_of(stripe), nt_xent, running_max, to);
}

void contrast_weights(int lanes, const py::dict& stripe, bool nt_xent, bool running_max,
                      uintptr_t weight, uintptr_t max, uintptr_t log2_sum, uintptr_t h) {
  const mcr::RowWeights<float> rows = {address<float>(weight), address<float>(max),
                                       address<float>(log2_sum)};
  MCR_CALL(lanes, contrast_weights, stripe_of(stripe), nt_xent, running_max, rows,
           address<float>(h));
}

void scale_rows(int lanes, uintptr_t x, int64_t rows, int64_t width, int64_t stride, int top,
                uintptr_t to, uintptr_t inverse, uintptr_t inverse_norm) {
  MCR_CALL(lanes, scale_rows, address<float>(x), rows, width, stride, top, address<float>(to),
           address<float>(inverse), address<float>(inverse_norm));
}

void project_rows(int lanes, uintptr_t g, uintptr_t scaled, int64_t rows, int64_t width,
                  int64_t stride, uintptr_t inverse, uintptr_t inverse_norm, float factor,
                  uintptr_t to) {
  MCR_CALL(lanes, project_rows, address<float>(g), address<float>(scaled), rows, width, stride,
           address<float>(inverse), address<float>(inverse_norm), factor, address<float>(to));
}

}  // namespace

void add_similarities(py::module_& m) {
  m.def("contrast_rows", &contrast_rows);
  m.def("contrast_weights", &contrast_weights);
  m.def("scale_rows", &scale_rows);
  m.def("project_rows", &project_rows);
}
