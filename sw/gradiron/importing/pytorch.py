"""Reading PyTorch modules: through `torch.export`, so that the module itself need not be touched.

The module is traced in evaluation mode with one sample input; its ATen operators are mapped one by
one. Dropout disappears, batch normalisation is folded.
"""

from __future__ import annotations

import operator
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from gradiron.errors import MissingExtraError, ModelError
from gradiron.importing.builder import Builder, Flow
from gradiron.importing.meaning import Meaning

KNOWN = (
    "Conv2d, Linear, BatchNorm, ReLU, ReLU6, Hardtanh(0, c), MaxPool2d, AvgPool2d, "
    "AdaptiveAvgPool2d(1), mean over the image, addition, flatten, "
    "ZeroPad2d before a convolution, Dropout, Softmax at the end"
)
_SAME = {"dropout", "alias", "contiguous", "clone", "detach", "detach_", "feature_dropout", "to"}


def read_module(module: Any, sample_shape: tuple[int, ...], name: str = "") -> Meaning:
    """Read a torch.nn.Module.

    Parameters
    ----------
    module : torch.nn.Module
        Its mode (training or evaluation), and that of all its parts, is restored.
    sample_shape : tuple of int
        Shape of one input without the batch: (C, H, W) or (features,).
    name : str
        For messages; the class name without it.

    Raises
    ------
    ModelError
        For what cannot be traced or mapped; all operators that cannot are listed.
    MissingExtraError
        Without PyTorch.
    """
    try:
        torch: Any = import_module("torch")
    except ImportError as error:
        raise MissingExtraError("torch", "torch", "reading PyTorch modules") from error
    name = name or type(module).__name__
    if not isinstance(module, torch.nn.Module):
        raise ModelError(
            f"{name}: a torch.nn.Module is needed, not a {type(module).__name__}; build the module "
            "and load its state before"
        )
    training = {part: part.training for part in module.modules()}
    parameter = next(iter(module.parameters()), None)
    dtype = parameter.dtype if parameter is not None else torch.float32
    try:
        module.eval()
        with torch.no_grad():
            exported = torch.export.export(module, (torch.zeros(1, *sample_shape, dtype=dtype),))
    except Exception as error:
        raise ModelError(
            f"{name} cannot be traced with an input of the shape (1, "
            f"{', '.join(map(str, sample_shape))}): {type(error).__name__}: {error}"
        ) from error
    finally:
        for part, mode in training.items():
            part.training = mode
    return _Reader(exported, name).read(sample_shape)


