"""The reader of PyTorch modules: users' modules as they are, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gradiron.errors import ModelError
from gradiron.importing.conversion import convert
from gradiron.importing.pytorch import read_module
from gradiron.importing.simulate import run_integers

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed (extra `torch`)")

nn: Any = torch.nn
Array = npt.NDArray[Any]


class Residual(nn.Module):
    """A module as a user writes it: batch norm, dropout, residual, ReLU6, depthwise, stride 2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU6()
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.point = nn.Conv2d(8, 8, 1)
        self.down = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Any) -> Any:
        x = self.act(self.norm(self.stem(x)))
        y = torch.relu(self.norm2(self.depthwise(x)))
        x = torch.relu(x + self.point(y))
        x = torch.nn.functional.relu6(self.down(x))
        x = x.mean(dim=(2, 3))
        return self.head(self.drop(x))


def seeded(make: Any) -> Any:
    """A module with random weights and running statistics, in training mode."""
    torch.manual_seed(3)
    module = make()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.3)
            part.running_var.uniform_(0.5, 2)
            part.weight.data.uniform_(0.5, 1.5)
            part.bias.data.normal_(0, 0.3)
    return module


def samples(count: int, *shape: int) -> Array:
    return np.random.default_rng(1).normal(size=(count, *shape)).astype(np.float32)


def outputs(module: Any, x: Array) -> Array:
    """What the module computes in evaluation mode."""
    training = module.training
    module.eval()
    with torch.no_grad():
        y: Array = module(torch.from_numpy(x)).numpy()
    module.train(training)
    return y


def last(x: Array) -> Array:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if x.ndim == 4 else x


def same(module: Any, *shape: int) -> Any:
    """Read a module, and hold its meaning against what it computes."""
    x = samples(7, *shape)
    meaning = read_module(module, shape)
    y = last(outputs(module, x))
    found = meaning.run(last(x))
    np.testing.assert_allclose(found.reshape(len(x), -1), y.reshape(len(x), -1), atol=2e-5)
    return meaning


def refuse(module: Any, shape: tuple[int, ...], *texts: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_module(module, shape, "mine")
    message = str(caught.value)
    assert "mine" in message
    for text in texts:
        assert text in message, message


# --- what is read --------------------------------------------------------------------------------


def test_a_module_as_users_write_it() -> None:
    meaning = same(seeded(Residual), 3, 17, 16)
    assert [n.operation for n in meaning.nodes] == [
        *("conv", "depthwise", "conv", "add", "conv", "average_pool", "flatten", "dense")
    ]
    stem = meaning.nodes[0]
    assert (stem.stride, stem.padding, stem.relu, stem.ceiling) == (
        (2, 2),
        ((1, 1), (1, 1)),
        True,
        6.0,
    )


@pytest.mark.parametrize("training", [True, False])
def test_the_module_is_left_as_it_is(training: bool) -> None:
    module = seeded(Residual).train(training)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    names = [name for name, _ in module.named_modules()]
    read_module(module, (3, 16, 16))
    assert module.training == training
    assert all(part.training == training for part in module.modules())
    assert [name for name, _ in module.named_modules()] == names
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in module.parameters())


def test_frozen_parts_stay_in_their_mode() -> None:
    """A user keeps batch normalisation in evaluation mode while the rest is training."""
    module = seeded(Residual).train()
    module.norm.eval()
    read_module(module, (3, 16, 16))
    assert module.training
    assert module.norm2.training
    assert not module.norm.training


def test_integers_are_close_to_the_module() -> None:
    module = seeded(Residual)
    x = samples(300, 3, 16, 16)
    converted = convert(read_module(module, (3, 16, 16)), last(x[:100]))
    wanted = outputs(module, x[100:])
    y = run_integers(converted, converted.quantise(last(x[100:])))
    assert np.linalg.norm(y - wanted) < 0.05 * np.linalg.norm(wanted)
    rows = converted.report()
    assert [row["layer"] for row in rows] == [n.name for n in converted.meaning.nodes]
    assert all(0 <= row["relative_error"] < 0.2 for row in rows)


def test_flattened_images_keep_their_order() -> None:
    layers = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 3 * 4, 6))
    )
    same(layers, 3, 8, 10)


