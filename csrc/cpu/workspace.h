// Workspace memory that a thread keeps from one call to the next. A training step asks for the same
// blocks every time; giving them back to the system in between costs more than a small batch's
// arithmetic, in page faults.
#pragma once

#include <cstddef>

namespace mcr {

// At least `bytes`, aligned for whole vectors of any instruction set, not written.
void* take_workspace(size_t bytes);

// By the thread that took it. Null is nothing.
void give_back_workspace(void* block);

}  // namespace mcr
