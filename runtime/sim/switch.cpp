// The context switch and the frame that it first finds on a new stack, for x86-64 and for aarch64.
//
// Only what the platform's calling convention asks a function to preserve is saved: the System V psABI of x86-64, and
// AAPCS64 (x19 to x30, and the lower halves of v8 to v15). Control words of the FPU are the same in every fiber.
#include "switch.h"

#include <string.h>

#if defined(__x86_64__)
asm(R"(
.text
.globl sim_switch
.hidden sim_switch
.type sim_switch,@function
sim_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp,(%rdi)
  mov %rsi,%rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size sim_switch,.-sim_switch
)");
namespace {
constexpr int kWords = 8, kEntry = 6;  // the last word is where the caller's address of ``entry`` would be
}
#elif defined(__aarch64__)
asm(R"(
.text
.globl sim_switch
.hidden sim_switch
.type sim_switch,%function
sim_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size sim_switch,.-sim_switch
)");
namespace {
constexpr int kWords = 20, kEntry = 11;
}
#else
#error "the simulator's context switch is written for x86-64 and aarch64"
#endif

namespace sim {

void* first_frame(uintptr_t top, void (*entry)()) {
  void** frame = (void**)(top & ~(uintptr_t)63) - kWords;
  memset((void*)frame, 0, sizeof(void*) * kWords);
  frame[kEntry] = (void*)entry;
  return frame;
}

}  // namespace sim
