// The loops around a simulated machine: host accesses, running until it stops, recording.
//
// Nothing here is called once per cycle from outside; a call handles a whole buffer or a whole run.
// The design is included as C++ text that CXXRTL generated. What else is known of it is in "design.h":
//
//   GRADIRON_FAST          1 where the text is rearranged and uses cxxrtl_fast.h
//   GRADIRON_FEEDBACK      1 where one evaluation does not settle every combinational signal
//   GRADIRON_CHECKS        1 where the design has assertions
//   GRADIRON_WAVES         1 in a build with debug information
//   GRADIRON_WORD_BYTES    bytes of a memory word, spread over the lanes of a region
//   GRADIRON_LANES(LANE)   LANE(region, lane, bytes, member) for the lanes of data memory
//   OUT_state, ...         the outputs, as members of `top`
//
// Time: only the rising edge is evaluated. `eval` computes what every signal is just before the
// edge, from the inputs set before; `commit` lets registers and memories take their new values.
// Outputs are therefore looked at between the two: there, registered and combinational outputs alike
// have the values that a register clocked by the same edge would see.

// CXXRTL reports a failed assertion of the design through this macro, and also reads beyond a memory
// that is no power of two, which are harmless: the data is not used then.
#define CXXRTL_ASSERT(x) ((void)0)

#include "design.h"
#include "top.h"
#include "main.h"

#if GRADIRON_WAVES
#include <cxxrtl/cxxrtl_vcd.h>
#include <fstream>
#endif

// Of the C++ library only what the design itself brings: a rearranged one needs none.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

#if GRADIRON_FEEDBACK || GRADIRON_WAVES
#define GRADIRON_SETTLE 1
#else
#define GRADIRON_SETTLE 0
#endif

namespace {

constexpr uint32_t kAbi = 2;
constexpr uint32_t kRunning = 1;         // isa.MachineState.RUNNING
constexpr uint32_t kSpaceCsr = 0;        // isa.Space.CSR
constexpr uint32_t kSpaceMemory = 1;     // isa.Space.MEMORY
constexpr uint64_t kControl = 4;         // number of the CSR CONTROL
constexpr uint32_t kControlClear = 8;    // its bit that clears the counters

enum Outcome : int32_t { kDone = 0, kRefused = 1, kNoAnswer = 2, kCheckFailed = 3, kLimit = 4 };

struct Retirement {
  uint64_t pc, first, last;
};

struct Activity {
  uint64_t cycle, units;
};

struct Lane {
  uint32_t region, lane, bytes;
  const uint8_t *data;
  size_t depth, stride;
};

// A list that grows.
template <class T>
struct List {
  T *data = nullptr;
  size_t count = 0, room = 0;

  ~List() { free(data); }

  void push(const T &item) {
    if (count == room) {
      room = room ? 2 * room : 1024;
      data = static_cast<T *>(realloc(static_cast<void *>(data), room * sizeof(T)));
      if (!data) abort();
    }
    data[count++] = item;
  }
};

#if GRADIRON_CHECKS && !GRADIRON_FAST
struct Checks final : public cxxrtl::performer {
  std::string message;

  void on_print(const cxxrtl::lazy_fmt &, const cxxrtl::metadata_map &) override {}

  void on_check(cxxrtl::flavor type, bool condition, const cxxrtl::lazy_fmt &text,
                const cxxrtl::metadata_map &attributes) override {
    if (condition || type != cxxrtl::flavor::ASSERT || !message.empty()) return;
    message = text();
    auto where = attributes.find("src");
    if (where != attributes.end() && where->second.value_type == cxxrtl::metadata::STRING)
      message += (message.empty() ? "" : ", ") + std::string("at ") + where->second.string_value;
    if (message.empty()) message = "no message";
  }
};
#endif

struct Machine {
  cxxrtl_design::p_top top;
  uint64_t ticks = 0;    // cycles simulated
  uint64_t running = 0;  // cycles in RUNNING since the counters were cleared
  uint64_t first = 0;    // the cycle in which the present instruction began
  bool record = false, watch = false;
  List<Retirement> retirements;
  List<Activity> activity;
  List<Lane> lanes;
  char message[1024] = "";
#if GRADIRON_CHECKS && !GRADIRON_FAST
  Checks checks;
#endif
#if GRADIRON_WAVES
  cxxrtl::vcd_writer waves;
  std::ofstream file;
#endif

  // What the outputs were at the last edge.
  uint32_t state = 0, ready = 0, answered = 0, answer = 0, refused = 0;

  Machine() {
#define LANE(region, lane, bytes, member) \
  lanes.push({region, lane, bytes, reinterpret_cast<const uint8_t *>(&top.member.data[0]), \
              top.member.depth, sizeof(top.member.data[0])});
    GRADIRON_LANES(LANE)
#undef LANE
    top.p_clk.data[0] = 1;
  }

