#pragma once

namespace mcr {

enum class DivergenceKind { kJsd, kBinaryJsd, kSquaredError };

}  // namespace mcr
