"""The R x C array of int8 MAC cells, and the transposing buffer on its streamed side.

Weight-stationary: cell (r, c) holds one stationary value; a streamed word brings R values, one per
row, and column c delivers their dot product with the cells of the column. The next stationary tile
is shifted in from cell to cell behind the active one, by rows from the bottom or by columns from
the right, so that a matrix and its transpose are loaded from the same layout. Columns add up in a
pipelined tree: products, pairs, pairs of pairs. A pair of int8 products fits 16 bits because -128
never occurs.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from gradiron.arch.config import Config
from gradiron_hw.cells import DotPair


def array_latency(config: Config) -> int:
    """Advances from a word in the input register to its sums."""
    return config.rows.bit_length()


class Transposer(wiring.Component):
    """R x R bytes that take words by one edge while the previous block leaves by the other.

    R words shifted in along one direction leave as R transposed words, shifted along the other; the
    directions swap after every block, so that one array of registers serves both at one word per
    advance.

    Members
    -------
    shift : advance by one word
    i : word to take, byte k of word n becomes byte n of row k
    o : row that leaves with this shift
    restart : before an instruction: the next shift is the first of a block
    """

    def __init__(self, config: Config) -> None:
        self.rows = config.rows
        width = 8 * config.rows
        super().__init__({"shift": In(1), "restart": In(1), "i": In(width), "o": Out(width)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        n = self.rows
        cells = [[Signal(8, name=f"cell_{y}_{x}") for x in range(n)] for y in range(n)]
        count = Signal(range(n))
        vertical = Signal()
        with m.If(self.restart):
            m.d.sync += [count.eq(0), vertical.eq(0)]
        with m.Elif(self.shift):
            m.d.sync += count.eq(count + 1)
            with m.If(count == n - 1):
                m.d.sync += [count.eq(0), vertical.eq(~vertical)]
        # Vertical: words enter at the last line and move up, lines leave at the top. Horizontal:
        # words enter as the last column and move left, columns leave at the left.
        with m.If(self.shift):
            for y in range(n):
                for x in range(n):
                    below = cells[y + 1][x] if y + 1 < n else self.i[8 * x : 8 * x + 8]
                    right = cells[y][x + 1] if x + 1 < n else self.i[8 * y : 8 * y + 8]
                    m.d.sync += cells[y][x].eq(Mux(vertical, below, right))
        m.d.comb += self.o.eq(Mux(vertical, Cat(*cells[0]), Cat(*[cells[y][0] for y in range(n)])))
        return m


class MacArray(wiring.Component):
    """The cells and the adder tree.

    Parameters
    ----------
    config : Config
    technology : str
        As for `cells.DotPair`.

    Members
    -------
    en : advance of the streamed side
    x : streamed word, R int8, taken into the input register with `en`
    swap : with `en`: the tile that was shifted in becomes active for this word and the following
    load : with `en`: shift `b` into the tile behind
    by_columns : `b` is a column (R int8) instead of a row (C int8)
    b : word of the next tile
    sums : C int16..int20 sums, valid `array_latency` advances after their word was in the input
        register
    """

    def __init__(self, config: Config, *, technology: str = "generic") -> None:
        self.config, self.technology = config, technology
        self.sum_bits = 15 + config.rows.bit_length() - 1
        super().__init__(
            {
                "en": In(1),
                "x": In(8 * config.rows),
                "swap": In(1),
                "load": In(1),
                "by_columns": In(1),
                "b": In(8 * config.word_bytes),
                "sums": Out(self.sum_bits * config.cols),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        rows, cols = self.config.rows, self.config.cols
        behind = [[Signal(8, name=f"behind_{r}_{c}") for c in range(cols)] for r in range(rows)]
        with m.If(self.en & self.load):
            for r in range(rows):
                for c in range(cols):
                    row = behind[r + 1][c] if r + 1 < rows else self.b[8 * c : 8 * c + 8]
                    column = behind[r][c + 1] if c + 1 < cols else self.b[8 * r : 8 * r + 8]
                    m.d.sync += behind[r][c].eq(Mux(self.by_columns, column, row))
        sums: list[Value] = []
        for c in range(cols):
            level: list[Value] = []
            for r in range(0, rows, 2):
                pair = DotPair(technology=self.technology)
                m.submodules[f"pair_{r}_{c}"] = pair
                m.d.comb += [
                    pair.en.eq(self.en),
                    pair.swap.eq(self.swap),
                    pair.x.eq(self.x[8 * r : 8 * r + 16]),
                    pair.w.eq(Cat(behind[r][c], behind[r + 1][c])),
                ]
                level.append(pair.o)
            depth = 1
            while len(level) > 1:
                following: list[Value] = []
                for i in range(0, len(level), 2):
                    total = Signal(signed(16 + depth), name=f"sum{depth}_{i // 2}_{c}")
                    with m.If(self.en):
                        m.d.sync += total.eq(level[i] + level[i + 1])
                    following.append(total)
                level = following
                depth += 1
            sums.append(level[0])
        m.d.comb += self.sums.eq(Cat(*[s[: self.sum_bits] for s in sums]))
        assert all(len(s) == self.sum_bits for s in sums)
        return m


def ones(config: Config) -> Const:
    """A word of R ones: the streamed row whose product is the bias gradient."""
    return Const(sum(1 << 8 * r for r in range(config.rows)), 8 * config.rows)