  static void *operator new(size_t size) {
    void *place = malloc(size);
    if (!place) abort();
    return place;
  }

  static void operator delete(void *place) { free(place); }

  void observe() {
    uint32_t retire = (uint32_t)top.OUT_retire.data[0];
    if (state == kRunning) {
      if (watch) {
        uint32_t units = (uint32_t)top.OUT_activity.data[0];
        if (activity.count == 0 || activity.data[activity.count - 1].units != units)
          activity.push({running, units});
      }
      if (retire) {
        if (record) retirements.push({(uint32_t)top.OUT_retire_pc.data[0], first, running});
        first = running + 1;
      }
      running++;
    } else {
      if (retire && record) {
        uint64_t last = running > first ? running - 1 : first;
        retirements.push({(uint32_t)top.OUT_retire_pc.data[0], first, last});
      }
      first = running;
    }
  }

  // One rising edge; false after a failed assertion of the design. The inputs are set before.
  inline __attribute__((always_inline)) bool tick() {
#if GRADIRON_SETTLE
    top.p_clk.data[0] = 0;
    top.step();
#if GRADIRON_WAVES
    sample(2 * ticks);
#endif
    top.p_clk.data[0] = 1;
#elif !GRADIRON_FAST
    top.prev_p_clk.data[0] = 0;
#endif
#if GRADIRON_CHECKS && !GRADIRON_FAST
    bool converged = top.eval(&checks);
#else
    bool converged = top.eval();
#endif
    state = (uint32_t)top.OUT_state.data[0];
    ready = (uint32_t)top.OUT_req_ready.data[0];
    answered = (uint32_t)top.OUT_rsp_valid.data[0];
    answer = (uint32_t)top.OUT_rsp_data.data[0];
    refused = (uint32_t)top.OUT_rsp_error.data[0];
    observe();
    bool changed = top.commit();
#if GRADIRON_SETTLE
    while (changed && !converged) {
      converged = top.eval();
      changed = top.commit();
    }
#endif
    (void)converged, (void)changed;
#if GRADIRON_WAVES
    top.step();
    sample(2 * ticks + 1);
#endif
    ticks++;
#if GRADIRON_CHECKS && GRADIRON_FAST
    if (!top.failure.empty()) return false;
#elif GRADIRON_CHECKS
    if (!checks.message.empty()) return false;
#endif
    return true;
  }

#if GRADIRON_WAVES
  void sample(uint64_t time) {
    if (!file.is_open()) return;
    waves.sample(time);
    file.write(waves.buffer.data(), (std::streamsize)waves.buffer.size());
    waves.buffer.clear();
  }
#endif

  Outcome failed() {
#if GRADIRON_CHECKS && GRADIRON_FAST
    strncpy(message, top.failure.data, sizeof message - 1);
    top.failure.count = 0;
#elif GRADIRON_CHECKS
    strncpy(message, checks.message.c_str(), sizeof message - 1);
    checks.message.clear();
#endif
    return kCheckFailed;
  }

  void request(uint32_t space, uint32_t address, bool write, uint32_t size, uint32_t data) {
    top.p_req__space.data[0] = space;
    top.p_req__addr.data[0] = address;
    top.p_req__write.data[0] = write;
    top.p_req__size.data[0] = size;
    top.p_req__data.data[0] = data;
    top.p_req__valid.data[0] = 1;
  }

  // One access: the answer is in `answer`.
  Outcome access(uint32_t space, uint32_t address, bool write, uint32_t size, uint32_t data,
                 uint64_t patience) {
    request(space, address, write, size, data);
    bool taken = false;
    for (uint64_t waited = 0; waited < patience; waited++) {
      if (!tick()) {
        top.p_req__valid.data[0] = 0;
        return failed();
      }
      if (!taken && ready) {
        taken = true;
        top.p_req__valid.data[0] = 0;
        if (write && space == kSpaceCsr && address == kControl && (data & kControlClear))
          running = first = 0;
      }
      if (taken && answered) return refused ? kRefused : kDone;
    }
    top.p_req__valid.data[0] = 0;
    return kNoAnswer;
  }

