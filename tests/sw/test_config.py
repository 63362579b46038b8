import dataclasses
from typing import Any

import pytest

from gradiron.arch.config import Config, parse_array, simulation_config, up5k_config
from gradiron.errors import ConfigError


def message_of(**parameters: Any) -> str:
    with pytest.raises(ConfigError) as error:
        Config(**parameters)
    return str(error.value)


@pytest.mark.parametrize("what", ["rows", "cols"])
@pytest.mark.parametrize("size", [0, 1, 3, 32, -4, "8", None])
def test_init_wrong_array(what: str, size: Any):
    assert message_of(**{what: size}) == f"{what} is {size!r}; it must be one of (2, 4, 8, 16)"


@pytest.mark.parametrize("count", [0, 5])
def test_init_wrong_regions_count(count: int):
    assert message_of(regions=(64,) * count) == f"{count} regions; there must be 1 to 4"


@pytest.mark.parametrize("size", [0, 56, (1 << 21) + 8, 65])
def test_init_wrong_region_size(size: int):
    assert message_of(regions=(64, size)) == (
        f"region 1 has {size} bytes; it must have 64 to 2097152, a multiple of the word of 8 bytes"
    )


def test_init_wrong_region_multiple():
    Config(rows=8, cols=8, regions=(72,))
    assert message_of(rows=2, cols=16, regions=(72,)) == (
        "region 0 has 72 bytes; it must have 64 to 2097152, a multiple of the word of 16 bytes"
    )


@pytest.mark.parametrize(
    ("what", "low", "high"),
    [
        ("acc_depth", 16, 4096),
        ("program_words", 64, 65536),
        ("lanes", 1, 8),
        ("lane_bytes", 1, 2),
    ],
)
def test_init_wrong_power_of_two(what: str, low: int, high: int):
    for value in (low, high):
        parameters: dict[str, Any] = {what: value}
        assert getattr(Config(**parameters), what) == value
    for value in (-low, low // 2 if low > 1 else -1, high * 2, high - 1 if high > 2 else 3):
        assert message_of(**{what: value}) == (
            f"{what} is {value}; it must be a power of two from {low} to {high}"
        )


def test_init_wrong_lanes_for_the_columns():
    assert message_of(cols=4, lanes=8) == "lanes is 8; it must be a power of two from 1 to 4"


@pytest.mark.parametrize(
    "text", ["", "8", "8x", "x8", "8x8x8", "3x8", "8x32", "-8x8", "8*8", "axb"]
)
def test_parse_wrong_array(text: str):
    with pytest.raises(ConfigError) as error:
        parse_array(text)
    assert str(error.value) == (
        f"array {text!r} is not RxC with R and C out of (2, 4, 8, 16); for example 8x8"
    )


def test_parse_array():
    assert parse_array("4x8") == (4, 8)
    assert parse_array("16X2") == (16, 2)


def test_config_is_frozen():
    for field in dataclasses.fields(Config):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(Config(), field.name, 4)


def test_derived_values():
    config = Config(rows=4, cols=16, regions=(1 << 17, 1 << 18), lanes=4, program_words=256)
    assert config.word_bytes == 16
    assert config.peak == 64
    assert config.offset_bits == 19
    assert config.pc_bits == 8
    assert config.groups == 4
    assert config.memory_bytes == 3 << 17
    assert config.array == "4x16"
    assert config.region_base(1) == 0x400000
    assert Config(regions=(64,)).offset_bits == 12
    assert Config(regions=(1 << 21,)).offset_bits == 22


def test_lanes_follow_the_columns():
    assert Config(cols=4).lanes == 4
    assert Config(cols=4).replace(cols=16).lanes == 16
    assert Config(cols=4, lanes=2).replace(cols=16).lanes == 2
    assert Config(cols=4).replace(cols=16, lanes=1).lanes == 1


def test_dictionary_round_trip():
    for config in (Config(), up5k_config(), simulation_config("2x16", regions=[4096])):
        again = Config.from_dict(config.to_dict())
        assert again == config
        assert again.digest() == config.digest()


def test_digest_sees_every_parameter_but_the_name():
    config = Config()
    changes: list[dict[str, Any]] = [
        {"rows": 4},
        {"cols": 4},
        {"regions": (1 << 17, 1 << 18)},
        {"acc_depth": 256},
        {"program_words": 512},
        {"lanes": 4},
        {"single_port": True},
        {"lane_bytes": 2},
        {"momentum": False},
    ]
    named = {field.name for field in dataclasses.fields(Config)} - {"name"}
    assert {name for change in changes for name in change} == named
    digests = {config.replace(**change).digest() for change in changes} | {config.digest()}
    assert len(digests) == len(changes) + 1
    assert all(0 <= digest < 1 << 32 for digest in digests)
    assert config.replace(name="other").digest() == config.digest()
    assert config.replace(name="other") == config