class _Reader:
    """One exported program."""

    def __init__(self, exported: Any, name: str) -> None:
        self.exported = exported
        self.build = Builder(name, "torch")
        self.values: dict[str, Any] = {}

    def read(self, sample_shape: tuple[int, ...]) -> Meaning:
        constants = self.constants()
        result: Flow | None = None
        given = 0
        for node in self.exported.graph.nodes:
            if node.op == "placeholder":
                if node.name in constants:
                    self.values[node.name] = constants[node.name]
                else:
                    given += 1
                    self.values[node.name] = self.build.input(sample_shape)
            elif node.op == "get_attr":
                self.values[node.name] = constants.get(node.target)
            elif node.op == "output":
                outputs = node.args[0]
                if len(outputs) != 1:
                    raise ModelError(f"{self.build.name} has {len(outputs)} outputs, not one")
                found = self.values.get(outputs[0].name)
                result = found if isinstance(found, Flow) else None
            else:
                self.values[node.name] = self.call(node)
        if given != 1:
            raise ModelError(f"{self.build.name} has {given} inputs, not one")
        self.build.problems.check()
        if result is None:
            raise ModelError(f"{self.build.name}: the output does not depend on the input")
        return self.build.finish(result)

    def constants(self) -> dict[str, npt.NDArray[Any]]:
        """Parameters and buffers by the name of their placeholder."""
        signature = self.exported.graph_signature
        state = {**self.exported.state_dict, **self.exported.constants}
        found: dict[str, npt.NDArray[Any]] = {}
        for table in (
            signature.inputs_to_parameters,
            signature.inputs_to_buffers,
            signature.inputs_to_lifted_tensor_constants,
        ):
            for placeholder, key in table.items():
                found[placeholder] = state[key].detach().cpu().double().numpy()
        return found

    def call(self, node: Any) -> Any:
        """The value of one operator."""
        place = f"operator {node.name}"
        trace = node.meta.get("nn_module_stack")
        if trace:
            path = next(reversed(trace.values()))[0]
            place += f" ({path})" if path else ""
        args = [self.argument(arg) for arg in node.args]
        options = {key: self.argument(value) for key, value in node.kwargs.items()}
        if node.target is operator.getitem:
            return args[0] if args[1] == 0 else None
        kind = getattr(node.target, "__name__", str(node.target)).split(".")[0]
        flows = [a for a in args if isinstance(a, Flow)]
        if not flows:
            return self.fold(node, args, options, place)
        x = flows[0]
        if kind in _SAME:
            return x
        handler = getattr(self, f"op_{kind.rstrip('_')}", None)
        if handler is None:
            self.build.problems.add(place, f"{kind} cannot be mapped; known are {KNOWN}")
            return x
        return handler(x, args, options, place)

    def argument(self, value: Any) -> Any:
        if hasattr(value, "__iter__") and not isinstance(value, str):
            return [self.argument(v) for v in value]
        return self.values.get(str(value)) if hasattr(value, "op") else value

    def fold(self, node: Any, args: list[Any], options: dict[str, Any], place: str) -> Any:
        """An operator on constants alone."""
        torch: Any = import_module("torch")
        try:
            tensors = [torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in args]
            value = node.target(*tensors, **options)
            return value.numpy() if isinstance(value, torch.Tensor) else value
        except Exception as error:
            self.build.problems.add(place, f"a constant cannot be computed: {error}")
            return None

    # --- operators -----------------------------------------------------------------------------

    @staticmethod
    def pair(value: Any, default: int) -> tuple[int, int]:
        if value is None or value == []:
            return (default, default)
        if isinstance(value, int):
            return (value, value)
        value = [int(v) for v in value]
        return (value[0], value[-1])

    def op_conv2d(self, x: Flow, args: list[Any], options: dict[str, Any], place: str) -> Flow:
        args = args + [None] * (7 - len(args))
        stride = self.pair(args[3], 1)
        weight, dilation = args[1], self.pair(args[5], 1)
        if isinstance(args[4], str):
            total = [(d * (k - 1)) for d, k in zip(dilation, weight.shape[2:], strict=True)]
            padding = tuple((0, 0) if args[4] == "valid" else (t // 2, t - t // 2) for t in total)
        else:
            padding = tuple((p, p) for p in self.pair(args[4], 0))
        return self.build.conv(
            x,
            weight,
            args[2],
            stride=stride,
            padding=padding,  # type: ignore[arg-type]
            dilation=dilation,
            groups=int(options.get("groups", args[6] or 1)),
            place=place,
        )

    def op_linear(self, x: Flow, args: list[Any], options: dict[str, Any], place: str) -> Flow:
        del options
        return self.build.dense(x, args[1].T, args[2] if len(args) > 2 else None, place)

    def op_batch_norm(self, x: Flow, args: list[Any], options: dict[str, Any], place: str) -> Flow:
        del options
        weight, bias, mean, variance = args[1:5]
        if mean is None or variance is None:
            self.build.problems.add(place, "batch normalisation without running statistics")
            return x
        scale = (1.0 if weight is None else weight) / np.sqrt(variance + args[7])
        shift = (0.0 if bias is None else bias) - mean * scale
        return self.build.affine(x, np.asarray(scale), np.asarray(shift), place)

    def op_relu(self, x: Flow, args: list[Any], options: dict[str, Any], place: str) -> Flow:
        del args, options
        return self.build.activation(x, None, place)

    def op_relu6(self, x: Flow, args: list[Any], options: dict[str, Any], place: str) -> Flow:
        del args, options
        return self.build.activation(x, 6.0, place)

    def op_hardtanh(self, x: Flow, args: list[Any], options: dict[str, Any], place: str) -> Flow:
        del options
        low = args[1] if len(args) > 1 else -1.0
        high = args[2] if len(args) > 2 else 1.0
        if low != 0 or high is None or high <= 0:
            self.build.problems.add(place, f"limits {low} and {high}; the lower one must be 0")
            return x
        return self.build.activation(x, float(high), place)

    def op_clamp(self, x: Flow, args: list[Any], options: dict[str, Any], place: str) -> Flow:
        low = args[1] if len(args) > 1 else options.get("min")
        high = args[2] if len(args) > 2 else options.get("max")
        if low != 0:
            self.build.problems.add(place, f"limits {low} and {high}; the lower one must be 0")
            return x
        return self.build.activation(x, None if high is None else float(high), place)

    op_clamp_min = op_clamp

    def pool(
        self, x: Flow, args: list[Any], options: dict[str, Any], place: str, kind: str
    ) -> Flow:
        del options
        kernel = self.pair(args[1], 1)
        stride = self.pair(args[2] if len(args) > 2 else None, 0)
        rest = args[4:] + [None] * 3
        dilation = self.pair(rest.pop(0), 1) if kind == "max_pool" else (1, 1)
        if dilation != (1, 1) or rest[0]:
            self.build.problems.add(place, "dilation or ceil_mode; only whole, undilated windows")
        if kind == "average_pool" and rest[2] is not None:
            self.build.problems.add(place, f"divisor_override {rest[2]}")
        padding = self.pair(args[3] if len(args) > 3 else None, 0)
        return self.build.pool(
            x, kind, kernel, kernel if stride == (0, 0) else stride, padding, place
        )

    def op_max_pool2d(self, x: Flow, args: list[Any], options: dict[str, Any], place: str) -> Flow:
        return self.pool(x, args, options, place, "max_pool")

    op_max_pool2d_with_indices = op_max_pool2d

    def op_avg_pool2d(self, x: Flow, args: list[Any], options: dict[str, Any], place: str) -> Flow:
        return self.pool(x, args, options, place, "average_pool")

    def op_adaptive_avg_pool2d(
        self, x: Flow, args: list[Any], options: dict[str, Any], place: str
    ) -> Flow:
        del options
        size = self.pair(args[1], 1)
        if len(x.shape) == 3 and size == (x.shape[1], x.shape[2]):
            return x
        if size == (1, 1):
            return self.build.mean(x, place, keep=True)
        if len(x.shape) == 3 and all(n % k == 0 for n, k in zip(x.shape[1:], size, strict=True)):
            kernel = (x.shape[1] // size[0], x.shape[2] // size[1])
            return self.build.pool(x, "average_pool", kernel, kernel, (), place)
        self.build.problems.add(place, f"adaptive pooling of {x.shape} to {size}")
        return x

    def op_mean(self, x: Flow, args: list[Any], options: dict[str, Any], place: str) -> Flow:
        given: list[int] = args[1] if len(args) > 1 else []
        axes = {a % (len(x.shape) + 1) for a in given}
        keep = bool(args[2] if len(args) > 2 else options.get("keepdim", False))
        if axes != {2, 3}:
            self.build.problems.add(place, f"mean over the axes {sorted(axes)}")
            return x
        return self.build.mean(x, place, keep=keep)

    def op_add(self, x: Flow, args: list[Any], options: dict[str, Any], place: str) -> Flow:
        other = args[1] if args[0] is x else args[0]
        if not isinstance(other, Flow) or options.get("alpha", 1) != 1:
            self.build.problems.add(
                place, "an addition of something that is not a tensor of images"
            )
            return x
        return self.build.add(x, other, place)

    def op_flatten(self, x: Flow, args: list[Any], options: dict[str, Any], place: str) -> Flow:
        del options
        start = int(args[1]) if len(args) > 1 else 0
        end = int(args[2]) if len(args) > 2 else -1
        if end not in (-1, len(x.shape)):
            self.build.problems.add(place, f"flatten up to axis {end}; only of all but the batch")
        if start != 1:
            self.build.problems.add(place, f"flatten from axis {start}; only from axis 1")
            return x
        return self.build.flatten(x, place)

    def op_view(self, x: Flow, args: list[Any], options: dict[str, Any], place: str) -> Flow:
        del options
        shape: list[Any] = args[1]
        if not all(isinstance(n, int) for n in shape):
            self.build.problems.add(place, "a reshape to a shape that depends on the input")
            return x
        return self.build.reshape(x, shape[1:], place)

    op_reshape = op_view
    op__unsafe_view = op_view

    def op_pad(self, x: Flow, args: list[Any], options: dict[str, Any], place: str) -> Flow:
        amounts = [int(n) for n in args[1]]
        mode = args[2] if len(args) > 2 else options.get("mode", "constant")
        value = args[3] if len(args) > 3 else options.get("value")
        fits = len(x.shape) == 3 and x.pad is None and len(amounts) in (2, 4)
        if not fits or min(amounts) < 0 or mode != "constant" or value:
            self.build.problems.add(place, f"padding {amounts}; only zeros around images")
            return x
        columns, rows = amounts[:2], amounts[2:] or [0, 0]
        return Flow(x.name, x.shape, x.image, ((rows[0], rows[1]), (columns[0], columns[1])))

    op_constant_pad_nd = op_pad

    def op_squeeze(self, x: Flow, args: list[Any], options: dict[str, Any], place: str) -> Flow:
        del args, options
        return self.build.flatten(x, place) if x.shape[1:] == (1, 1) else x

    def op_softmax(self, x: Flow, args: list[Any], options: dict[str, Any], place: str) -> Flow:
        del args, options
        return self.build.end(x, place)

    op_log_softmax = op_softmax
