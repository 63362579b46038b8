"""The fast simulation: the hardware as C++, compiled once and kept, driven in whole buffers.

A build goes through Amaranth (RTLIL), yosys (C++) and a C++ compiler (shared library); the library
is kept in the user's cache folder under a digest of all that went into it.

Ref: https://yosyshq.readthedocs.io/projects/yosys/en/latest/cmd/write_cxxrtl.html
"""

from __future__ import annotations

import ctypes
import functools
import importlib.resources
import os
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from gradiron.arch.config import Config
from gradiron.arch.isa import MachineState, Space, split_address
from gradiron.cache import Cache, digest
from gradiron.errors import DeviceError, ToolError
from gradiron_sim import toolchain
from gradiron_sim.cxxrtl_source import Source, arrange
from gradiron_sim.netlist import Component, to_rtlil
from gradiron_sim.rtl import PATIENCE, RtlDevice, check_ports, default_component, unit_names

Progress = Callable[[str], None]

# `memory_unpack` gives every memory its full name when the hierarchy is flattened. `splitnets` cuts
# words that several cells drive piece by piece: CXXRTL orders whole words, takes such a word for a
# feedback loop and then evaluates everything twice a cycle.
_PASSES = (
    "hierarchy -top top; proc; memory_unpack; flatten; opt -full; opt_merge; splitnets -driver; "
    "opt_clean -purge"
)
_WAVE_PASSES = "hierarchy -top top; proc; memory_unpack; flatten; opt_expr; opt_merge; opt_clean"
_FEEDBACK = re.compile(r"contains feedback arcs through wires:\n((?:  \S.*\n)+)")
_ATTEMPTS = 8
"""At cutting words whose upper bits depend on their lower bits."""
_FLAGS = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-DNDEBUG", "-w")
_FAST_FLAGS = ("-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics")
_ABI = 2
_CHUNK = 1 << 18
"""Cycles between two looks at the clock and at Ctrl-C."""

_DONE, _REFUSED, _NO_ANSWER, _CHECK_FAILED, _LIMIT = range(5)

_LANE = re.compile(r"memory_p_\w*region(\d+)__lane(\d+)\w*")
_INPUTS = ("cxxrtl.py", "cxxrtl_source.py", "netlist.py", "cxxrtl_driver.cc", "cxxrtl_fast.h")
"""Files of this package that decide what a build looks like."""
_OUTPUTS = (
    "req_ready",
    "rsp_valid",
    "rsp_data",
    "rsp_error",
    "state",
    "retire",
    "retire_pc",
    "activity",
)


@dataclass(frozen=True)
class Build:
    """A shared library and how it came about.

    Attributes
    ----------
    path : Path
    key : str
        Digest under which it is kept.
    cached : bool
        Whether it was there already.
    seconds : float
        How long it took to get it.
    compiler : toolchain.Compiler
    units : tuple of str
        Names of the machine's units, from bit 0 of its activity on.
    """

    path: Path
    key: str
    cached: bool
    seconds: float
    compiler: toolchain.Compiler
    units: tuple[str, ...]


def package_file(name: str) -> str:
    """A file of this package."""
    return importlib.resources.files("gradiron_sim").joinpath(name).read_text("utf-8")


def _design_header(source: Source, config: Config, waves: bool) -> str:
    """What the driver has to know of the generated C++."""
    lanes = [
        f"LANE({int(found[1])}, {int(found[2])}, {config.lane_bytes}, {member})"
        for width, member, _depth in source.memories
        if width == 8 * config.lane_bytes and (found := _LANE.fullmatch(member))
    ]
    outputs: list[str] = []
    for port in _OUTPUTS:
        member = f"p_{port.replace('_', '__')}"
        if member in source.registered:
            member = f"curr.{member}" if source.fast else f"{member}.curr"
        outputs.append(f"#define OUT_{port} {member}")
    return "\n".join(
        [
            f"#define GRADIRON_FAST {int(source.fast)}",
            f"#define GRADIRON_FEEDBACK {int(source.feedback)}",
            f"#define GRADIRON_CHECKS {int(source.checks)}",
            f"#define GRADIRON_WAVES {int(waves)}",
            f"#define GRADIRON_WORD_BYTES {config.word_bytes}",
            f"#define GRADIRON_LANES(LANE) {' '.join(lanes)}",
            *outputs,
            "",
        ]
    )


