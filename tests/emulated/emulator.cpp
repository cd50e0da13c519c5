// The fibers behind emulator.h, and the functions of torch and CUDA that a CPU torch lacks.
#include "emulator.h"

#include "hooks.h"

#undef __CUDACC__
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim
#include <cuda_runtime_api.h>
#include <setjmp.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/c/shim.h>
#include <ucontext.h>

#include <memory>
#include <stdexcept>

#include "dispatch.h"

namespace emulator {
namespace {

constexpr size_t kStackBytes = size_t{128} << 10;
constexpr int kMaxThreads = 1024;

enum class State { kReady, kAtBlock, kAtLanes, kDone };

// A fiber lives on from block to block. Only its first start takes a system call: later ones, and
// all pauses, are jumps.
struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  jmp_buf paused;
  bool started = false;
  Place place;
  State state;
  uint32_t mask;
};

std::vector<std::unique_ptr<Fiber>> fibers;
jmp_buf scheduler;
int current = -1;
const std::function<void()>* running = nullptr;
int64_t blocks_run = 0;
std::string launched;  // names of kernels, a line each
uint64_t brought[kMaxThreads];

void pause(State state, uint32_t mask) {
  Fiber& fiber = *fibers[current];
  fiber.state = state;
  fiber.mask = mask;
  if (!_setjmp(fiber.paused)) _longjmp(scheduler, 1);
}

void enter() {
  for (;;) {
    (*running)();
    pause(State::kDone, 0);
  }
}

__attribute__((noinline)) void resume(int index) {
  Fiber& fiber = *fibers[index];
  current = index;
  if (_setjmp(scheduler)) return;
  if (fiber.started) _longjmp(fiber.paused, 1);
  fiber.started = true;
  setcontext(&fiber.context);
}

void start(int index, const Place& place) {
  if (int(fibers.size()) <= index) {
    fibers.push_back(std::make_unique<Fiber>());
    Fiber& fresh = *fibers[index];
    getcontext(&fresh.context);
    fresh.context.uc_stack.ss_sp = fresh.stack.get();
    fresh.context.uc_stack.ss_size = kStackBytes;
    fresh.context.uc_link = nullptr;
    makecontext(&fresh.context, enter, 0);
  }
  fibers[index]->place = place;
  fibers[index]->state = State::kReady;
}

// Lets the threads go on whose barrier is complete; false if there are none.
bool release(int count) {
  bool any = false, all_at_block = true;
  for (int t = 0; t < count; ++t) {
    Fiber& fiber = *fibers[t];
    if (fiber.state != State::kDone) all_at_block &= fiber.state == State::kAtBlock;
    if (fiber.state != State::kAtLanes) continue;
    bool complete = true;
    const int warp = t / 32 * 32;
    for (int l = 0; l < 32; ++l) {
      if (!(fiber.mask >> l & 1)) continue;
      complete = complete && warp + l < count && fibers[warp + l]->state == State::kAtLanes &&
                 fibers[warp + l]->mask == fiber.mask;
    }
    if (!complete) continue;
    const uint32_t mask = fiber.mask;
    for (int l = 0; l < 32; ++l) {
      if (mask >> l & 1) fibers[warp + l]->state = State::kReady;
    }
    any = true;
  }
  if (any || !all_at_block) return any;
  for (int t = 0; t < count; ++t) {
    if (fibers[t]->state != State::kAtBlock) continue;
    fibers[t]->state = State::kReady;
    any = true;
  }
  return any;
}

void run_block(const Place& block) {
  const int count = int(block.threads.x * block.threads.y * block.threads.z);
  for (int t = 0; t < count; ++t) {
    Place place = block;
    place.thread = {unsigned(t) % block.threads.x, unsigned(t) / block.threads.x % block.threads.y,
                    unsigned(t) / (block.threads.x * block.threads.y)};
    start(t, place);
  }
  // Every other block from its last thread to its first: what depends on the order shows.
  const bool backwards = blocks_run++ % 2 != 0;
  for (;;) {
    bool done = true;
    for (int n = 0; n < count; ++n) {
      const int t = backwards ? count - 1 - n : n;
      if (fibers[t]->state == State::kReady) resume(t);
      done = done && fibers[t]->state == State::kDone;
    }
    if (done) return;
    bool ready = false;
    for (int t = 0; t < count; ++t) ready |= fibers[t]->state == State::kReady;
    if (!ready && !release(count)) {
      throw std::runtime_error("a barrier that some of its threads never reach");
    }
  }
}

}  // namespace

