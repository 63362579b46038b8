"""The built-in networks, and how they are named."""

from __future__ import annotations

from typing import Any

import pytest

from gradiron.errors import ModelError
from gradiron.graph import INFER, TRAIN, Graph, derive
from gradiron.networks import NETWORKS, network


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
        ("ds-cnn:many", "'many', after ds-cnn, is not a number of classes, like in ds-cnn:35"),
        ("ds-cnn:", "no network is called 'ds-cnn:'"),
        ("ds-cnn:1", "the loss takes 2 to 256 classes"),
        ("autoencoder:10", "autoencoder has no classes"),
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


def weights(graph: Graph) -> int:
    return sum(shape.count for shape in graph.parameters.values())


def macs(graph: Graph) -> int:
    """Logical products of the layers with weights, one sample, forward."""
    steps: Any = derive(graph, 1).programs[INFER]
    return sum(step.macs for step in steps if step.layer in graph.parameters)


@pytest.mark.parametrize(
    ("name", "shape", "count", "forward"),
    [
        # Weights and products of one forward pass as published for MLPerf Tiny.
        ("ds-cnn", (49, 10, 1), 22_016, 2_656_768),
        ("resnet8", (32, 32, 3), 77_360, 12_501_632),
        ("autoencoder", (640,), 264_192, 264_192),
        ("cnn", (28, 28, 1), 9 * 8 + 9 * 8 * 16 + 784 * 10, None),
        ("ds-residual", (28, 28, 1), 144 + 144 + 256 + 144 + 512 + 1568 * 10, None),
    ],
)
def test_topologies(name: str, shape: tuple[int, ...], count: int, forward: int | None) -> None:
    graph = network(name)
    assert graph.name == name
    assert graph.input_shape == shape
    assert weights(graph) == count
    if forward is not None:
        assert macs(graph) == forward


def test_layers_of_keyword_spotting() -> None:
    graph = network("ds-cnn")
    assert graph.shapes["conv"] == graph.shapes["pointwise4"] == (25, 5, 64)
    assert graph.shapes["pool"] == (1, 1, 64)
    assert graph.classes == 12
    assert all(layer.relu for layer in graph.layers if layer.operation in ("conv", "depthwise"))


def test_residual_networks_add_what_came_in() -> None:
    graph = network("resnet8")
    assert graph.shapes["block3.add"] == (8, 8, 64)
    assert graph.layer("block1.add").inputs == ("block1.conv2", "conv")
    assert graph.layer("block2.add").inputs == ("block2.conv2", "block2.project")
    assert network("ds-residual").layer("add").inputs == ("pointwise1", "conv")


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_trains_all_its_layers(name: str) -> None:
    graph = network(name)
    assert graph.trainable() == tuple(graph.parameters)
    assert TRAIN in derive(graph, 2).programs
    assert Graph.from_dict(graph.to_dict()) == graph


def test_numbers_of_classes() -> None:
    assert network("ds-cnn:35").classes == 35
    assert network("ds-cnn:35").name == "ds-cnn:35"
    assert network("cnn:2").layers[:-1] == network("cnn").layers[:-1]
