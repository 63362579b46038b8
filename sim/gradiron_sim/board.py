"""A board in simulation: the whole top, the pins of its serial line included, byte in and byte out.

`Line` is hardware that is spoken to in bytes, compiled as `gradiron_sim.cxxrtl` compiles a core.
`PseudoTerminal` gives it a device file of the operating system, so that a program that opens a
serial port opens the simulated board.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from gradiron.arch.config import Config
from gradiron.cache import Cache, digest
from gradiron.errors import DeviceError, ToolError
from gradiron_sim import toolchain
from gradiron_sim.cxxrtl import compile_library, package_file, translate
from gradiron_sim.cxxrtl_source import Source, arrange
from gradiron_sim.netlist import Component, port_widths, to_rtlil

Progress = Callable[[str], None]

STREAM_PORTS = {
    "i__payload": 8,
    "i__valid": 1,
    "i__ready": 1,
    "o__payload": 8,
    "o__valid": 1,
    "o__ready": 1,
}
PIN_PORTS = {"rx": 1, "tx": 1}
OUTPUT = "leds"
SIMULATED_DIVISOR = 4
"""Clock cycles in a bit of a simulated board's line: as few as possible, for speed."""

_ABI = 1
_INPUTS = ("board.py", "cxxrtl.py", "cxxrtl_source.py", "netlist.py", "cxxrtl_line.cc")
_CHUNK = 1 << 12
"""Cycles between two looks at the pseudo-terminal."""
_ROOM = 1 << 16


def _member(source: Source, port: str) -> str:
    member = f"p_{port.replace('_', '__')}"
    if member in source.registered:
        return f"curr.{member}" if source.fast else f"{member}.curr"
    return member


def _header(source: Source, divisor: int) -> str:
    outputs = {"tx": "tx"} if divisor else {p.replace("__", "_"): p for p in STREAM_PORTS}
    return "\n".join(
        [
            f"#define GRADIRON_FAST {int(source.fast)}",
            f"#define GRADIRON_FEEDBACK {int(source.feedback)}",
            f"#define GRADIRON_DIVISOR {divisor}",
            f"#define GRADIRON_OUTPUT {_member(source, OUTPUT)}",
            *(f"#define OUT_{name} {_member(source, port)}" for name, port in outputs.items()),
            "",
        ]
    )


