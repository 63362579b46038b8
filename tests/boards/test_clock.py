"""PLL settings: within the limits of the data sheets, and never faster than wanted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradiron.arch.boards import BOARDS
from gradiron.errors import ConfigError
from gradiron_boards.clock import ecp5_pll, ice40_pll


@given(st.sampled_from([12e6, 16e6, 25e6, 48e6, 100e6]), st.floats(20e6, 200e6))
def test_ice40(source: float, wanted: float) -> None:
    pll = ice40_pll(source, wanted)
    assert 0.75 * wanted <= pll.output_hz <= wanted * 1.001
    phase = source / (pll.divr + 1)
    oscillator = phase * (pll.divf + 1)
    assert oscillator / 2**pll.divq == pytest.approx(pll.output_hz)
    assert 10e6 <= phase <= 133e6
    assert 533e6 <= oscillator <= 1066e6
    assert 0 <= pll.divf < 128
    assert 1 <= pll.filter_range <= 6


@given(st.sampled_from([12e6, 25e6, 48e6, 100e6]), st.floats(20e6, 200e6))
def test_ecp5(source: float, wanted: float) -> None:
    pll = ecp5_pll(source, wanted)
    assert 0.75 * wanted <= pll.output_hz <= wanted * 1.001
    assert source * pll.feedback / pll.divider == pytest.approx(pll.output_hz)
    assert 3.125e6 <= source / pll.divider <= 400e6
    assert 400e6 <= pll.output_hz * pll.post <= 800e6


def test_known_settings() -> None:
    """Those that the tools of the vendors and icepll give."""
    pll = ice40_pll(12e6, 30e6)
    assert (pll.divr, pll.divf, pll.divq, pll.filter_range) == (0, 79, 5, 1)


@pytest.mark.parametrize("make", [ice40_pll, ecp5_pll])
def test_impossible(make: object) -> None:
    with pytest.raises(ConfigError, match="PLL makes no clock of 1000 MHz"):
        make(12e6, 1e9)


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_boards_come_near_their_clock(board: object) -> None:
    make = ice40_pll if board.fpga.startswith("iCE40") else ecp5_pll
    assert make(board.oscillator_hz, board.core_hz).output_hz >= 0.99 * board.core_hz
