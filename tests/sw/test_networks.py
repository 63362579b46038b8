"""The built-in networks, and how they are named."""

from __future__ import annotations

import pytest

from gradiron.errors import ModelError
from gradiron.networks import network


def test_built_in_networks() -> None:
    assert network("mlp").shapes["dense3"] == (10,)
    assert [p.weight for p in network("mlp").parameters.values()] == [
        (784, 128),
        (128, 64),
        (64, 10),
    ]
    assert str(network("digits")) == "digits (64-32-10)"
    assert network("mlp:64-32-10").layers == network("digits").layers
    assert network("mlp:17-3").classes == 3
    assert network("mlp:17-5-3").features == 17


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet", "no network is called 'resnet'; built in are mlp, digits, cnn, ds"),
        ("mlp:", "no network is called 'mlp:'"),
        ("mlp:64-x-10", "layer sizes '64-x-10' are not numbers"),
        ("mlp:64--10", "layer sizes '64--10' are not numbers"),
        ("mlp:64", "at least the inputs and the classes are needed"),
        ("mlp:64-0-10", "each at least 1"),
        ("mlp:64-1", "the loss takes 2 to 256 classes"),
        ("mlp:64-257", "the loss takes 2 to 256 classes"),
        ("mlp:70000-10", "has 70000 inputs; a dense layer has 1 to 65535"),
    ],
)
def test_bad_names(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        network(name)