def translate(work: Path, waves: bool = False) -> str:
    """The C++ of the design in "design.il"."""
    passes = f"read_rtlil design.il; {_WAVE_PASSES if waves else _PASSES}"
    for _ in range(_ATTEMPTS):
        log = toolchain.run_tool(
            [
                *toolchain.yosys_command(),
                "-p",
                f"{passes}; write_rtlil settled.il; "
                f"write_cxxrtl -O6 -g{4 if waves else 0} design.cc",
            ],
            what="yosys (translation to C++)",
            cwd=work,
        )
        found = _FEEDBACK.search(log)
        if found is None or waves:
            break
        # Cut these words and what drives them into bits. A name stands for itself but for the
        # characters that mean something in a selection.
        names = (re.sub(r"[^\w$.]", "?", name.strip()) for name in found[1].splitlines())
        cut = " ".join(f"w:{name} %ci1" for name in names)
        passes = f"read_rtlil settled.il; splitcells {cut}; splitnets -driver; opt_clean -purge"
    return (work / "design.cc").read_text("utf-8")


def compile_library(
    work: Path,
    source: Source,
    compiler: toolchain.Compiler,
    waves: bool = False,
    driver: str = "cxxrtl_driver.cc",
) -> Path:
    """The library of a design whose "design.h" is written, and of the loops around it."""
    command = compiler.command_of(library=not source.fast)
    flags = [*_FLAGS, *compiler.flags, *(_FAST_FLAGS if source.fast else ())]
    # Anything above takes minutes on the text that CXXRTL writes for debugging.
    flags.append("-Og" if waves else "-O2")
    if not source.fast:
        flags.append(f"-I{toolchain.cxxrtl_include()}")
    (work / "top.h").write_text(f"#pragma once\n{source.header}", "utf-8")
    (work / "main.h").write_text(source.main, "utf-8")
    (work / "cxxrtl_fast.h").write_text(package_file("cxxrtl_fast.h"), "utf-8")
    units = {"driver": package_file(driver)}
    for number, piece in enumerate(source.pieces):
        units[f"piece{number}"] = f'#define CXXRTL_ASSERT(x) ((void)0)\n#include "top.h"\n{piece}'

    def one(name: str) -> None:
        (work / f"{name}.cc").write_text(units[name], "utf-8")
        toolchain.run_tool(
            [*command, *flags, "-c", "-o", f"{name}.o", f"{name}.cc"],
            what="the C++ compiler",
            cwd=work,
        )

    # The longest first, so that none is left for the end.
    order = sorted(units, key=lambda name: -len(units[name]))
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(one, order))
    library = work / f"design{_suffix()}"
    toolchain.run_tool(
        [*command, *flags, "-shared", "-o", library.name, *(f"{name}.o" for name in units)],
        what="the linker",
        cwd=work,
    )
    return library