def test_multilayer_perceptron_with_batch_norm() -> None:
    layers = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 4))
    layers[1].running_mean.normal_()
    same(layers, 6)


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([nn.Conv2d(2, 4, 3, padding="same"), nn.Hardtanh(0, 2)], (2, 6, 7)),
        ([nn.Conv2d(2, 4, (3, 1), stride=(1, 2), padding=(1, 0))], (2, 6, 7)),
        ([nn.Conv2d(2, 4, 1), nn.AvgPool2d(2)], (2, 6, 8)),
        ([nn.Conv2d(2, 4, 1), nn.MaxPool2d(2), nn.ReLU()], (2, 6, 8)),
        ([nn.Conv2d(2, 4, 1), nn.AvgPool2d((2, 3))], (2, 6, 9)),
        ([nn.Conv2d(2, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()], (2, 5, 7)),
        ([nn.Conv2d(2, 4, 1), nn.AdaptiveAvgPool2d((2, 3))], (2, 6, 9)),
        ([nn.ZeroPad2d((1, 2, 0, 3)), nn.Conv2d(2, 4, 3)], (2, 6, 7)),
        ([nn.BatchNorm2d(2), nn.Conv2d(2, 4, 3)], (2, 6, 7)),
        ([nn.Conv2d(1, 1, 3, padding=1), nn.ReLU()], (1, 6, 7)),
        ([nn.Conv2d(2, 4, 3), nn.Identity(), nn.Dropout2d()], (2, 6, 7)),
    ],
)
def test_layers(layers: list[Any], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    same(nn.Sequential(*layers), *shape)


def test_a_softmax_at_the_end() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 4), nn.Softmax(dim=1))
    meaning = read_module(module, (5,))
    assert meaning.softmax
    x = samples(4, 5)
    np.testing.assert_allclose(meaning.run(x), outputs(nn.Sequential(module[0]), x), atol=1e-5)


def test_double_precision() -> None:
    module = seeded(Residual).double()
    x = samples(3, 3, 8, 8)
    y = outputs(module, x.astype(np.float64))
    np.testing.assert_allclose(read_module(module, (3, 8, 8)).run(last(x)), y, atol=2e-5)


# --- what is refused -----------------------------------------------------------------------------


def test_all_unknown_operators_are_listed_with_their_places() -> None:
    layers = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GELU(), nn.Conv2d(4, 4, 3), nn.Tanh())
    refuse(layers, (2, 9, 9), "gelu", "tanh", "2 problems", "(1)", "(3)")


def test_problems_of_many_kinds_at_once() -> None:
    layers = nn.Sequential(
        nn.Conv2d(4, 4, 3, dilation=2), nn.Conv2d(4, 4, 3, groups=2), nn.MaxPool2d(3, 1)
    )
    refuse(layers, (4, 12, 12), "dilation (2, 2)", "2 groups of 4", "must not overlap")


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ([nn.MaxPool2d(2, dilation=2, stride=2)], "dilation or ceil_mode"),
        ([nn.MaxPool2d(2, ceil_mode=True)], "dilation or ceil_mode"),
        ([nn.AvgPool2d(2, ceil_mode=True)], "dilation or ceil_mode"),
        ([nn.AvgPool2d(2, divisor_override=3)], "divisor_override 3"),
        ([nn.AvgPool2d(2, padding=1)], "padded pooling"),
        ([nn.ZeroPad2d(1), nn.MaxPool2d(3)], "padding before it"),
        ([nn.ZeroPad2d(1)], "padding at the end"),
        ([nn.ConstantPad2d(1, 2.0), nn.Conv2d(4, 4, 3)], "only zeros"),
        ([nn.ReflectionPad2d(1), nn.Conv2d(4, 4, 3)], "pad"),
        ([nn.Flatten(2)], "flatten from axis 2"),
        ([nn.Flatten(1, 2)], "flatten up to axis 2"),
        ([nn.Flatten(), nn.Softmax(dim=1), nn.Linear(4 * 81, 3)], "follows a softmax"),
    ],
)
def test_what_would_change_the_meaning(layers: list[Any], text: str) -> None:
    refuse(nn.Sequential(nn.Conv2d(2, 4, 3), *layers), (2, 11, 11), text)


def test_a_wrong_shape() -> None:
    refuse(nn.Linear(5, 4), (6,), "cannot be traced", "(1, 6)")
    refuse(nn.Conv2d(2, 4, 3), (2, 9), "mine")


def test_control_flow_by_values() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Any) -> Any:
            return self.a(x) if x.sum() > 0 else x

    refuse(Branching(), (4,), "cannot be traced")


def test_two_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Any) -> Any:
            return self.a(x), x

    refuse(Two(), (4,), "2 outputs")


def test_no_weights() -> None:
    refuse(nn.Flatten(), (2, 3, 3), "no layer with weights")


def test_not_a_number() -> None:
    module = nn.Linear(4, 4)
    module.weight.data[1, 2] = float("nan")
    refuse(module, (4,), "NaN")


def test_not_a_module() -> None:
    refuse("model.pt", (4,), "torch.nn.Module")
