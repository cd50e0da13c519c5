// Workspace memory: a short list of free blocks for each thread.
#include <cstdlib>

#include "cpu/tensors.h"

namespace mcr {
namespace {

constexpr size_t kAlignment = 64;
#ifdef __SANITIZE_ADDRESS__
constexpr size_t kMaxKept = 0;  // blocks of exactly the size asked for, and gone after use
#else
constexpr size_t kMaxKept = size_t{16} << 20;  // bytes a thread keeps at most
#endif

// In front of every block.
struct alignas(kAlignment) Header {
  size_t bytes;
};

class FreeBlocks {
 public:
  ~FreeBlocks() {
    for (Header* block : blocks_) std::free(block);
  }

  // The smallest block that is large enough and not wasteful, or null.
  Header* take(size_t bytes) {
    size_t best = blocks_.size();
    for (size_t i = 0; i < blocks_.size(); ++i) {
      const size_t size = blocks_[i]->bytes;
      if (size < bytes || size > 2 * bytes + 4096) continue;
      if (best == blocks_.size() || size < blocks_[best]->bytes) best = i;
    }
    if (best == blocks_.size()) return nullptr;
    Header* block = blocks_[best];
    blocks_.erase(blocks_.begin() + ptrdiff_t(best));
    kept_ -= block->bytes;
    return block;
  }

  // The oldest make room.
  void keep(Header* block) {
    if (block->bytes > kMaxKept) return std::free(block);
    blocks_.push_back(block);
    kept_ += block->bytes;
    while (kept_ > kMaxKept) {
      kept_ -= blocks_.front()->bytes;
      std::free(blocks_.front());
      blocks_.erase(blocks_.begin());
    }
  }

 private:
  std::vector<Header*> blocks_;
  size_t kept_ = 0;
};

FreeBlocks& free_blocks() {
  thread_local FreeBlocks blocks;
  return blocks;
}

}  // namespace

void* take_workspace(size_t bytes) {
  Header* block = free_blocks().take(bytes);
  if (block == nullptr) {
    const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    block = static_cast<Header*>(std::aligned_alloc(kAlignment, sizeof(Header) + rounded));
    STD_TORCH_CHECK(block != nullptr, "out of memory: ", bytes, " bytes of workspace");
    block->bytes = rounded;
  }
  return block + 1;
}

void give_back_workspace(void* block) {
  if (block != nullptr) free_blocks().keep(static_cast<Header*>(block) - 1);
}

}  // namespace mcr
