// Checks of what an op is called with, for the launchers of CPU and CUDA. Python's public edge has
// made them already, in better words; these are for compiled code and for direct calls of the ops,
// which pass the edge by. No value is read here: what only the values tell, the launchers see to.
#pragma once

#include <initializer_list>
#include <sstream>

#include "core/tensors.h"

namespace mcr {

enum class Holds { kFloats, kIndices, kMarks };  // a float dtype; int64; bool

constexpr int64_t kAnySize = -1;

// What every argument is held against: the op, for the words, and the device of its first tensor.
class Arguments {
 public:
  using Shape = std::initializer_list<int64_t>;

  Arguments(const char* op, const Tensor& first) : op_(op), place_(place_of(first)) {}

  void check(const char* name, const Tensor& x, Holds what, Shape shape) const {
    STD_TORCH_CHECK(place_of(x) == place_, op_, ": ", name,
                    " must be on the device of the other tensors");
    STD_TORCH_CHECK(holds(x.scalar_type(), what), op_, ": ", name, " must be ", words(what),
                    ", got ", torch::headeronly::toString(x.scalar_type()));
    STD_TORCH_CHECK(fits(x, shape), op_, ": ", name, " must have shape ", listed(shape), ", got ",
                    listed(x.sizes()));
  }
  void check(const char* name, const OptionalTensor& x, Holds what, Shape shape) const {
    if (x) check(name, *x, what, shape);
  }
  // One number, of any shape.
  void check_number(const char* name, const Tensor& x) const {
    STD_TORCH_CHECK(
        place_of(x) == place_ && holds(x.scalar_type(), Holds::kFloats) && x.numel() == 1, op_,
        ": ", name, " must be one number beside the other tensors");
  }
  // A unit gradient, which only the op's own forward makes: float32, or float64.
  void check_unit(const char* name, const Tensor& x, bool is_double, Shape shape) const {
    check(name, x, Holds::kFloats, shape);
    STD_TORCH_CHECK(x.scalar_type() == (is_double ? ScalarType::Double : ScalarType::Float), op_,
                    ": ", name, " must be ", is_double ? "float64" : "float32");
  }

 private:
  static bool holds(ScalarType dtype, Holds what) {
    if (what == Holds::kIndices) return dtype == ScalarType::Long;
    if (what == Holds::kMarks) return dtype == ScalarType::Bool;
    return dtype == ScalarType::Float || dtype == ScalarType::Double ||
           dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
  }
  static const char* words(Holds what) {
    return what == Holds::kIndices ? "int64" : what == Holds::kMarks ? "bool" : "a float dtype";
  }
  // Device type and index, as torch's own call gives them.
  static int64_t place_of(const Tensor& x) {
    int32_t type, index;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(x.get(), &type));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(x.get(), &index));
    return int64_t{type} * 256 + index;
  }
  static bool fits(const Tensor& x, Shape shape) {
    const auto sizes = x.sizes();
    if (sizes.size() != shape.size()) return false;
    const int64_t* given = sizes.data();
    for (const int64_t size : shape) {
      if (size != kAnySize && *given != size) return false;
      ++given;
    }
    return true;
  }
  template <class Sizes>
  static std::string listed(const Sizes& sizes) {
    std::ostringstream text;
    const char* between = "[";
    for (const int64_t size : sizes) {
      text << between << (size == kAnySize ? "any" : std::to_string(size));
      between = ", ";
    }
    text << (*between == '[' ? "[]" : "]");
    return text.str();
  }

  const char* op_;
  const int64_t place_;
};

// Where among its `known` words an option stands.
template <class Words = std::initializer_list<const char*>>
int place_of(const char* option, const std::string& word, const Words& known) {
  int place = 0;
  for (const char* each : known) {
    if (word == each) return place;
    ++place;
  }
  std::string all;
  for (const char* each : known) {
    --place;
    all += std::string(each) + (place > 1 ? ", " : place == 1 ? " or " : "");
  }
  STD_TORCH_CHECK(false, option, " must be ", all, ", got ", word);
  return 0;
}

}  // namespace mcr
