"""Random numbers of stochastic rounding: the key of a tensor, and 16 bits for every element.

Both units compute exactly what `gradiron.arch.numerics.random_key` and `random16` compute. There is
no state that advances: a number depends on the seed, the step, the tensor, the use and the element
alone, so that no tiling, stall or array size can change a bit of a training run.

Ref: G. Marsaglia, "Xorshift RNGs", Journal of Statistical Software 8(14), 2003 (the key).
"""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from gradiron.arch.numerics import HASH_FINAL, HASH_ROUNDS, KEY_CONSTANTS, USE_CONSTANTS
from gradiron.errors import ConfigError

__all__ = ["KeyUnit", "RandomBlock", "rotate_left"]

LANES = (1, 2, 4, 8, 16)
BLOCK_ELEMENTS = 16
"""One hash serves this many neighbouring elements, each with its own rotation."""


class KeyUnit(wiring.Component):
    """Computes the key of a tensor, one xorshift round per cycle with `round`.

    Members
    -------
    start : In(1)
        The key becomes the constant of the first round.
    round : In(1)
        The key becomes that of the next round.
    addend : In(32)
        What is added in this round: the seed, the step, and the constants of rounds 2 and 3.
    tagged : In(1)
        The tensor is added too: round 2.
    tensor : In(6)
    key : Out(32)
        After four rounds `random_key(seed, step, tensor)`.
    """

    start: In(1)
    round: In(1)
    addend: In(32)
    tagged: In(1)
    tensor: In(6)
    key: Out(32)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # The tensor number is added to the low bits of a constant and never carries out of them.
        low_bits = 7
        low_mask = (1 << low_bits) - 1
        assert (KEY_CONSTANTS[2] & low_mask) + 63 <= low_mask
        assert KEY_CONSTANTS[1] == 0
        tensor = Mux(self.tagged, self.tensor, 0)
        low = Signal(low_bits)
        x, y, z = Signal(32), Signal(32), Signal(32)
        m.d.comb += [
            low.eq(self.addend[:low_bits] + tensor),
            x.eq(self.key + Cat(low, self.addend[low_bits:])),
            y.eq(x ^ (x << 13)),
            z.eq(y ^ (y >> 17)),
        ]
        with m.If(self.start):
            m.d.sync += self.key.eq(KEY_CONSTANTS[0])
        with m.Elif(self.round):
            m.d.sync += self.key.eq(z ^ (z << 5))
        return m


def rotate_left(value: Value, amount: Value) -> Value:
    """A rotation as one level of multiplexers per bit of the amount."""
    for bit in range(len(amount)):
        value = Mux(amount[bit], value.rotate_left(1 << bit), value)
    return value


