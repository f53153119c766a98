// The checked mode. Kernels are compiled with -fsanitize=thread but linked without its library: the hooks are ours.
//
// Every byte of shared memory has a shadow: its last write and its last reads, each with the agent that made it and the
// agent's clock. An access is ordered after an earlier one if the accessing warp's vector clock has reached that clock;
// barriers, mbarriers and __syncwarp move the vector clocks. Agents are the warps and the asynchronous units. (The
// method is that of FastTrack: Flanagan and Freund, PLDI 2009.)
#include "checker.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

namespace sim {

Where::Where(const void* pc) {
  Dl_info info;
  if (pc && dladdr(pc, &info))
    snprintf(text, sizeof text, "@[%s+0x%zx]", info.dli_fname, (size_t)((const char*)pc - (const char*)info.dli_fbase));
  else
    snprintf(text, sizeof text, "an unknown place");
}

namespace {

constexpr u16 kInFlight = 0x8000, kAtomic = 0x4000, kSeveral = 0x2000, kWho = 0x07ff;
constexpr int kReads = 7, kFirstAgent = kMaxThreads;  // who: a thread, or kFirstAgent + agent

struct Mark {
  u32 clock;
  u16 who;   // and the flags
  u16 site;  // index in sites[]
};
struct Shadow {
  Mark write;
  Mark reads[kReads];
};

Shadow* shadow;       // of the running block
Shadow* usual_shadow; // ... of an ordinary launch
Shadow* grid_shadow;  // ... of all blocks of a cooperative one, as many bytes of each as of the largest launch so far
size_t grid_shadow_bytes;
u32 clock_of[kAgents], block_start[kAgents];
VectorClock view[kMaxWarps];        // what each warp knows of
VectorClock fenced_view[kMaxWarps]; // ... knew of at its last fence.proxy.async
u32 fenced_clock[kMaxThreads];      // the warp's clock at the thread's last fence.proxy.async
const void* sites[1 << 16];

struct Buffer {
  uintptr_t begin, end;
  bool writable;
  bool dependent;  // an earlier kernel wrote it
};
Buffer* buffers;
int buffer_count, buffer_capacity, last_buffer;

bool overlapping;    // the launch may start before its predecessors end (programmatic dependent launch)
u32 pdl_clock;       // what a warp must know of kPdlAgent to be past pdl_wait()
u64 pdl_waits;

int agent_of(const Mark& m) { return (m.who & kWho) < kFirstAgent ? (m.who & kWho) / kLanes : (m.who & kWho) - kFirstAgent; }
bool valid(const Mark& m) { return m.clock > block_start[agent_of(m)]; }

u16 site_of(const void* pc) {
  u32 h = (u32)(((uintptr_t)pc * 0x9E3779B97F4A7C15ull) >> 48) & 0xffff;
  for (int i = 0; i < 64; ++i, h = (h + 1) & 0xffff) {
    if (sites[h] == pc) return (u16)h;
    if (!sites[h]) {
      sites[h] = pc;
      return (u16)h;
    }
  }
  return 0;
}

struct Who {
  char text[40];
  explicit Who(const Mark& m) {
    const int who = m.who & kWho;
    if (who < kFirstAgent) snprintf(text, sizeof text, "thread %d", who);
    else if (who - kFirstAgent < kLoadAgent) snprintf(text, sizeof text, "wgmma of warpgroup %d", who - kFirstAgent - kWgmmaAgent);
    else snprintf(text, sizeof text, who - kFirstAgent == kStoreAgent ? "a TMA store" : "a TMA load");
  }
};

[[noreturn]] void race(const char* kind, size_t offset, const Mark& me, const Mark& earlier, const void* pc) {
  sim_fail("shared-memory race (%s) at byte %zu: %s at %s; earlier %s at %s", kind, offset, Who(me).text, Where(pc).text,
           Who(earlier).text, Where(sites[earlier.site]).text);
}

bool ordered(const Mark& m, const VectorClock& known, u16 me) {
  if (m.clock <= known.at[agent_of(m)]) return true;
  return (m.who & (kWho | kSeveral)) == (me & kWho) && (me & kWho) < kFirstAgent;
}

// A read mark keeps the last reader of each agent (modulo kReads); lanes that are not ordered among themselves merge.
void record_read(Shadow& s, Mark me, const VectorClock& known) {
  Mark& slot = s.reads[agent_of(me) % kReads];
  if (agent_of(slot) == agent_of(me) && (slot.who & kWho) != (me.who & kWho) && slot.clock > known.at[agent_of(me)])
    me.who |= kSeveral;
  slot = me;
}

void access_byte(Shadow& s, size_t offset, Access access, const Mark& me, const VectorClock& known, const void* pc) {
  const Mark& w = s.write;
  if (w.clock > block_start[agent_of(w)]) {
    if (w.who & kInFlight)
      sim_fail("shared byte %zu is accessed at %s while a cp.async of thread %d issued at %s has not been waited for", offset,
               Where(pc).text, w.who & kWho, Where(sites[w.site]).text);
    if (!(access == Access::Atomic && (w.who & kAtomic)) && !ordered(w, known, me.who))
      race(access == Access::Read ? "read after write" : "write after write", offset, me, w, pc);
  } else if (access == Access::Read) {
    sim_fail("read of uninitialised shared memory: byte %zu, %s at %s", offset, Who(me).text, Where(pc).text);
  }
  if (access == Access::Read) {
    record_read(s, me, known);
    return;
  }
  for (Mark& r : s.reads) {
    if (valid(r) && !ordered(r, known, me.who)) race("write after read", offset, me, r, pc);
    r.clock = 0;
  }
  s.write = me;
}

size_t shared_offset(const void* p) { return (size_t)((const u8*)p - sim_place.dynamic_shared); }

void access_shared(const void* p, int bytes, Access access, const Mark& me, const VectorClock& known, const void* pc) {
  const size_t offset = shared_offset(p);
  if (offset >= sm().shared_bytes || offset + (size_t)bytes > sm().shared_bytes)
    sim_fail("shared %s out of bounds: offset %zu, %d bytes, of %zu, at %s", access == Access::Read ? "read" : "write", offset,
             bytes, sm().shared_bytes, Where(pc).text);
  for (int i = 0; i < bytes; ++i) access_byte(shadow[offset + (size_t)i], offset + (size_t)i, access, me, known, pc);
}

void raise(VectorClock& to, const VectorClock& from) {
  for (int i = 0; i < kAgents; ++i) to.at[i] = from.at[i] > to.at[i] ? from.at[i] : to.at[i];
}

// An asynchronous unit reads what threads wrote through the generic proxy: a proxy fence must come between.
void require_proxy_fence(const Shadow& s, size_t offset, const Mark& me, int first, int count, const void* pc) {
  const Mark& w = s.write;
  const int writer = w.who & kWho;
  if (!valid(w) || writer >= kFirstAgent || w.clock <= fenced_clock[writer]) return;
  for (int i = first; i < first + count; ++i)
    if (fenced_view[i].at[writer / kLanes] < w.clock)
      sim_fail("%s at %s reads shared byte %zu, which thread %d wrote at %s: no fence_proxy_async() lies between", Who(me).text,
               Where(pc).text, offset, writer, Where(sites[w.site]).text);
}

void forget_grid_shadow() {
  if (grid_shadow) munmap((void*)grid_shadow, grid_shadow_bytes);
  grid_shadow = nullptr;
  grid_shadow_bytes = 0;
}

}  // namespace

void checker_block_select(int block) {
  if (!sm().checked) return;
  const size_t blocks = (size_t)sim_place.grid_dim.x * sim_place.grid_dim.y * sim_place.grid_dim.z, needed = blocks * sm().shared_bytes * sizeof(Shadow);
  if (needed > grid_shadow_bytes) {  // only before the first block starts: the launch's numbers don't change
    forget_grid_shadow();
    grid_shadow = (Shadow*)map_pages(needed);
    grid_shadow_bytes = needed;
  }
  shadow = grid_shadow + (size_t)block * sm().shared_bytes;
}

void checker_save(CheckerBlock& into) {
  const size_t views = sizeof(VectorClock) * (size_t)sm().warp_count;
  memcpy(into.start, block_start, sizeof block_start);
  into.pdl = pdl_clock;
  memcpy((void*)into.view, view, views);
  memcpy((void*)into.fenced_view, fenced_view, views);
  memcpy(into.fenced_clock, fenced_clock, sizeof(u32) * (size_t)sm().thread_count);
}

void checker_restore(const CheckerBlock& from) {
  const size_t views = sizeof(VectorClock) * (size_t)sm().warp_count;
  memcpy(block_start, from.start, sizeof block_start);
  pdl_clock = from.pdl;
  memcpy((void*)view, from.view, views);
  memcpy((void*)fenced_view, from.fenced_view, views);
  memcpy(fenced_clock, from.fenced_clock, sizeof(u32) * (size_t)sm().thread_count);
}

void checker_launch_start(int count, const u64* triples, bool pdl) {
  if (!sm().checked) return;
  pdl_waits = 0;
  overlapping = pdl;
  while (count > buffer_capacity) grow(buffers, buffer_capacity, 16);
  buffer_count = count;
  last_buffer = 0;
  blocks_launch_start(count, triples);
  for (int i = 0; i < count; ++i)
    buffers[i] = {triples[3 * i], triples[3 * i] + triples[3 * i + 1], (triples[3 * i + 2] & 1) != 0, (triples[3 * i + 2] & 2) != 0};
}

const char* checker_launch_end() {
  if (!sm().checked || !overlapping || pdl_waits) return nullptr;
  return "no thread of the kernel called pdl_wait(): kernels after it could overtake those before it";
}

void checker_block_start() {
  if (!sm().checked) return;
  blocks_block_start();
  if (!usual_shadow) usual_shadow = (Shadow*)map_pages(kMaxShared * sizeof(Shadow));
  if (!sm().cooperative) shadow = usual_shadow;
  for (int i = 0; i < kAgents && !sm().cooperative; ++i) {
    if (clock_of[i] > 1u << 31) {  // start again long before a clock wraps
      memset((void*)shadow, 0, kMaxShared * sizeof(Shadow));
      forget_grid_shadow();
      memset(clock_of, 0, sizeof clock_of);
      break;
    }
  }
  for (int i = 0; i < kAgents; ++i) block_start[i] = clock_of[i]++;
  pdl_clock = clock_of[kPdlAgent];
  for (int w = 0; w < sm().warp_count; ++w) memcpy(view[w].at, block_start, sizeof block_start);
  memcpy(fenced_view, view, sizeof view);
  for (int i = 0; i < sm().thread_count; ++i) fenced_clock[i] = block_start[i / kLanes];
}

void check_shared(const void* p, int bytes, Access access, int thread, const void* pc) {
  const int w = thread / kLanes;
  u16 who = (u16)thread;
  Mark me = {clock_of[w], who, site_of(pc)};
  if (access == Access::Atomic) me.who |= kAtomic;
  access_shared(p, bytes, access, me, view[w], pc);
}

void check_copy_issue(const void* p, int bytes, int thread, const void* pc) {
  const int w = thread / kLanes;
  Mark me = {clock_of[w], (u16)thread, site_of(pc)};
  access_shared(p, bytes, Access::Write, me, view[w], pc);
  for (int i = 0; i < bytes; ++i) shadow[shared_offset(p) + (size_t)i].write.who |= kInFlight;
}

void check_copy_landed(const void* p, int bytes, int thread) {
  const u32 now = clock_of[thread / kLanes];
  for (int i = 0; i < bytes; ++i) {
    Mark& w = shadow[shared_offset(p) + (size_t)i].write;
    w.who &= (u16)~kInFlight;
    w.clock = now;
  }
}

u32 agent_tick(int agent) { return clock_of[agent]++; }

void check_agent(const void* p, int bytes, Access access, int agent, u32 clock, int first, int count, const void* pc) {
  VectorClock known = view[first];
  for (int w = first + 1; w < first + count; ++w)
    for (int i = 0; i < kAgents; ++i) known.at[i] = view[w].at[i] < known.at[i] ? view[w].at[i] : known.at[i];
  const Mark me = {clock, (u16)(kFirstAgent + agent), site_of(pc)};
  if (access == Access::Read && shared_offset(p) + (size_t)bytes <= sm().shared_bytes)
    for (int i = 0; i < bytes; i += 4) {
      const size_t offset = shared_offset(p) + (size_t)i;
      require_proxy_fence(shadow[offset], offset, me, first, count, pc);
    }
  // One operation of a unit may touch a byte twice, and operations of one unit run in order.
  if (agent != kStoreAgent && (agent < kLoadAgent)) known.at[agent] = clock;
  access_shared(p, bytes, access, me, known, pc);
}

void hb_release(VectorClock& into, int thread) {
  const int w = thread / kLanes;
  raise(into, view[w]);
  if (clock_of[w] > into.at[w]) into.at[w] = clock_of[w];
  ++clock_of[w];
}

void hb_acquire(int warp, const VectorClock& from) { raise(view[warp], from); }

void hb_acquire_agent(int warp, int agent, u32 clock) { hb_join_agent(view[warp], agent, clock); }

void hb_join_agent(VectorClock& into, int agent, u32 clock) {
  if (clock > into.at[agent]) into.at[agent] = clock;
}

void hb_warp_sync(int warp) { view[warp].at[warp] = clock_of[warp]++; }

void hb_proxy_fence(int thread) {
  const int w = thread / kLanes;
  fenced_view[w] = view[w];
  fenced_clock[thread] = clock_of[w]++;
}

// ---------------------------------------------------------------- global memory
namespace {

[[noreturn]] void global_fault(uintptr_t p, size_t bytes, bool write, const void* pc) {
  int nearest = -1;
  uintptr_t best = ~(uintptr_t)0;
  for (int i = 0; i < buffer_count; ++i) {
    const Buffer& b = buffers[i];
    const uintptr_t distance = p < b.begin ? b.begin - p : p >= b.end ? p - b.end : 0;
    if (distance < best) best = distance, nearest = i;
  }
  const char* kind = write ? "write" : "read";
  if (nearest < 0) sim_fail("global %s at address %p: the launch has no buffers, at %s", kind, (void*)p, Where(pc).text);
  const Buffer& b = buffers[nearest];
  if (p >= b.begin && p + bytes <= b.end)
    sim_fail("global write to buffer #%d, which this launch only reads: byte offset %zu of %zu, at %s", nearest,
             (size_t)(p - b.begin), (size_t)(b.end - b.begin), Where(pc).text);
  sim_fail("global %s of %zu bytes out of bounds: nearest buffer #%d, byte offset %lld of %zu, at %s", kind, bytes, nearest,
           (long long)(p - b.begin), (size_t)(b.end - b.begin), Where(pc).text);
}

}  // namespace

void check_global(const void* address, size_t bytes, bool write, const void* pc) {
  check_global_range(address, bytes, write, pc);
  blocks_access(address, bytes, write, pc);
}

void check_global_range(const void* address, size_t bytes, bool write, const void* pc) {
  const uintptr_t p = (uintptr_t)address;
  for (int i = 0, k = last_buffer; i < buffer_count; ++i) {
    const Buffer& b = buffers[k];
    if (p >= b.begin && p + bytes <= b.end && (b.writable || !write)) {
      last_buffer = k;
      if (overlapping && (write || b.dependent) && view[sim_current->warp].at[kPdlAgent] < pdl_clock)
        sim_fail("%s buffer #%d at %s before pdl_wait()", write ? "writes" : "reads the result of an earlier kernel,", k,
                 Where(pc).text);
      return;
    }
    if (++k == buffer_count) k = 0;
  }
  global_fault(p, bytes, write, pc);
}

// ---------------------------------------------------------------- the hooks that compiled kernels call
namespace {

extern "C" {
extern char __ehdr_start __attribute__((visibility("hidden")));
extern char _end __attribute__((visibility("hidden")));
}

const void* spin_address;
u64 spin_count;
constexpr u64 kSpinLimit = 20'000'000;

void note_spin(const void* p, bool write) {
  if (write || p != spin_address) {
    spin_address = p;
    spin_count = 0;
  } else if (++spin_count > kSpinLimit) {
    spin_count = 0;
    sim_fail("livelock: the thread has read address %p %llu times in a row and nothing changes it", p, kSpinLimit);
  }
}

bool in_buffer(uintptr_t p) {
  if (last_buffer < buffer_count && p >= buffers[last_buffer].begin && p < buffers[last_buffer].end) return true;
  for (int i = 0; i < buffer_count; ++i)
    if (p >= buffers[i].begin && p < buffers[i].end) return true;
  return false;
}

// Whether it is a variable of the runtime (threadIdx...).
bool is_own(const void* p) {
  const size_t in_place = (size_t)((const char*)p - (const char*)&sim_place), in_sm = (size_t)((const char*)p - (const char*)sim_place.sm);
  return in_place < sizeof sim_place || in_sm < sizeof(Sm) || ((const char*)p >= &__ehdr_start && (const char*)p < &_end);
}

void on_access(const void* p, int bytes, bool write, bool aligned, const void* pc) {
  const Sm* const s = sim_place.sm;
  if (!s || !s->running || !s->checked || in_fiber_stack(p) || is_own(p)) return;
  if (aligned && ((uintptr_t)p & (uintptr_t)(bytes - 1)))
    sim_fail("misaligned %d-byte %s of address %p at %s", bytes, write ? "write" : "read", p, Where(pc).text);
  note_spin(p, write);
  if (shared_offset(p) < kMaxShared) {
    check_shared(p, bytes, write ? Access::Write : Access::Read, sim_current->linear, pc);
    return;
  }
  Dl_info info;
  if (!in_buffer((uintptr_t)p) && dladdr(p, &info)) return;  // a constant table of the kernel itself
  check_global(p, (size_t)bytes, write, pc);
}

}  // namespace
}  // namespace sim