  // A buffer; `done` counts the units that were transferred.
  Outcome transfer(uint32_t space, bool write, uint32_t address, uint64_t count, uint8_t *data,
                   uint64_t patience, uint64_t *done) {
    constexpr uint32_t kLargest = GRADIRON_WORD_BYTES < 4 ? GRADIRON_WORD_BYTES : 4;
    const bool bytes = space == kSpaceMemory;
    uint64_t at = 0;
    while (at < count) {
      uint32_t size = 4, units = 1;
      if (bytes) {  // the largest naturally aligned piece
        size = kLargest;
        while (((address + at) & (size - 1)) || size > count - at) size >>= 1;
        units = size;
      }
      uint32_t word = 0;
      uint8_t *place = data + (bytes ? at : 4 * at);
      if (write)
        for (uint32_t i = 0; i < size; i++) word |= (uint32_t)place[i] << (8 * i);
      Outcome outcome = access(space, address + (uint32_t)at, write, size, word, patience);
      *done = at;
      if (outcome != kDone) return outcome;
      if (!write)
        for (uint32_t i = 0; i < size; i++) place[i] = (uint8_t)(answer >> (8 * i));
      at += units;
    }
    *done = at;
    return kDone;
  }

  Outcome run(uint64_t limit) {
    for (uint64_t i = 0; i < limit; i++) {
      if (!tick()) return failed();
      if (state != kRunning) return kDone;
    }
    return kLimit;
  }

  // Data memory without the host port; false where a byte is in no known lane.
  bool peek(uint32_t region, uint64_t offset, uint64_t count, uint8_t *out) const {
    constexpr uint64_t kWord = GRADIRON_WORD_BYTES;
    uint64_t found = 0;
    for (size_t n = 0; n < lanes.count; n++) {
      const Lane &lane = lanes.data[n];
      if (lane.region != region) continue;
      for (uint32_t byte = 0; byte < lane.bytes; byte++) {
        const uint64_t column = (uint64_t)lane.lane * lane.bytes + byte;
        uint64_t word = offset / kWord + (column < offset % kWord ? 1 : 0);
        for (uint64_t at = word * kWord + column - offset; at < count; at += kWord, word++) {
          if (word >= lane.depth) return false;
          // Both runtimes keep a value's lowest byte first on the machines they run on.
          out[at] = lane.data[word * lane.stride + byte];
          found++;
        }
      }
    }
    return found == count;
  }
};

}  // namespace

EXPORT uint32_t gd_abi() { return kAbi; }

// Whether the design is rearranged.
EXPORT int32_t gd_fast() { return GRADIRON_FAST; }

EXPORT Machine *gd_create() { return new Machine; }

EXPORT void gd_destroy(Machine *machine) { delete machine; }

EXPORT void gd_observe(Machine *machine, int32_t record, int32_t watch) {
  machine->record = record != 0;
  machine->watch = watch != 0;
}

EXPORT int32_t gd_transfer(Machine *machine, uint32_t space, int32_t write, uint32_t address,
                           uint64_t count, uint8_t *data, uint64_t patience, uint64_t *done) {
  return machine->transfer(space, write != 0, address, count, data, patience, done);
}

EXPORT int32_t gd_run(Machine *machine, uint64_t limit) { return machine->run(limit); }

EXPORT uint32_t gd_state(Machine *machine) { return machine->state; }

EXPORT uint64_t gd_ticks(Machine *machine) { return machine->ticks; }

EXPORT uint64_t gd_running(Machine *machine) { return machine->running; }

EXPORT const char *gd_message(Machine *machine) { return machine->message; }

EXPORT int32_t gd_peek(Machine *machine, uint32_t region, uint64_t offset, uint64_t count,
                       uint8_t *out) {
  return machine->peek(region, offset, count, out);
}

// The recorded events; they are dropped by gd_forget.
EXPORT uint64_t gd_retirements(Machine *machine, const Retirement **events) {
  *events = machine->retirements.data;
  return machine->retirements.count;
}

EXPORT uint64_t gd_activity(Machine *machine, const Activity **events) {
  *events = machine->activity.data;
  return machine->activity.count;
}

EXPORT void gd_forget(Machine *machine, int32_t retirements, int32_t activity) {
  if (retirements) machine->retirements.count = 0;
  if (activity) machine->activity.count = 0;
}

// Start to write waves; 0 where the build has none or the file cannot be written.
EXPORT int32_t gd_waves(Machine *machine, const char *path) {
#if GRADIRON_WAVES
  machine->file.open(path, std::ios::binary);
  if (!machine->file) return 0;
  cxxrtl::debug_items items;
  machine->top.debug_info(&items, nullptr, "gradiron ");
  machine->waves.timescale(1, "us");
  // Without memories, whose every word would be a variable, and without signals that have no name.
  machine->waves.add(items, [](const std::string &name, const cxxrtl::debug_item &item) {
    size_t last = name.rfind(' ');
    return item.type != cxxrtl::debug_item::MEMORY &&
           name.compare(last == std::string::npos ? 0 : last + 1, 1, "$") != 0;
  });
  return 1;
#else
  (void)machine, (void)path;
  return 0;
#endif
}
