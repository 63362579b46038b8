"""Compiled programs against the formulas of the numeric contract, written out again in numpy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradiron.arch.config import Config, simulation_config, up5k_config
from gradiron.arch.isa import BY_NAME, REGISTERS, Decoded, decode
from gradiron.arch.numerics import EXP_ROM, LOG_ROM, Use, random16, random_key
from gradiron.assembler import assemble
from gradiron.compiler import Program, compile_graph, gemm_program, split_taps
from gradiron.errors import DataError, ModelError, PlanError
from gradiron.golden import GoldenDevice
from gradiron.graph import INFER, TRAIN, Graph
from gradiron.model import Parameters, State, initial_state, read_state, write_state
from gradiron.networks import mlp, network
from gradiron.operations import Product

# --- the formulas, straight ----------------------------------------------------------------------

WIDE = np.int64


def rn(v: Any, s: int) -> Any:
    s = max(-16, min(31, s))
    return np.floor_divide(v + (1 << (s - 1)), 1 << s) if s > 0 else v * (1 << -s)


def rt(v: Any, s: int) -> Any:
    s = max(-16, min(31, s))
    if s <= 1:
        return rn(v, s)
    t = np.floor_divide(v + 1, 2)
    q = np.floor_divide(abs(t) + (1 << (s - 2)), 1 << (s - 1))
    return np.where(t >= 0, q, -q)


def sr(v: Any, s: int, r: Any) -> Any:
    s = max(-16, min(31, s))
    if s <= 0:
        return v * (1 << -s)
    return np.floor_divide(v + (r % (1 << s) if s <= 16 else r * (1 << (s - 16))), 1 << s)


def clip(v: Any, low: int, high: int) -> Any:
    return np.minimum(np.maximum(v, low), high)


@dataclass
class Reference:
    """Integer training of a dense network, from numerics.md."""

    state: State
    graph: Graph
    seed: int
    rate: int
    index: dict[str, int]
    losses: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.e = {name: entry[0] for name, entry in self.state.exponents.items()}
        self.tracker = {name: list(entry[1:]) for name, entry in self.state.exponents.items()}
        self.m = {n: p.master.astype(WIDE) for n, p in self.state.parameters.items()}
        self.b = {n: p.bias.astype(WIDE) for n, p in self.state.parameters.items()}
        self.u = {
            n: (p.velocity.astype(WIDE), p.velocity_bias.astype(WIDE))
            for n, p in self.state.parameters.items()
            if p.velocity is not None and p.velocity_bias is not None
        }
        self.step_number = self.state.step

    def random(self, tensor: str, use: Use, shape: tuple[int, ...]) -> Any:
        key = random_key(self.seed, self.step_number, self.index[tensor])
        return random16(key, use, np.arange(int(np.prod(shape)))).reshape(shape)

    def track(self, name: str, acc: Any, e_acc: int) -> int:
        """The exponent for this batch; the tracker moves on for the next."""
        exponent, low = self.tracker[name]
        m = int(abs(acc).max())
        if m:
            need = max(-64, min(63, e_acc + max(0, m.bit_length() - 7)))
            if need > exponent:
                self.tracker[name] = [need, 0]
            elif need == exponent:
                self.tracker[name] = [exponent, 0]
            elif low + 1 == 8:
                self.tracker[name] = [exponent - 1, 0]
            else:
                self.tracker[name] = [exponent, low + 1]
        return max(exponent, e_acc)

    def w8(self, name: str) -> Any:
        return (self.m[name] + 128) >> 8

    def forward(self, x: Any, *, track: bool) -> tuple[dict[str, Any], Any]:
        y = {"input": x.astype(WIDE)}
        z = None
        for layer in self.graph.layers:
            name, source = layer.name, layer.inputs[0]
            e_in = self.e["input" if source == "input" else f"{source}.output"]
            e_acc = e_in + self.e[f"{name}.weight"]
            bias = clip(rn(self.b[name], e_acc + 20), -(1 << 30), 1 << 30)
            acc = y[source] @ self.w8(name) + bias
            if layer.relu:
                acc = np.maximum(acc, 0)
            if layer is self.graph.layers[-1]:
                z = clip(rn(acc, -8 - e_acc), -32767, 32767)
                self.e[f"{name}.output"] = -8
                continue
            before = list(self.tracker[f"{name}.output"])
            e = self.track(f"{name}.output", acc, e_acc)
            if not track:
                self.tracker[f"{name}.output"] = before
            self.e[f"{name}.output"] = e
            y[name] = clip(rt(acc, e - e_acc), -127, 127)
        return y, z

    def loss(self, z: Any, labels: Any) -> tuple[Any, int]:
        g = np.zeros(z.shape, WIDE)
        total_loss = 0
        for n in range(len(z)):
            t = (z[n] * 369) >> 8
            d = [int(v) for v in t.max() - t]
            e = [EXP_ROM[(v & 255) >> 2] >> min(v >> 8, 31) for v in d]
            s = sum(e)
            g[n] = [(v << 15) // s for v in e]
            g[n, labels[n]] -= 32768
            lead = s.bit_length() - 1
            below = (s << 6 >> lead) & 63
            total_loss += d[labels[n]] + 256 * (lead - 15) + LOG_ROM[below]
        return g, total_loss

    def update(self, name: str, e_x: int, e_dy: int, dw: Any, db: Any, shift: int) -> None:
        layer = self.graph.layer(name)
        e_w = self.e[f"{name}.weight"]
        tensor = f"{name}.weight"
        rows = (dw.shape, db.shape)
        su = (e_w - 8) - (e_x + e_dy) + self.rate + shift
        sb = -20 - e_dy + self.rate + shift
        r_dw = self.random(tensor, Use.DW, rows[0])
        change_b = sr(db, sb, self.random(tensor, Use.DB, rows[1]))
        if layer.int8_weights:
            w8 = clip(self.w8(name) - sr(dw, su + 8, r_dw), -127, 127)
            self.m[name] = w8 * 256
        elif layer.momentum:
            u, ub = self.u[name]
            decay = sr(u, 3, self.random(tensor, Use.MOMENTUM_DECAY, rows[0]))
            u = clip(u - decay + sr(dw, su - 4, r_dw), -32767, 32767)
            step = sr(u, 4, self.random(tensor, Use.MOMENTUM_STEP, rows[0]))
            self.m[name] = clip(self.m[name] - step, -32640, 32639)
            limit = 2**31 - 1
            decay_b = sr(ub, 3, self.random(tensor, Use.BIAS_DECAY, rows[1]))
            change_b = clip(ub - decay_b + change_b, -limit, limit)
            self.u[name] = (u, change_b)
        else:
            self.m[name] = clip(self.m[name] - sr(dw, su, r_dw), -32640, 32639)
        self.b[name] = clip(self.b[name] - change_b, -(2**31 - 1), 2**31 - 1)

    def train(self, x: Any, labels: Any) -> None:
        y, z = self.forward(x, track=True)
        g, loss = self.loss(z, labels)
        self.losses.append(loss)
        batch_shift = int(np.ceil(np.log2(len(x))))
        last = self.graph.layers[-1].name
        sh = max(0, int(abs(g).max()).bit_length() - 7)
        r = self.random(f"{last}.gradient", Use.LOSS, g.shape)
        dy = clip(sr(g, sh, r), -127, 127)
        self.e[f"{last}.gradient"] = sh - 15
        trainable = self.graph.trainable()
        names = [layer.name for layer in self.graph.layers]
        for place in reversed(range(len(names))):
            name = names[place]
            source = self.graph.layers[place].inputs[0]
            e_dy = self.e[f"{name}.gradient"]
            dx = None
            if any(before in trainable for before in names[:place]):
                acc = dy @ self.w8(name).T
                e_acc = e_dy + self.e[f"{name}.weight"]
                target = f"{source}.gradient"
                e = self.track(target, acc, e_acc)
                self.e[target] = e
                dx = clip(sr(acc, e - e_acc, self.random(target, Use.DX, acc.shape)), -127, 127)
                if self.graph.layer(source).relu:
                    dx = np.where(y[source] > 0, dx, 0)
            if name in trainable:
                e_x = self.e["input" if source == "input" else f"{source}.output"]
                self.update(name, e_x, e_dy, y[source].T @ dy, dy.sum(axis=0), batch_shift)
            if dx is None:
                break
            dy = dx
        self.step_number += 1


def assert_equal(reference: Reference, state: State) -> None:
    assert state.step == reference.step_number
    for name, p in state.parameters.items():
        np.testing.assert_array_equal(p.master, reference.m[name], f"{name} weights")
        np.testing.assert_array_equal(p.bias, reference.b[name], f"{name} biases")
        if name in reference.u:
            np.testing.assert_array_equal(p.velocity, reference.u[name][0], f"{name} momentum")
            np.testing.assert_array_equal(p.velocity_bias, reference.u[name][1])
    for name, entry in state.exponents.items():
        assert entry == (reference.e[name], *reference.tracker[name]), name


def samples(graph: Graph, count: int, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    x = rng.integers(-127, 128, (count, graph.features)).astype(np.int8)
    return x, rng.integers(0, graph.classes, count)


def run(device: GoldenDevice, program: Program, x: Any, labels: Any) -> int:
    plan = program.plan
    rows = np.zeros((len(x), plan.placements["input"].tensor.pitch), np.int8)
    rows[:, : x.shape[1]] = x
    device.write_memory(plan.address("input"), rows)
    device.write_memory(plan.address("labels"), labels.astype(np.uint8))
    device.run(program.entries[TRAIN])
    return device.read_csr("LOSS")


def check_training(graph: Graph, config: Config, batch: int, steps: int, rate: int = 2) -> State:
    """Some steps on the golden device, bit-equal to the reference after each."""
    program = compile_graph(graph, config, batch)
    x, labels = samples(graph, batch * steps)
    state = initial_state(graph, 7, x, labels)
    device = GoldenDevice(config)
    device.write_program(program.words)
    device.write_csr("SEED", 3)
    device.write_csr("RATE", rate)
    write_state(device, program, state)
    reference = Reference(state, graph, 3, rate, program.schedule.exponents)
    for step in range(steps):
        part = slice(step * batch, (step + 1) * batch)
        loss = run(device, program, x[part], labels[part])
        reference.train(x[part], labels[part])
        assert loss == reference.losses[-1]
        assert_equal(reference, read_state(device, program))
    device.write_memory(program.plan.address("input"), np.zeros(0, np.int8))
    before = read_state(device, program)
    device.run(program.entries[INFER])
    after = read_state(device, program)
    trackers = {name: entry[1:] for name, entry in before.exponents.items()}
    assert {name: entry[1:] for name, entry in after.exponents.items()} == trackers
    assert after.weights_sha256() == before.weights_sha256()
    return before


SMALL = Config(rows=4, cols=2, regions=(2048, 2048, 2048), acc_depth=16)


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_odd_sizes(batch: int) -> None:
    check_training(mlp([17, 5, 3]), SMALL, batch, 20)


def test_three_layers() -> None:
    check_training(mlp([64, 48, 20, 10]), simulation_config(), 8, 20, rate=3)


def test_every_machine_gives_the_same_bits() -> None:
    graph = mlp([18, 12, 6, 4])
    configs = [
        simulation_config("8x8"),
        simulation_config("2x16"),
        SMALL,
        Config(rows=2, cols=2, regions=(8192,), acc_depth=16),
        Config(rows=16, cols=4, regions=(1024, 1024, 1024, 1024), acc_depth=32),
        up5k_config(),
    ]
    hashes = {check_training(graph, config, 5, 6).sha256() for config in configs}
    assert len(hashes) == 1


def test_padded_input_of_two_byte_lanes() -> None:
    one = check_training(mlp([17, 6, 4]), up5k_config(), 3, 6)
    other = check_training(mlp([17, 6, 4]), simulation_config(), 3, 6)
    assert one.sha256() == other.sha256()


@pytest.mark.parametrize(
    "options",
    [
        {"momentum": ["dense1", "dense2", "dense3"]},
        {"int8_weights": ["dense1", "dense2", "dense3"]},
        {"frozen": ["dense1"]},
        {"frozen": ["dense2"]},
        {"frozen": ["dense3"], "momentum": ["dense1"], "int8_weights": ["dense2"]},
    ],
)
def test_options(options: dict[str, list[str]]) -> None:
    graph = mlp([17, 9, 7, 3]).with_options(**options)
    check_training(graph, SMALL, 3, 20)


def test_large_gradients_saturate_alike() -> None:
    check_training(mlp([17, 9, 3]), SMALL, 4, 20, rate=-3)


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    classes=st.integers(2, 12),
    batch=st.integers(1, 20),
    depth=st.sampled_from([16, 32, 64]),
    array=st.tuples(st.sampled_from([2, 4, 8]), st.sampled_from([2, 4, 8])),
)
@settings(max_examples=40)
def test_any_shape(
    sizes: list[int], classes: int, batch: int, depth: int, array: tuple[int, int]
) -> None:
    config = Config(
        rows=array[0], cols=array[1], regions=(8192, 8192), acc_depth=depth, program_words=4096
    )
    check_training(mlp([*sizes, classes]), config, batch, 3)


# --- programs ------------------------------------------------------------------------------------


def executed(program: Program, entry: str) -> list[tuple[int, dict[str, int], dict[str, int]]]:
    """(pc, registers, fields) of every MM and LOSS of an entry, from the registers at a start."""
    registers = {register.name: register.reset for register in REGISTERS}
    found: list[tuple[int, dict[str, int], dict[str, int]]] = []
    pc = program.entries[entry]
    while True:
        meaning = decode(program.words[pc], program.config)
        assert isinstance(meaning, Decoded)
        if meaning.register is not None:
            registers[meaning.register.name] = meaning.value
        elif meaning.name == "HALT":
            return found
        elif meaning.name != "STEP":
            found.append((pc, dict(registers), meaning.fields))
        pc += 1


def test_sets_only_what_changes() -> None:
    program = compile_graph(network("mlp"), simulation_config(), 8)
    registers: dict[str, int] = {}
    for pc, word in enumerate(program.words):
        if pc in program.entries.values():
            registers = {}
        meaning = decode(word, program.config)
        assert isinstance(meaning, Decoded)
        if meaning.register is not None:
            assert registers.get(meaning.register.name) != meaning.value
            registers[meaning.register.name] = meaning.value


def test_listing_assembles_to_the_same_words() -> None:
    program = compile_graph(network("mlp"), simulation_config(), 8)
    text = program.listing()
    assembly = assemble(text, program.config)
    assert assembly.words == program.words
    assert assembly.labels == program.entries
    assert "dense3.weight.low" in text
    assert "dense1 dw: 392 x 8 x 128" in text


def test_origins_and_macs() -> None:
    program = compile_graph(network("mlp"), simulation_config(), 8)
    assert program.origins.keys() == set(range(len(program.words)))
    assert program.macs(TRAIN) == 8 * (2 * 109184 + 8832)
    assert program.macs(INFER) == 8 * 109184
    passes = {}
    for origin in program.origins.values():
        if origin.entry == TRAIN:
            key = (origin.layer, origin.pass_)
            passes[key] = passes.get(key, 0) + origin.macs
    assert passes[("dense1", "dw")] == 8 * 100352
    assert passes[("loss", "loss")] == 0
    assert {name for _, name in passes} == {"forward", "loss", "dx", "dw", "other"}
    pc = next(pc for pc, origin in program.origins.items() if origin.pass_ == "dx")
    assert program.explain(pc) == f"program counter {pc}: dense3 dx of 'train'"
    assert "outside the program" in program.explain(9999)


def test_symbols() -> None:
    program = compile_graph(network("digits"), simulation_config(), 8)
    symbols = program.symbols
    assert symbols["dense1.weight.high"].exponent == symbols["dense1.weight.low"].exponent == 1
    assert symbols["dense1.bias"].exponent == -1
    assert symbols["labels"].bytes == 8
    assert symbols["input"].address == program.plan.address("input")


@given(
    rows=st.integers(1, 3000),
    taps=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    depth=st.sampled_from([16, 64, 512]),
    bias=st.booleans(),
)
def test_split_covers_every_tap_once(
    rows: int, taps: tuple[int, int], depth: int, bias: bool
) -> None:
    config = Config(rows=4, cols=4, acc_depth=depth)
    template = next(
        step
        for step in compile_graph(mlp([rows, 2]), simulation_config(), 1).schedule.programs[TRAIN]
        if isinstance(step, Product) and step.transposed
    )
    from dataclasses import replace

    product = replace(template, taps_y=taps[0], taps_x=taps[1], bias="b" if bias else "")
    parts = split_taps(product, config)
    seen = np.zeros((taps[0], taps[1], rows), int)
    for part in parts:
        assert part.taps_y * part.taps_x * part.j + part.bias <= depth
        seen[
            part.ky : part.ky + part.taps_y,
            part.kx : part.kx + part.taps_x,
            part.j0 : part.j0 + part.j,
        ] += 1
    assert (seen == 1).all()
    assert [part.bias for part in parts] == [False] * (len(parts) - 1) + [bias]


def test_update_in_parts_does_biases_once() -> None:
    program = compile_graph(network("mlp"), simulation_config(), 8)
    parts = [
        (registers, fields)
        for pc, registers, fields in executed(program, TRAIN)
        if program.origins[pc].layer == "dense1" and program.origins[pc].pass_ == "dw"
    ]
    assert [fields["bias"] for _, fields in parts] == [0, 1]
    assert [registers["N_J"] for registers, _ in parts] == [392, 392]
    assert [registers["A_X0"] for registers, _ in parts] == [0, 392]
    assert [registers["O_OFF"] for registers, _ in parts] == [0, 392 * 128]


def test_program_memory_too_small() -> None:
    config = simulation_config().replace(program_words=128)
    with pytest.raises(PlanError, match=r"has 168 words \(train 115, infer 53\).*memory 128: 40"):
        compile_graph(network("mlp"), config, 8)


def test_every_word_is_legal() -> None:
    for config in (simulation_config(), up5k_config(momentum=True)):
        program = compile_graph(network("digits"), config, 8)
        for word in program.words:
            assert isinstance(decode(word, config), Decoded)
    assert "MM" in BY_NAME


# --- one product ---------------------------------------------------------------------------------


def check_gemm(config: Config, m: int, n: int, k: int, order: str, exponent: int | None) -> None:
    rng = np.random.default_rng(m * 10000 + n * 100 + k)
    a = rng.integers(-127, 128, (m, k)).astype(np.int8)
    b = rng.integers(-127, 128, (k, n)).astype(np.int8)
    gemm = gemm_program(config, m, n, k, order, exponent=exponent)
    device = GoldenDevice(config)
    gemm.load(device, a, b)
    device.run(gemm.program.entries["gemm"])
    np.testing.assert_array_equal(gemm.result(device), gemm.expected(a, b))
    assert gemm.program.macs("gemm") == gemm.macs == m * n * k


@pytest.mark.parametrize("order", ["NN", "NT", "TN"])
@pytest.mark.parametrize("config", [SMALL, up5k_config()], ids=["4x2", "up5k"])
def test_gemm(order: str, config: Config) -> None:
    rng = np.random.default_rng(1)
    for exponent in (None, 0, 5):
        for _ in range(12):
            m, n, k = (int(v) for v in rng.integers(1, 41, 3))
            check_gemm(config, m, n, k, order, exponent)
    check_gemm(config, 40, 9, 1, order, None)


def test_gemm_operands_lie_in_different_regions() -> None:
    gemm = gemm_program(simulation_config(), 64, 64, 64)
    assert {p.region for p in gemm.program.plan.placements.values()} == {0, 1, 2}


def test_gemm_refusals() -> None:
    with pytest.raises(ModelError, match="order 'TT' is none of NN, NT, TN"):
        gemm_program(SMALL, 4, 4, 4, "TT")
    with pytest.raises(ModelError, match="K is 0; it must be from 1 to 65535"):
        gemm_program(SMALL, 4, 4, 0)
    with pytest.raises(PlanError, match="a product of 64 x 64 by 64 x 64 needs 12288 bytes"):
        gemm_program(SMALL, 64, 64, 64)
    gemm = gemm_program(SMALL, 4, 5, 6)
    with pytest.raises(DataError, match=r"operand a is float64 \(4, 6\); it must be int8 \(4, 6\)"):
        gemm.load(GoldenDevice(SMALL), np.zeros((4, 6)), np.zeros((6, 5), np.int8))  # type: ignore


def test_state_moves_without_a_change() -> None:
    graph = mlp([17, 9, 3]).with_options(momentum=["dense1"])
    x, labels = samples(graph, 8)
    state = initial_state(graph, 1, x, labels)
    parameters: Parameters = state.parameters
    rng = np.random.default_rng(0)
    for p in parameters.values():
        p.master = rng.integers(-32640, 32640, p.master.shape).astype(np.int16)
        p.bias = rng.integers(-(2**31) + 1, 2**31, p.bias.shape).astype(np.int32)
        if p.velocity is not None:
            p.velocity = rng.integers(-32767, 32768, p.velocity.shape).astype(np.int16)
    state.step = 12345
    program = compile_graph(graph, SMALL, 2)
    device = GoldenDevice(SMALL)
    write_state(device, program, state)
    assert read_state(device, program).sha256() == state.sha256()
