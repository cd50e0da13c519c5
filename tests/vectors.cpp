// The functions of csrc/core/vec.h beside the C library's in double, for an emulated machine.
// Prints a line for each; the exit status says whether all are near enough.
#define MCR_ISA portable
#define MCR_VEC_BYTES 16
#include <stdio.h>

#include <initializer_list>

#include "core/bfloat16.h"
#include "core/team.h"

using namespace mcr::portable;
using V = Vec<float>;

namespace {

constexpr double kEps = 1.1920929e-7, kLog2e = 1.44269504088896340736;
bool good = true;

// Polynomials to 1e-8 and a few roundings.
struct Worst {
  const char* name;
  double error = 0;

  void see(double got, double expected) {
    const double relative = fabs(got - expected) / fabs(expected);
    if (!(relative <= error)) error = relative;
  }
  void report() const {
    printf("%s: %.2g\n", name, error);
    good = good && error <= 4 * kEps;
  }
};

void expect(const char* what, bool holds) {
  printf("%s: %s\n", what, holds ? "right" : "WRONG");
  good = good && holds;
}

void functions() {
  Worst power{"exp2"}, less_one{"exp2_and_m1"}, logarithm{"log2"}, of_sum{"log2_1p"};
  for (float first = -120; first < 120; first += 0.01f) {
    const V x = splat(first) + V{0.001f, 0.003f, 0.006f, 0.009f};
    const V below = minus_abs(x) * 0.01f;
    V m1;
    const V y = exp2(x), t = exp2_and_m1(below, m1), log_y = log2(y), log_t = log2_1p(t);
    for (int l = 0; l < 4; ++l) {
      power.see(y[l], ::exp2(double(x[l])));
      less_one.see(m1[l], ::expm1(below[l] / kLog2e));
      if (fabs(x[l]) > 1e-3) logarithm.see(log_y[l], ::log2(double(y[l])));
      of_sum.see(log_t[l], ::log1p(double(t[l])) * kLog2e);
    }
  }
  for (const Worst& each : {power, less_one, logarithm, of_sum}) each.report();
}

void lanes() {
  const V nan = splat(float(NAN));
  expect("NaN", isnan(exp2(nan)[0]) && isnan(log2(nan)[0]) && isinf(log2(V{})[0]));
  expect("sum", sum(V{1, 2, 3, 4}) == 10 && any(V{0, 0, 0, 1} > 0.0f) && !any(V{} > 0.0f));
  V q[4] = {{0, 1, 2, 3}, {4, 5, 6, 7}, {8, 9, 10, 11}, {12, 13, 14, 15}};
  transpose_quads(q);
  bool transposed = true;
  for (int k = 0; k < 4; ++k) {
    for (int l = 0; l < 4; ++l) transposed = transposed && q[k][l] == l * 4 + k;
  }
  expect("transpose_quads", transposed);
  uint16_t bits[4];
  store_as(bits, V{1, NAN, -2.5f, 3.14159f});
  const V back = load_as(bits);
  expect("bfloat16", back[0] == 1 && isnan(back[1]) && back[2] == -2.5f && back[3] == 3.140625f);
}

}  // namespace

int main() {
  functions();
  lanes();
  return good ? 0 : 1;
}
