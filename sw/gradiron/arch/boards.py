"""The boards that have builds of their own: facts, and the machines that they can hold.

Everything here is a fact of a data sheet or a choice; what a build really takes is measured by
`gradiron build`.

Ref: iCE40 UltraPlus Family (FPGA-DS-02008), iCE40 LP/HX Family (FPGA-DS-02029), ECP5 and ECP5-5G
Family (FPGA-DS-02012).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gradiron.arch.config import Config, up5k_config
from gradiron.errors import ConfigError


@dataclass(frozen=True)
class Board:
    """A board.

    Parameters
    ----------
    name : str
        On the command line.
    title : str
    fpga : str
    oscillator_hz : float
        The board's clock.
    core_hz : float
        The clock that its builds aim for; the PLL gives the nearest one below.
    luts, dsps, brams, spram : int
        What the FPGA has; block memories of 4 Kbit on iCE40, of 18 Kbit on ECP5.
    machines : mapping of str to Config
        By array, the first is the default.
    baud : int
        Of its serial line.
    """

    name: str
    title: str
    fpga: str
    oscillator_hz: float
    core_hz: float
    luts: int
    dsps: int
    brams: int
    spram: int
    machines: Mapping[str, Config]
    baud: int = 1_000_000

    @property
    def array(self) -> str:
        """The array of its default machine."""
        return next(iter(self.machines))

    def config(self, array: str | None = None) -> Config:
        """Its machine with an array; the default one if not given.

        Raises
        ------
        ConfigError
            For an array that it has no build for.
        """
        chosen = self.array if array is None else array.lower()
        if chosen not in self.machines:
            raise ConfigError(
                f"{self.title} has no machine with the array {array}; it has "
                f"{', '.join(self.machines)}"
            )
        return self.machines[chosen]


def _block_ram(
    board: str, array: int, regions: tuple[int, ...], *, depth: int = 512, words: int = 1024
) -> Config:
    return Config(
        rows=array,
        cols=array,
        regions=regions,
        acc_depth=depth,
        program_words=words,
        name=f"{board}-{array}x{array}",
    )


def _machines(*configs: Config) -> dict[str, Config]:
    return {config.array: config for config in configs}


# An 8x8 array with its products in logic takes 24,562 LUTs, a few more than there are.
_ULX3S_25F = _machines(*(_block_ram("ulx3s-25f", size, (1 << 15, 1 << 15)) for size in (4, 2)))
_85F_REGIONS = (1 << 17, 1 << 17, 1 << 15)
_HX8K = Config(
    rows=2,
    cols=2,
    regions=(2048, 2048),
    acc_depth=256,
    program_words=512,
    momentum=False,
    name="hx8k-2x2",
)

BOARDS: tuple[Board, ...] = (
    Board(
        name="icebreaker",
        title="iCEBreaker",
        fpga="iCE40 UP5K",
        oscillator_hz=12e6,
        core_hz=30e6,
        luts=5280,
        dsps=8,
        brams=30,
        spram=4,
        machines=_machines(up5k_config()),
    ),
    Board(
        name="hx8k",
        title="iCE40HX8K-B-EVN",
        fpga="iCE40 HX8K",
        oscillator_hz=12e6,
        core_hz=40e6,
        luts=7680,
        dsps=0,
        brams=32,
        spram=0,
        machines=_machines(_HX8K),
    ),
    Board(
        name="ulx3s-25f",
        title="ULX3S 25F",
        fpga="ECP5 25F",
        oscillator_hz=25e6,
        core_hz=75e6,
        luts=24288,
        dsps=28,
        brams=56,
        spram=0,
        machines=_ULX3S_25F,
    ),
    Board(
        name="ulx3s-85f",
        title="ULX3S 85F",
        fpga="ECP5 85F",
        oscillator_hz=25e6,
        core_hz=65e6,
        luts=83640,
        dsps=156,
        brams=208,
        spram=0,
        machines=_machines(*(_block_ram("ulx3s-85f", size, _85F_REGIONS) for size in (16, 8, 4))),
    ),
    Board(
        name="ecpix5-45f",
        title="ECPIX-5 45F",
        fpga="ECP5-5G 45F",
        oscillator_hz=100e6,
        core_hz=75e6,
        luts=43848,
        dsps=72,
        brams=108,
        spram=0,
        machines=_machines(
            *(_block_ram("ecpix5-45f", size, (1 << 16, 1 << 16, 1 << 14)) for size in (8, 4))
        ),
    ),
    Board(
        name="ecpix5-85f",
        title="ECPIX-5 85F",
        fpga="ECP5-5G 85F",
        oscillator_hz=100e6,
        core_hz=65e6,
        luts=83640,
        dsps=156,
        brams=208,
        spram=0,
        machines=_machines(*(_block_ram("ecpix5-85f", size, _85F_REGIONS) for size in (16, 8, 4))),
    ),
)
BOARD_BY_NAME: dict[str, Board] = {board.name: board for board in BOARDS}


def find_board(name: str) -> Board:
    """A board by its name.

    Raises
    ------
    ConfigError
        For one that is not known.
    """
    if name not in BOARD_BY_NAME:
        raise ConfigError(f"no board is called {name!r}; known are: {', '.join(BOARD_BY_NAME)}")
    return BOARD_BY_NAME[name]