const Place& place() { return fibers[current]->place; }
void wait_for_block() { pause(State::kAtBlock, 0); }
void wait_for_lanes(uint32_t mask) { pause(State::kAtLanes, mask); }
uint64_t* lanes() { return brought + current / 32 * 32; }
int lane() { return current % 32; }
void fail(const std::string& what) {
  fprintf(stderr, "emulator: %s\n", what.c_str());
  abort();
}

void launch(const char* name, dim3 blocks, dim3 threads, const std::function<void()>& kernel) {
  launched += name + std::string("\n");
  const int64_t count = int64_t(threads.x) * threads.y * threads.z;
  if (count < 1 || count > kMaxThreads || blocks.x < 1 || blocks.y < 1 || blocks.y > 65535 ||
      blocks.z < 1 || blocks.z > 65535 || blocks.x > 2147483647u) {
    throw std::runtime_error("a launch of " + std::to_string(blocks.x) + " x " +
                             std::to_string(blocks.y) + " blocks of " + std::to_string(count) +
                             " threads");
  }
  if (knob("MCR_EMULATED_NOTHING", 0)) return;  // launches are counted, nothing is run
  running = &kernel;
  const int64_t all = int64_t(blocks.x) * blocks.y * blocks.z;
  const bool last_first = knob("MCR_EMULATED_LAST_FIRST", 0);
  for (int64_t n = 0; n < all; ++n) {
    const int64_t at = last_first ? all - 1 - n : n;
    const dim3 block(unsigned(at % blocks.x), unsigned(at / blocks.x % blocks.y),
                     unsigned(at / blocks.x / blocks.y));
    run_block({{}, block, threads, blocks});
  }
}

}  // namespace emulator

// The ops' schemas ask for a table of CPU loops (csrc/registration.cpp); there are none here.
namespace mcr {
const CpuKernels& cpu_kernels() {
  static const CpuKernels table = [] {
    CpuKernels none = {};
    none.capability = "emulated CUDA";
    return none;
  }();
  return table;
}
bool set_cpu_capability(const char*) { return false; }
const char* cpu_capabilities(bool) { return "emulated CUDA"; }
}  // namespace mcr

extern "C" {

AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError torch_c10_cuda_check_msg(int32_t, const char*, const char*, uint32_t, bool,
                                        char** message) {
  *message = nullptr;
  return AOTI_TORCH_SUCCESS;
}
void torch_c10_cuda_free_error_msg(char*) {}
// under the names that the build gives them instead of torch's
AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  *guard = nullptr;
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) { return AOTI_TORCH_SUCCESS; }
AOTITorchError aoti_torch_cuda_mm_out(AtenTensorHandle out, AtenTensorHandle a,
                                      AtenTensorHandle b) {
  emulator::launched += "mm\n";  // it runs past the dispatcher, so that no profiler sees it
  if (emulator::knob("MCR_EMULATED_NOTHING", 0)) return AOTI_TORCH_SUCCESS;
  return aoti_torch_cpu_mm_out(out, a, b);
}
AOTITorchError aoti_torch_cuda_addmm_out(AtenTensorHandle out, AtenTensorHandle self,
                                         AtenTensorHandle a, AtenTensorHandle b, double beta,
                                         double alpha) {
  emulator::launched += "addmm\n";
  if (emulator::knob("MCR_EMULATED_NOTHING", 0)) return AOTI_TORCH_SUCCESS;
  return aoti_torch_cpu_addmm_out(out, self, a, b, beta, alpha);
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  emulator::launched += "memset\n";
  memset(to, value, bytes);
  return 0;
}
cudaError_t cudaGetLastError() { return 0; }

// The names of what was launched, and forgets them.
__attribute__((visibility("default"))) const char* emulated_launches() {
  static std::string given;
  given.swap(emulator::launched);
  emulator::launched.clear();
  return given.c_str();
}
__attribute__((visibility("default"))) int64_t emulated_left(int32_t* to) {
  if (to) memcpy(to, emulator::left.data(), emulator::left.size() * sizeof(int32_t));
  return int64_t(emulator::left.size());
}
}