def build_line(
    component: Component,
    *,
    divisor: int,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Path:
    """Compile hardware that is spoken to in bytes, or find it compiled.

    Parameters
    ----------
    component : Component
        With an output `leds`, and the pins `rx` and `tx` or the streams `i` and `o`.
    divisor : int
        Clock cycles in a bit of the line; 0 for streams.
    cache, progress
        As of `gradiron_sim.cxxrtl.build`.

    Raises
    ------
    ToolError
        Where a tool is missing or fails.
    DeviceError
        Where the component has other ports.
    """
    report: Progress = progress if progress is not None else lambda text: None
    compiler = toolchain.find_compiler()
    toolchain.yosys_command()
    found = port_widths(component)
    expected = PIN_PORTS if divisor else STREAM_PORTS
    if {name: width for name, width in found.items() if name != OUTPUT} != expected:
        raise DeviceError(
            f"{type(component).__name__} cannot be simulated byte by byte: its ports are "
            f"{found}, expected are {expected} and {OUTPUT}"
        )
    report("describing the board")
    rtlil = to_rtlil(component)
    key = digest(
        rtlil,
        *(package_file(name) for name in (*_INPUTS, "cxxrtl_fast.h")),
        "\0".join(compiler.command),
        compiler.version,
        repr(sorted(toolchain.tool_versions().items())),
        sys.platform,
        str(divisor),
    )[:40]

    def make(work: Path) -> Path:
        (work / "design.il").write_text(rtlil, "utf-8")
        report("translating the board to C++ (a minute at the very first time)")
        source = arrange(translate(work))
        (work / "design.h").write_text(_header(source, divisor), "utf-8")
        report(f"compiling the board with {compiler.origin}")
        return compile_library(work, source, compiler, driver="cxxrtl_line.cc")

    return (Cache() if cache is None else cache).get(key, make)[0]


@functools.cache
def _load(path: Path) -> ctypes.CDLL:
    machine, u32, u64 = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64
    pointer = ctypes.POINTER(u64)
    signatures: dict[str, tuple[object, tuple[object, ...]]] = {
        "gl_abi": (u32, ()),
        "gl_create": (machine, ()),
        "gl_destroy": (None, (machine,)),
        "gl_ticks": (u64, (machine,)),
        "gl_output": (u32, (machine,)),
        "gl_run": (
            u64,
            (
                *(machine, ctypes.c_char_p, u64, pointer),
                *(ctypes.c_char_p, u64, pointer, u64, u64, u32),
            ),
        ),
    }
    try:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in signatures.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise ToolError(f"the compiled simulation {path} cannot be loaded: {error}") from error
    if library.gl_abi() != _ABI:
        raise ToolError(f"the compiled simulation {path} belongs to another version; remove it")
    return library


class Line:
    """Simulated hardware that bytes go into and come out of.

    Parameters
    ----------
    component : Component
    divisor : int
        Clock cycles in a bit of the line; 0 where the component has streams.
    stall : int
        With streams: a byte moves in one of 2**stall cycles at most, at random.
    cache, progress
        As of `build_line`.

    Raises
    ------
    ToolError, DeviceError
        As `build_line`.
    """

    def __init__(
        self,
        component: Component,
        *,
        divisor: int = 0,
        stall: int = 0,
        cache: Cache | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._machine: int | None = None
        self.divisor, self.stall = divisor, stall
        path = build_line(component, divisor=divisor, cache=cache, progress=progress)
        self._library = _load(path)
        self._machine = int(self._library.gl_create())
        self._waiting = bytearray()
        self._out = ctypes.create_string_buffer(_ROOM)

    @property
    def cycles(self) -> int:
        """Cycles simulated so far."""
        return int(self._library.gl_ticks(self._open()))

    @property
    def leds(self) -> int:
        """The output of that name in the last cycle."""
        return int(self._library.gl_output(self._open()))

    @property
    def waiting(self) -> int:
        """Bytes that were put in and that the hardware has not taken yet."""
        return len(self._waiting)

    def put(self, data: bytes) -> None:
        """Bytes for the hardware, after those that wait already."""
        self._waiting += data

    def run(self, cycles: int, *, quiet: int | None = None) -> bytes:
        """Simulate, and return what came out.

        Parameters
        ----------
        cycles : int
            At most so many.
        quiet : int, optional
            Return when no byte has moved for so many cycles.
        """
        machine = self._open()
        taken, given = ctypes.c_uint64(), ctypes.c_uint64()
        data = bytes(self._waiting)
        self._library.gl_run(
            machine,
            data,
            len(data),
            ctypes.byref(taken),
            self._out,
            _ROOM,
            ctypes.byref(given),
            cycles,
            cycles if quiet is None else quiet,
            self.stall,
        )
        del self._waiting[: taken.value]
        return self._out.raw[: given.value]

    def close(self) -> None:
        """Release the simulation; closing twice is harmless."""
        if self._machine is not None:
            self._library.gl_destroy(self._machine)
            self._machine = None

    def _open(self) -> int:
        if self._machine is None:
            raise DeviceError("the simulated board is closed; open another one")
        return self._machine


def simulated_board(
    config: Config,
    *,
    divisor: int = SIMULATED_DIVISOR,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> Line:
    """The whole top of a board with its pins.

    Raises
    ------
    ToolError
        Where a tool is missing or fails.
    ConfigError
        For a divisor that is too small.
    """
    from gradiron_hw.board_top import BoardTop

    top = BoardTop(config, divisor=divisor)
    return Line(top, divisor=divisor, cache=cache, progress=progress)


class PseudoTerminal:
    """A simulated board behind a device file of the operating system.

    The simulation runs in `serve`, or in a thread of its own within a `with` statement. It stands
    still while no program of the machine runs and no byte is on its way.

    Parameters
    ----------
    line : Line

    Members
    -------
    path : str
        The device file to open as a serial port.

    Raises
    ------
    DeviceError
        Where the operating system has no pseudo-terminals.
    """

    def __init__(self, line: Line) -> None:
        try:
            import tty

            self._host, self._device = os.openpty()
            tty.setraw(self._device)
            self.path = os.ttyname(self._device)
        except (ImportError, AttributeError, OSError) as error:
            raise DeviceError(
                f"this system gives no pseudo-terminal ({error}); a simulated board needs Linux or "
                "macOS"
            ) from None
        os.set_blocking(self._host, False)
        self.line = line
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False

    def serve(self, seconds: float | None = None) -> None:
        """Simulate until `stop`, or for so many seconds."""
        end = None if seconds is None else time.monotonic() + seconds
        line, pending, idle = self.line, bytearray(), False
        # Long enough for every pause between two bytes of an answer.
        quiet = 64 * max(4, line.divisor)
        while not self._stop.is_set() and (end is None or time.monotonic() < end):
            wanted = [self._host] if line.waiting < _ROOM else []
            readable, writable, _ = select.select(
                wanted, [self._host] if pending else [], [], 0.02 if idle else 0
            )
            if readable:
                with contextlib.suppress(OSError):  # nobody has the other end open
                    line.put(os.read(self._host, _ROOM))
            if writable:
                with contextlib.suppress(BlockingIOError):
                    del pending[: os.write(self._host, pending)]
            if idle and not line.waiting:
                continue
            got = line.run(_CHUNK, quiet=_CHUNK if line.leds & 1 else quiet)
            pending += got
            idle = not got and not line.waiting and not line.leds & 5
        if pending:
            with contextlib.suppress(OSError):
                os.write(self._host, pending)

    def stop(self) -> None:
        """Let `serve` return."""
        self._stop.set()

    def close(self) -> None:
        """Stop, and give the device file back; closing twice is harmless."""
        self.stop()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if not self._closed:
            self._closed = True
            os.close(self._host)
            os.close(self._device)

    def __enter__(self) -> PseudoTerminal:
        self._thread = threading.Thread(target=self.serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self.close()
