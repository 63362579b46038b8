"""One frozen, validated description of a machine; every derived value is a property.

The same object configures the RTL, the golden model, the compiler and the cycle model, and its
`digest` is what device and driver compare before anything runs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gradiron.errors import ConfigError

ARRAY_SIZES = (2, 4, 8, 16)
MAX_REGIONS = 4
REGION_SHIFT = 22
"""A byte address has its region in bits 23:22 and the offset within the region below."""
MAX_REGION_BYTES = 1 << (REGION_SHIFT - 1)
TENSORS = 64
"""Entries of the exponent table."""


def _is_power_of_two(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


@dataclass(frozen=True)
class Config:
    """A machine.

    Parameters
    ----------
    rows, cols : int
        Rows R (reduction) and columns C (outputs) of the MAC array; each one of 2, 4, 8, 16.
    regions : tuple of int
        Sizes in bytes of the 1 to 4 data memory regions. Each region has its own port (or pair of
        ports), so streams in different regions do not disturb each other.
    acc_depth : int
        Rows of the accumulator memory, a power of two from 16 to 4096. A row is C int32.
    program_words : int
        Words of the program memory, a power of two from 64 to 65536.
    lanes : int
        Elements the vector path handles per cycle; a power of two, at most `cols`. 0 means `cols`.
    single_port : bool
        True where a region is a single-ported memory (iCE40 UP5K SPRAM): a write then freezes the
        machine for one cycle. False: one read and one write port (block RAM).
    lane_bytes : int
        1 where every byte of a word has its own memory, so that a window may start at any byte; 2
        where it must start at an even one (SPRAM is 16 bits wide).
    momentum : bool
        Whether the momentum update is built.
    """

    rows: int = 8
    cols: int = 8
    regions: tuple[int, ...] = (1 << 17, 1 << 18, 1 << 18)
    acc_depth: int = 512
    program_words: int = 1024
    lanes: int = 0
    single_port: bool = False
    lane_bytes: int = 1
    momentum: bool = True
    name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for what, size in (("rows", self.rows), ("cols", self.cols)):
            if size not in ARRAY_SIZES:
                raise ConfigError(f"{what} is {size!r}; it must be one of {ARRAY_SIZES}")
        object.__setattr__(self, "regions", tuple(int(size) for size in self.regions))
        if self.lanes == 0:
            object.__setattr__(self, "lanes", self.cols)
        if not 1 <= len(self.regions) <= MAX_REGIONS:
            raise ConfigError(f"{len(self.regions)} regions; there must be 1 to {MAX_REGIONS}")
        for index, size in enumerate(self.regions):
            if not 64 <= size <= MAX_REGION_BYTES or size % self.word_bytes:
                raise ConfigError(
                    f"region {index} has {size} bytes; it must have 64 to {MAX_REGION_BYTES}, "
                    f"a multiple of the word of {self.word_bytes} bytes"
                )
        for what, value, low, high in (
            ("acc_depth", self.acc_depth, 16, 4096),
            ("program_words", self.program_words, 64, 65536),
            ("lanes", self.lanes, 1, self.cols),
            ("lane_bytes", self.lane_bytes, 1, 2),
        ):
            if not _is_power_of_two(value) or not low <= value <= high:
                raise ConfigError(
                    f"{what} is {value!r}; it must be a power of two from {low} to {high}"
                )

    # --- derived -------------------------------------------------------------------------------

    @property
    def word_bytes(self) -> int:
        """Bytes S of a memory window: the larger of rows and columns."""
        return max(self.rows, self.cols)

    @property
    def peak(self) -> int:
        """Products per cycle of the whole array."""
        return self.rows * self.cols

    @property
    def offset_bits(self) -> int:
        """Width of offset arithmetic: enough for the largest region and one guard bit above it."""
        return max(12, (max(self.regions) - 1).bit_length() + 1)

    @property
    def pc_bits(self) -> int:
        """Width of the program counter."""
        return (self.program_words - 1).bit_length()

    @property
    def groups(self) -> int:
        """Cycles in which the lanes handle one row of C results."""
        return self.cols // self.lanes

    @property
    def stepwise(self) -> bool:
        """Whether a row's results are read, computed and written in fixed steps of some cycles.

        Otherwise, with C lanes, both planes of a row are handled at once: a row per cycle where
        memory has two ports, and a few cycles where reads and writes take turns.
        """
        return self.groups > 1

    @property
    def drains(self) -> bool:
        """Whether results wait for a cycle in which the engine stands still to be written."""
        return self.single_port or self.stepwise

    @property
    def memory_bytes(self) -> int:
        """Bytes of data memory in all regions."""
        return sum(self.regions)

    @property
    def array(self) -> str:
        """The array's name, "RxC"."""
        return f"{self.rows}x{self.cols}"

    def region_base(self, region: int) -> int:
        """Byte address at which a region starts."""
        return region << REGION_SHIFT

    def digest(self) -> int:
        """A 32-bit digest of all that a program or a driver relies on."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")

    def to_dict(self) -> dict[str, Any]:
        """All parameters, without the name."""
        values: dict[str, Any] = dataclasses.asdict(self)
        del values["name"]
        values["regions"] = list(self.regions)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """The inverse of `to_dict`."""
        chosen: dict[str, Any] = {**values, "regions": tuple(values["regions"])}
        return cls(**chosen)

    def replace(self, **changes: Any) -> Config:
        """A copy with some parameters changed."""
        if "cols" in changes and "lanes" not in changes and self.lanes == self.cols:
            changes["lanes"] = 0
        return dataclasses.replace(self, **changes)


def parse_array(text: str) -> tuple[int, int]:
    """ "4x8" -> (4, 8).

    Raises
    ------
    ConfigError
        Where the text is not RxC with R and C out of 2, 4, 8, 16.
    """
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(
        part.isascii() and part.isdigit() and int(part) in ARRAY_SIZES for part in parts
    ):
        raise ConfigError(
            f"array {text!r} is not RxC with R and C out of {ARRAY_SIZES}; for example 8x8"
        )
    return int(parts[0]), int(parts[1])


def simulation_config(array: str = "8x8", *, regions: Sequence[int] | None = None) -> Config:
    """The generous machine used for simulations: block RAM, four regions, C lanes."""
    rows, cols = parse_array(array)
    chosen = tuple(regions) if regions is not None else (1 << 17, 1 << 17, 1 << 17, 1 << 16)
    return Config(rows=rows, cols=cols, regions=chosen, name=f"simulation-{array}")


def up5k_config(*, momentum: bool = False) -> Config:
    """The machine of an iCE40 UP5K: 4x4, 128 KB of single-ported SPRAM in two regions."""
    return Config(
        rows=4,
        cols=4,
        regions=(1 << 16, 1 << 16),
        acc_depth=256,
        program_words=1024,
        lanes=1,
        single_port=True,
        lane_bytes=2,
        momentum=momentum,
        name="up5k",
    )
