// cp.async: the destination is poisoned at issue and the bytes land only at wait_group, so that a missing wait shows.
#include <stdlib.h>

#include "checker.h"
#include "state.h"

namespace sim {
namespace {

struct Copy {
  u8* dst;
  const void* src;
  int bytes, src_bytes;
};
constexpr int kMaxGroups = 64;
struct Queue {  // of one thread
  Copy* copies;
  int count, capacity, landed;
  int group_end[kMaxGroups];
  int groups;
};

void push(Queue& q, const Copy& copy) {
  if (q.count == q.capacity) grow(q.copies, q.capacity, 32);
  q.copies[q.count++] = copy;
}

}  // namespace

struct Copies {
  Queue queues[kMaxThreads];
};

void copies_create() { create(sm().copies); }

void cp_async_reset() {
  for (int i = 0; i < sm().thread_count; ++i) {
    Queue& q = sm().copies->queues[i];
    q.count = q.landed = q.groups = 0;
  }
}

void cp_async_check_exit(const SimThread& thread) {
  const Queue& q = sm().copies->queues[thread.linear];
  if (q.count > q.landed) sim_fail("a thread returned with %d cp.async copies that it never waited for", q.count - q.landed);
}

}  // namespace sim

using namespace sim;

extern "C" {

void sim_cp_async(u32 dst, const void* src, int bytes, int src_bytes) {
  if ((uintptr_t)src & (uintptr_t)(bytes - 1)) sim_fail("cp.async source %p is not %d-byte aligned", src, bytes);
  if (src_bytes < 0 || src_bytes > bytes) sim_fail("cp.async of %d bytes with src_bytes %d", bytes, src_bytes);
  u8* p = shared_pointer(dst, bytes, bytes);
  const void* pc = __builtin_return_address(0);
  if (sm().checked && src_bytes) check_global(src, (size_t)src_bytes, false, pc);
  if (sm().checked) check_copy_issue(p, bytes, sim_current->linear, pc);
  memset(p, 0xff, (size_t)bytes);
  sm().used_units |= kCopies;
  push(sm().copies->queues[sim_current->linear], {p, src, bytes, src_bytes});
}

void sim_cp_async_commit() {
  sm().used_units |= kCopies;
  Queue& q = sm().copies->queues[sim_current->linear];
  if (q.groups == kMaxGroups) sim_fail("more than %d cp.async groups in flight", kMaxGroups);
  q.group_end[q.groups++] = q.count;
}

void sim_cp_async_wait(int newest) {
  Queue& q = sm().copies->queues[sim_current->linear];
  const int finished = q.groups - newest;
  if (finished <= 0) return;
  const int end = q.group_end[finished - 1];
  for (; q.landed < end; ++q.landed) {
    const Copy& c = q.copies[q.landed];
    memcpy(c.dst, c.src, (size_t)c.src_bytes);
    memset(c.dst + c.src_bytes, 0, (size_t)(c.bytes - c.src_bytes));
    if (sm().checked) check_copy_landed(c.dst, c.bytes, sim_current->linear);
  }
  for (int i = finished; i < q.groups; ++i) q.group_end[i - finished] = q.group_end[i];
  q.groups -= finished;
  if (q.landed == q.count) {  // nothing in flight: start again at the front
    for (int i = 0; i < q.groups; ++i) q.group_end[i] = 0;
    q.landed = q.count = 0;
  }
}

}  // extern "C"
