// A ring of stages in shared memory, which one thread fills by TMA and warps use up. Include it after prims.cuh.
#pragma once

// Two mbarriers guard each stage: ``full`` completes when its bytes have arrived, ``empty`` when all users gave it back.
// Each thread keeps its own place in the ring; the phase flips at each turn.
template <int STAGES>
struct Ring {
  int stage, phase;
  u32 full, empty;  // shared addresses of STAGES barriers each

  ARCWELD_DEVICE Ring(u32 full, u32 empty) : stage(0), phase(0), full(full), empty(empty) {}
  ARCWELD_DEVICE void advance() {
    if (++stage == STAGES) stage = 0, phase ^= 1;
  }

  // The thread that fills: waits until the stage is free, then says how many bytes its copies bring to ``filling()``.
  ARCWELD_DEVICE void wait_empty() const { mbar_wait(empty + 8 * stage, phase ^ 1); }
  ARCWELD_DEVICE void expect(int bytes) const { mbar_expect_tx(full + 8 * stage, bytes); }
  ARCWELD_DEVICE u32 filling() const { return full + 8 * stage; }

  // The users: each waits for the bytes; ``release`` is one arrival, and of another stage than this one if it is given.
  ARCWELD_DEVICE void wait_full() const { mbar_wait(full + 8 * stage, phase); }
  ARCWELD_DEVICE void release() const { mbar_arrive(empty + 8 * stage); }
  ARCWELD_DEVICE void release(int earlier) const { mbar_arrive(empty + 8 * earlier); }
};
