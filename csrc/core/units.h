// Between natural logarithms and those to base 2.
#pragma once

namespace mcr {

constexpr double kLn2 = 0.69314718055994530942;
constexpr double kLog2e = 1.44269504088896340736;

}  // namespace mcr
