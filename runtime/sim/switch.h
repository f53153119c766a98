// Changing from one fiber's stack to another's; in assembly, by architecture.
#pragma once
#include <stdint.h>

// Saves the registers that a function must preserve and the stack pointer in *save, and continues on the stack ``to``.
extern "C" void sim_switch(void** save, void* to);

namespace sim {

// The stack pointer of a stack that ends at ``top`` and whose first switch calls ``entry``, which never returns.
void* first_frame(uintptr_t top, void (*entry)());

}  // namespace sim