class RandomBlock(wiring.Component):
    """The random numbers of `lanes` consecutive elements, every cycle.

        r[l] = rotate_left(hash16(key, use, (index + l) >> 4), ((index + l) + turn_extra) & 15)

    with `index + l` modulo 2**offset_bits. The numbers of the inputs of one enabled cycle appear
    after exactly two enabled cycles and stay while `en` is low. `lanes` neighbours lie in at most
    two blocks of sixteen: both are hashed, and each lane takes the one that it is in. No reset is
    needed.

    Parameters
    ----------
    lanes : int
        1, 2, 4, 8 or 16.
    offset_bits : int
        Width of element numbers (`Config.offset_bits`), 5 to 28.

    Members
    -------
    en : In(1)
        Advances the pipeline.
    key : In(32)
    use : In(3)
        One of `gradiron.arch.numerics.Use`.
    index : In(offset_bits)
        Element number of lane 0.
    turn_extra : In(4)
        Added to every rotation; 0 gives `random16`.
    r : Out(16).array(lanes)

    Raises
    ------
    ConfigError
        For a parameter outside its range.
    """

    def __init__(self, *, lanes: int, offset_bits: int) -> None:
        if lanes not in LANES:
            raise ConfigError(f"lanes is {lanes!r}; it must be one of {LANES}")
        if not 5 <= offset_bits <= 28:
            raise ConfigError(f"offset_bits is {offset_bits!r}; it must be from 5 to 28")
        self._lanes = lanes
        self._offset_bits = offset_bits
        super().__init__(
            {
                "en": In(1),
                "key": In(32),
                "use": In(3),
                "index": In(offset_bits),
                "turn_extra": In(4),
                "r": Out(16).array(lanes),
            }
        )

    @property
    def lanes(self) -> int:
        """Elements per cycle."""
        return self._lanes

    @property
    def offset_bits(self) -> int:
        """Width of element numbers."""
        return self._offset_bits

    def elaborate(self, platform: object) -> Module:
        m = Module()
        lanes = self.lanes
        block = self.index[4:]
        low_key = self.key[:16]
        starts = [self._fold(block) + low_key]
        if lanes > 1 and len(block) <= 16:
            # The next block without an incrementer: a carry into the addition of the key. Where the
            # block number wraps to 0, ones above it turn all ones into -1.
            wrapping = Cat(block, block.all().replicate(16 - len(block)))
            starts.append((Cat(Const(1, 1), wrapping) + Cat(Const(1, 1), low_key))[1:17])
        elif lanes > 1:
            starts.append(self._fold((block + 1)[: len(block)]) + low_key)

        # Stage 1 takes the low half of the key, stage 2 the high half with the use.
        k1_high = Signal(16, reset_less=True)
        constant = Signal(16)
        with m.Switch(self.use):
            for use, value in enumerate(USE_CONSTANTS):
                with m.Case(use):
                    m.d.comb += constant.eq(value)
        with m.If(self.en):
            m.d.sync += k1_high.eq(self.key[16:] ^ constant)

        hashes = []
        for number, start in enumerate(starts):
            x = Signal(16, name=f"mixed{number}")
            s1_x = Signal(16, name=f"s1_x{number}", reset_less=True)
            s2_x = Signal(16, name=f"s2_x{number}", reset_less=True)
            m.d.comb += x.eq(start)
            first = x
            for shifts in HASH_ROUNDS[:2]:
                first = self._round(first, *shifts)
            second = s1_x ^ k1_high
            for shifts in HASH_ROUNDS[2:]:
                second = self._round(second, *shifts)
            with m.If(self.en):
                m.d.sync += [
                    s1_x.eq(first),
                    s2_x.eq(second),
                ]
            hashes.append(s2_x ^ (s2_x >> HASH_FINAL))

        # A lane in the first block is rotated by turn + l. In the second block only the lanes with
        # turn + l >= 16 lie, where turn + lanes - 1 - 16 is at most lanes - 2: without turn_extra
        # the second rotation has few bits (none for two lanes).
        turn = self.index[:4]
        beyond_bits = max(0, lanes - 2).bit_length()
        beyond = (turn + (lanes - 1))[:beyond_bits]
        s1_turn, s2_turn = (Signal(4, name=f"s{s}_turn", reset_less=True) for s in (1, 2))
        s1_beyond, s2_beyond = (Signal(4, name=f"s{s}_beyond", reset_less=True) for s in (1, 2))
        s1_cross, s2_cross = (
            Signal(max(1, lanes - 1), name=f"s{s}_cross", reset_less=True) for s in (1, 2)
        )
        with m.If(self.en):
            m.d.sync += [
                s1_turn.eq(turn + self.turn_extra),
                s2_turn.eq(s1_turn),
                s1_beyond.eq(beyond + self.turn_extra),
                s2_beyond.eq(s1_beyond),
                s1_cross.eq(Cat(turn.matches(*range(16 - lane, 16)) for lane in range(1, lanes))),
                s2_cross.eq(s1_cross),
            ]
        rotated = Signal(16)
        m.d.comb += rotated.eq(rotate_left(hashes[0], s2_turn))
        m.d.comb += self.r[0].eq(rotated)
        if lanes > 1:
            rotated_next = Signal(16)
            m.d.comb += rotated_next.eq(rotate_left(hashes[1], s2_beyond))
            for lane in range(1, lanes):
                m.d.comb += self.r[lane].eq(
                    Mux(
                        s2_cross[lane - 1],
                        rotated_next.rotate_left(lane - (lanes - 1)),
                        rotated.rotate_left(lane),
                    )
                )
        return m

    @staticmethod
    def _fold(block: Value) -> Value:
        """A block number as 16 bits."""
        high = block[16:]
        return block[:16] ^ high ^ (high << 8)

    @staticmethod
    def _round(x: Value, right: int, left: int) -> Value:
        """One round of the mix; the bits below `left` pass the adder by."""
        y = x ^ (x >> right)
        return Cat(y[:left], (y[left:] + y[: 16 - left])[: 16 - left])