def _suffix() -> str:
    return {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")


def build(
    config: Config,
    component: Component | None = None,
    *,
    waves: bool = False,
    fast: bool = True,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Build:
    """Compile a machine, or find it compiled.

    Parameters
    ----------
    config : Config
    component : Component, optional
        The machine, with the ports of `gradiron_sim.rtl.HOST_PORTS`; by default the core.
    waves : bool
        Whether waves can be written; such a build is several times slower.
    fast : bool
        False compiles the text as CXXRTL wrote it, with its own runtime: slower, and the same bits.
    cache : Cache, optional
        Where to keep it; the user's cache folder if not given.
    progress : function, optional
        Called with a line of text at every step that takes long.

    Raises
    ------
    ToolError
        Where a tool is missing or fails, or the cache folder cannot be written.
    DeviceError
        Where the component has other ports.
    """
    begin = time.monotonic()
    report: Progress = progress if progress is not None else _quiet
    # First what may be missing: hardware that is described and not used makes Amaranth complain.
    compiler = toolchain.find_compiler()
    toolchain.yosys_command()
    store = Cache() if cache is None else cache
    inputs = (
        *(package_file(name) for name in _INPUTS),
        "\0".join(compiler.command),
        compiler.version,
        repr(sorted(toolchain.tool_versions().items())),
        sys.platform,
        f"{config.word_bytes} {config.lane_bytes} {waves} {fast}",
    )
    # Describing the hardware takes seconds: the same description, word by word, gives the same.
    shortcut = ""
    if component is None:
        shortcut = digest(*inputs, *_description(), repr(config))[:40]
        known = store.recall(shortcut)
        path = store.lookup(str(known.get("key", "")))
        if path is not None:
            seconds = time.monotonic() - begin
            return Build(path, known["key"], True, seconds, compiler, tuple(known["units"]))
    machine = default_component(config) if component is None else component
    check_ports(machine)
    report(f"describing the {config.array} machine")
    rtlil = to_rtlil(machine)
    key = digest(rtlil, *inputs)[:40]

    def make(work: Path) -> Path:
        (work / "design.il").write_text(rtlil, "utf-8")
        report(f"translating the {config.array} machine to C++ (a minute at the very first time)")
        source = arrange(translate(work, waves), fast=fast and not waves)
        (work / "design.h").write_text(_design_header(source, config, waves), "utf-8")
        report(f"compiling the {config.array} machine with {compiler.origin}")
        return compile_library(work, source, compiler, waves)

    path, cached = store.get(key, make)
    units = unit_names(machine)
    if shortcut:
        store.remember(shortcut, {"key": key, "units": units})
    return Build(path, key, cached, time.monotonic() - begin, compiler, units)


def _description() -> list[str]:
    """The Python text that the core is described in."""
    folders = ("gradiron_hw", "gradiron.arch")
    roots = [Path(str(importlib.resources.files(name))) for name in folders]
    files = sorted(path for root in roots for path in root.glob("*.py"))
    return [text for path in files for text in (path.name, path.read_text("utf-8"))]


def _quiet(text: str) -> None:
    """No report."""


@functools.cache
def _load(path: Path) -> ctypes.CDLL:
    """A library with its functions' types."""
    try:
        library = ctypes.CDLL(str(path))
        machine, u32, u64, i32 = (
            ctypes.c_void_p,
            ctypes.c_uint32,
            ctypes.c_uint64,
            ctypes.c_int32,
        )
        pointer = ctypes.POINTER
        signatures: dict[str, tuple[object, tuple[object, ...]]] = {
            "gd_abi": (u32, ()),
            "gd_fast": (i32, ()),
            "gd_create": (machine, ()),
            "gd_destroy": (None, (machine,)),
            "gd_observe": (None, (machine, i32, i32)),
            "gd_transfer": (
                i32,
                (machine, u32, i32, u32, u64, ctypes.c_char_p, u64, pointer(u64)),
            ),
            "gd_run": (i32, (machine, u64)),
            "gd_state": (u32, (machine,)),
            "gd_ticks": (u64, (machine,)),
            "gd_running": (u64, (machine,)),
            "gd_message": (ctypes.c_char_p, (machine,)),
            "gd_peek": (i32, (machine, u32, u64, u64, ctypes.c_char_p)),
            "gd_retirements": (u64, (machine, pointer(pointer(u64)))),
            "gd_activity": (u64, (machine, pointer(pointer(u64)))),
            "gd_forget": (None, (machine, i32, i32)),
            "gd_waves": (i32, (machine, ctypes.c_char_p)),
        }
        for name, (result, arguments) in signatures.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise ToolError(f"the compiled simulation {path} cannot be loaded: {error}") from error
    if library.gd_abi() != _ABI:
        raise ToolError(f"the compiled simulation {path} belongs to another version; remove it")
    return library


class CxxrtlDevice(RtlDevice):
    """A machine simulated cycle by cycle in compiled C++.

    Any number may be open in one process; different ones may be used from different threads at the
    same time.

    Parameters
    ----------
    config : Config
    record : bool
        Whether to record `retirements`.
    activity : bool
        Whether to record which units are busy in which cycle.
    vcd : path, optional
        Write waves of everything to this file; needs a second, slower build.
    fast : bool
        As for `build`.
    component : Component, optional
        The machine; `gradiron_hw.core.Core(config)` if not given.
    cache : Cache, optional
        Where builds are kept.
    progress : function, optional
        Called with a line of text at every step of a build.

    Members
    -------
    build : Build
        The library it runs from.
    rearranged : bool
        Whether the generated C++ could be rearranged for speed.

    Raises
    ------
    ToolError, DeviceError
        As `build`.
    """

    kind: ClassVar[str] = "cxxrtl"

    def __init__(
        self,
        config: Config,
        *,
        record: bool = False,
        activity: bool = False,
        vcd: str | os.PathLike[str] | None = None,
        fast: bool = True,
        component: Component | None = None,
        cache: Cache | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._machine: int | None = None
        store = Cache() if cache is None else cache
        waves = vcd is not None
        self.build = build(
            config, component, waves=waves, fast=fast, cache=store, progress=progress
        )
        try:
            self._library = _load(self.build.path)
        except ToolError:
            # Stored whole, but for a system that has changed since.
            store.discard(self.build.key)
            self.build = build(
                config, component, waves=waves, fast=fast, cache=store, progress=progress
            )
            self._library = _load(self.build.path)
        self.rearranged = bool(self._library.gd_fast())
        self._machine = int(self._library.gd_create())
        self._library.gd_observe(self._machine, int(record), int(activity))
        if vcd is not None and not self._library.gd_waves(self._machine, os.fsencode(vcd)):
            self.close()
            raise DeviceError(f"the waves cannot be written to {os.fspath(vcd)!r}")
        super().__init__(config, record=record, activity=activity, units=self.build.units)

    @property
    def cycles(self) -> int:
        """Cycles simulated since the device was opened, whatever the machine did in them."""
        return int(self._library.gd_ticks(self._open()))

    @property
    def running_cycles(self) -> int:
        """Cycles in RUNNING since the counters were cleared."""
        return int(self._library.gd_running(self._open()))

    def peek(self, space: Space, address: int, count: int) -> bytes:
        """Read for comparison: data memory is copied, all else read through the host port."""
        if space == Space.MEMORY:
            region, offset = split_address(address)
            data = ctypes.create_string_buffer(count)
            if self._library.gd_peek(self._open(), region, offset, count, data):
                return data.raw
        return self._read(space, address, count)

    def _open(self) -> int:
        if self._machine is None:
            raise self._closed()
        return self._machine

    def _transfer(self, space: Space, address: int, count: int, write: bool, data: object) -> None:
        done = ctypes.c_uint64()
        machine = self._open()
        outcome: int = self._library.gd_transfer(
            machine, int(space), int(write), address, count, data, PATIENCE, ctypes.byref(done)
        )
        self._drain()
        if outcome == _REFUSED:
            raise self._refused(space, write, address + done.value)
        if outcome == _NO_ANSWER:
            raise self._no_answer(space, address + done.value)
        if outcome == _CHECK_FAILED:
            raise self._broken(self._message())

    def _message(self) -> str:
        return bytes(self._library.gd_message(self._open())).decode(errors="replace")

    def _read(self, space: Space, address: int, count: int) -> bytes:
        data = ctypes.create_string_buffer(count if space == Space.MEMORY else 4 * count)
        self._transfer(space, address, count, False, data)
        return data.raw

    def _write(self, space: Space, address: int, data: bytes) -> None:
        if space == Space.PROGRAM:
            self._note_program(address, data)
        count = len(data) if space == Space.MEMORY else len(data) // 4
        self._transfer(space, address, count, True, data)

    def _wait(self, timeout: float | None) -> None:
        end = None if timeout is None else time.monotonic() + timeout
        machine = self._open()
        while True:
            outcome: int = self._library.gd_run(machine, _CHUNK)
            self._drain()
            if outcome == _CHECK_FAILED:
                raise self._broken(self._message())
            if outcome != _LIMIT or self._library.gd_state(machine) != MachineState.RUNNING:
                return
            if end is not None and time.monotonic() >= end:
                raise self._running_still(timeout)

    def _drain(self) -> None:
        """Take over what was recorded."""
        if self._machine is None:
            return
        events = ctypes.POINTER(ctypes.c_uint64)()
        recorded = getattr(self, "retirements", None) is not None
        if recorded:
            count: int = self._library.gd_retirements(self._machine, ctypes.byref(events))
            if count:
                self._note_retirements(events[: 3 * count])
        if self.activity is not None:
            count = self._library.gd_activity(self._machine, ctypes.byref(events))
            if count:
                self._note_activity(events[: 2 * count])
        self._library.gd_forget(self._machine, int(recorded), 1)

    def close(self) -> None:
        """Release the machine and finish the waves; closing twice is harmless."""
        if self._machine is not None:
            self._library.gd_destroy(self._machine)
            self._machine = None

    def __del__(self) -> None:
        if getattr(self, "_machine", None) is not None:
            self.close()
