// The loops around simulated hardware that is spoken to byte by byte: through two streams of bytes,
// or through the pins of a serial line, whose other end is modelled here.
//
// What is known of the design is in "design.h":
//
//   GRADIRON_FAST, GRADIRON_FEEDBACK   as in cxxrtl_driver.cc
//   GRADIRON_DIVISOR                   clock cycles in a bit of the line; 0: streams
//   GRADIRON_OUTPUT                    the output that is reported, as a member of `top`
//   OUT_o_valid, OUT_o_payload, OUT_i_ready, or OUT_tx

#define CXXRTL_ASSERT(x) ((void)0)

#include "design.h"
#include "top.h"
#include "main.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace {

constexpr uint32_t kAbi = 1;

struct Machine {
  cxxrtl_design::p_top top;
  uint64_t ticks = 0;
  uint32_t output = 0;
#if GRADIRON_DIVISOR
  uint32_t sending = 0, send_time = 0;         // bits that are still to go, the lowest first
  uint32_t received = 0, receive_time = 0, receive_bits = 0;
  bool receiving = false;
#endif

  Machine() {
    top.p_clk.data[0] = 1;
#if GRADIRON_DIVISOR
    top.p_rx.data[0] = 1;
#endif
  }

  static void *operator new(size_t size) {
    void *place = malloc(size);
    if (!place) abort();
    return place;
  }

  static void operator delete(void *place) { free(place); }

  void eval() {
#if GRADIRON_FEEDBACK
    top.p_clk.data[0] = 0;
    top.step();
    top.p_clk.data[0] = 1;
    top.eval();
#else
#if !GRADIRON_FAST
    top.prev_p_clk.data[0] = 0;
#endif
    top.eval();
#endif
  }

  void commit() {
#if GRADIRON_FEEDBACK
    bool changed = top.commit();
    while (changed) {
      bool converged = top.eval();
      changed = top.commit();
      if (converged) break;
    }
#else
    top.commit();
#endif
    ticks++;
  }

  // Until `room` bytes are there, `cycles` are over, or nothing has moved for `quiet` cycles. Bytes
  // are accepted at every `1 << stall` cycles at most, in some pseudo-random pattern.
  uint64_t run(const uint8_t *in, uint64_t count, uint64_t *taken, uint8_t *out, uint64_t room,
               uint64_t *given, uint64_t cycles, uint64_t quiet, uint32_t stall) {
    uint64_t from = 0, to = 0, still = 0, at = 0;
    uint32_t random = 0x2545F491u ^ (uint32_t)ticks;
    for (; at < cycles && to < room && still < quiet; at++) {
      bool moved = false;
#if GRADIRON_DIVISOR
      (void)stall, (void)random;
      if (sending == 0 && from < count) {
        sending = 1u << 10 | 1u << 9 | (uint32_t)in[from++] << 1;
        send_time = GRADIRON_DIVISOR;
      }
      top.p_rx.data[0] = sending ? sending & 1 : 1;
      if (sending) {
        moved = true;
        if (--send_time == 0) {
          sending >>= 1;
          send_time = GRADIRON_DIVISOR;
          if (sending == 1) sending = 0;
        }
      }
      eval();
      uint32_t line = (uint32_t)top.OUT_tx.data[0];
      if (!receiving) {
        if (!line) {
          receiving = true;
          receive_bits = received = 0;
          receive_time = GRADIRON_DIVISOR + GRADIRON_DIVISOR / 2;
        }
      } else if (--receive_time == 0) {
        if (receive_bits < 8) {
          received |= line << receive_bits++;
          receive_time = GRADIRON_DIVISOR;
        } else {
          receiving = false;
          if (line) out[to++] = (uint8_t)received;
        }
      }
      moved |= receiving;
#else
      random ^= random << 13, random ^= random >> 17, random ^= random << 5;
      const uint32_t mask = (1u << stall) - 1;
      const bool offer = from < count && (random & mask) == 0;
      const bool accept = (random >> 16 & mask) == 0;
      if (from < count) top.p_i____payload.data[0] = in[from];
      // Once offered, a byte stays.
      top.p_i____valid.data[0] = top.p_i____valid.data[0] | offer;
      top.p_o____ready.data[0] = accept;
      eval();
      if (top.p_i____valid.data[0] && top.OUT_i_ready.data[0]) {
        from++;
        top.p_i____valid.data[0] = 0;
        moved = true;
      }
      if (accept && top.OUT_o_valid.data[0]) {
        out[to++] = (uint8_t)top.OUT_o_payload.data[0];
        moved = true;
      }
#endif
      output = (uint32_t)top.GRADIRON_OUTPUT.data[0];
      commit();
      still = moved || from < count ? 0 : still + 1;
    }
    *taken = from;
    *given = to;
    return at;
  }
};

}  // namespace

EXPORT uint32_t gl_abi() { return kAbi; }

EXPORT Machine *gl_create() { return new Machine; }

EXPORT void gl_destroy(Machine *machine) { delete machine; }

EXPORT uint64_t gl_ticks(Machine *machine) { return machine->ticks; }

// The output that is reported, as of the last cycle.
EXPORT uint32_t gl_output(Machine *machine) { return machine->output; }

EXPORT uint64_t gl_run(Machine *machine, const uint8_t *in, uint64_t count, uint64_t *taken,
                       uint8_t *out, uint64_t room, uint64_t *given, uint64_t cycles,
                       uint64_t quiet, uint32_t stall) {
  return machine->run(in, count, taken, out, room, given, cycles, quiet, stall);
}
