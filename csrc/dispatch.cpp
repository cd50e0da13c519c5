#include "dispatch.h"

#include <atomic>
#include <cstring>
#include <string>

namespace mcr {
namespace {

struct Candidate {
  const char* capability;
  const CpuKernels& (*table)();
  bool (*runs_here)();
};

// From the lowest to the highest.
const Candidate kCandidates[] = {
    {"portable", portable::table, [] { return true; }},
#ifdef MCR_HAVE_AVX2
    {"avx2", avx2::table,
     [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
#ifdef MCR_HAVE_AVX512
    {"avx512", avx512::table,
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("fma");
     }},
#endif
};

const CpuKernels* best() {
  const CpuKernels* found = nullptr;
  for (const Candidate& candidate : kCandidates) {
    if (candidate.runs_here()) found = &candidate.table();
  }
  return found;
}

std::atomic<const CpuKernels*>& active() {
  static std::atomic<const CpuKernels*> kernels{best()};
  return kernels;
}

std::string join(bool runnable_only) {
  std::string names;
  for (const Candidate& candidate : kCandidates) {
    if (runnable_only && !candidate.runs_here()) continue;
    if (!names.empty()) names += ", ";
    names += candidate.capability;
  }
  return names;
}

}  // namespace

const CpuKernels& cpu_kernels() { return *active().load(std::memory_order_relaxed); }

bool set_cpu_capability(const char* capability) {
  for (const Candidate& candidate : kCandidates) {
    if (std::strcmp(candidate.capability, capability) == 0 && candidate.runs_here()) {
      active().store(&candidate.table(), std::memory_order_relaxed);
      return true;
    }
  }
  return false;
}

const char* cpu_capabilities(bool runnable_only) {
  static const std::string compiled = join(false);
  static const std::string runnable = join(true);
  return runnable_only ? runnable.c_str() : compiled.c_str();
}

}  // namespace mcr