using namespace sim;

extern "C" {

// Past this call the warp, and whoever synchronises with it, may use what earlier kernels wrote.
void sim_pdl_wait() {
  if (!sm().checked) return;
  ++pdl_waits;
  hb_acquire_agent(sim_current->warp, kPdlAgent, pdl_clock);
}

void sim_atomic_access(const void* p, int bytes) {
  if (!sm().checked) return;
  const void* pc = __builtin_return_address(0);
  if ((uintptr_t)p & (uintptr_t)(bytes - 1)) sim_fail("misaligned %d-byte atomic of address %p at %s", bytes, p, Where(pc).text);
  if (shared_offset(p) < kMaxShared) check_shared(p, bytes, Access::Atomic, sim_current->linear, pc);
  else {
    check_global_range(p, (size_t)bytes, true, pc);
    blocks_atomic();
  }
}

void sim_threadfence() {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  if (sm().checked) blocks_fence();
}

#define SIM_HOOKS(N)                                                                                                  \
  void __tsan_read##N(void* p) { on_access(p, N, false, true, __builtin_return_address(0)); }                         \
  void __tsan_write##N(void* p) { on_access(p, N, true, true, __builtin_return_address(0)); }                         \
  void __tsan_volatile_read##N(void* p) { on_access(p, N, false, true, __builtin_return_address(0)); }                \
  void __tsan_volatile_write##N(void* p) { on_access(p, N, true, true, __builtin_return_address(0)); }                \
  void __tsan_unaligned_read##N(void* p) { on_access(p, N, false, true, __builtin_return_address(0)); }               \
  void __tsan_unaligned_write##N(void* p) { on_access(p, N, true, true, __builtin_return_address(0)); }
SIM_HOOKS(1) SIM_HOOKS(2) SIM_HOOKS(4) SIM_HOOKS(8) SIM_HOOKS(16)
#undef SIM_HOOKS
void __tsan_read_range(void* p, size_t n) { on_access(p, (int)n, false, false, __builtin_return_address(0)); }
void __tsan_write_range(void* p, size_t n) { on_access(p, (int)n, true, false, __builtin_return_address(0)); }
void* __tsan_memset(void* p, int value, size_t n) {
  on_access(p, (int)n, true, false, __builtin_return_address(0));
  return memset(p, value, n);
}
void* __tsan_memcpy(void* to, const void* from, size_t n) {
  on_access(from, (int)n, false, false, __builtin_return_address(0));
  on_access(to, (int)n, true, false, __builtin_return_address(0));
  return memcpy(to, from, n);
}
void* __tsan_memmove(void* to, const void* from, size_t n) {
  on_access(from, (int)n, false, false, __builtin_return_address(0));
  on_access(to, (int)n, true, false, __builtin_return_address(0));
  return memmove(to, from, n);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

}  // extern "C"
