"""Compute the gradient of an ONNX file with torch, operator by operator.

Integers are numbers like any other: rounding passes gradients unchanged, saturated values have none, and the scale that
a dynamically quantized tensor computes for itself counts as constant. Supports only the operators of the models that
tools/variants.py compares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch.nn import functional as F

Tensor = torch.Tensor
Array = np.ndarray[Any, Any]
Attributes = Mapping[str, Any]
UNSIGNED, UNSIGNED16, SIGNED = (0, 255), (0, 65535), (-128, 127)


def gradient(path: Path, feeds: Mapping[str, Array], data: str, target: Array, dtype: torch.dtype) -> Array:
    """Differentiate the chosen element of each sample's only output by the input ``data``."""
    graph = onnx.load(path).graph
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    limits = {name: UNSIGNED for name, array in arrays.items() if array.dtype == np.uint8}
    limits |= {name: UNSIGNED16 for name, array in arrays.items() if array.dtype == np.uint16}
    values: dict[str, Tensor | None] = {name: tensor(array, dtype) for name, array in {**arrays, **feeds}.items()}
    values[""] = None  # an input that is left out
    leaf = values[data] = tensor(feeds[data], dtype).requires_grad_()
    waiting = list(graph.node)
    while waiting:  # some tools leave nodes in the wrong order
        node = next(n for n in waiting if all(name in values for name in n.input))
        waiting.remove(node)
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} | {"dtype": dtype}
        if node.op_type in ZERO:
            attributes["limits"] = limits.get(node.input[ZERO[node.op_type]], SIGNED)
        results = OPERATORS[node.op_type](attributes, *(values[name] for name in node.input))
        values.update(zip(node.output, [results] if isinstance(results, Tensor) else results, strict=False))
    scores = values[graph.output[0].name]
    assert scores is not None
    (result,) = torch.autograd.grad(scores.gather(1, torch.from_numpy(target)[:, None]).sum(), leaf)
    return result.double().numpy()


def tensor(array: Array, dtype: torch.dtype) -> Tensor:
    """Return a tensor: sizes and indices stay integers, all other arrays become floating-point."""
    if array.dtype == np.int64:
        return torch.from_numpy(array.copy())
    return torch.from_numpy(array.astype(np.float64)).to(dtype)


def along(parameter: Tensor, x: Tensor, axis: int) -> Tensor:
    """Shape one number per position along an axis so that it broadcasts to x."""
    shape = [-1 if i == axis % x.ndim else 1 for i in range(x.ndim)]
    return parameter.reshape(shape if parameter.numel() > 1 else [])


def quantize(a: Attributes, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Round half to even and saturate; differentiated without the rounding."""
    smooth = torch.clamp(x / scale + zero, *a["limits"])
    return smooth + (torch.clamp(torch.round(x / scale) + zero, *a["limits"]) - smooth).detach()


def dequantize(a: Attributes, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """(x - zero) scale."""
    axis = a.get("axis", 1)
    return (x if zero is None else x - along(zero, x, axis)) * along(scale, x, axis)


def dynamically(a: Attributes, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize to uint8 over the range of x, which includes zero."""
    low, high = x.detach().min().clamp(max=0), x.detach().max().clamp(min=0)
    scale = (high - low) / 255
    zero = torch.clamp(torch.round(-low / scale), 0, 255)
    return quantize({"limits": UNSIGNED}, x, scale, zero), scale, zero


def conv(a: Attributes, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """Convolve images; onnx pads the beginnings of all axes before their ends."""
    top, left, bottom, right = a.get("pads", [0, 0, 0, 0])
    strides = tuple(a.get("strides", [1, 1]))
    return F.conv2d(F.pad(x, (left, right, top, bottom)), w, b, strides, groups=a.get("group", 1))


def gemm(a: Attributes, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """X W + b."""
    y = a.get("alpha", 1.0) * x @ (w.T if a.get("transB") else w)
    return y if b is None else y + b


def less(x: Tensor, zero: Tensor | None, axis: int = 0) -> Tensor:
    """Subtract a zero point."""
    return x if zero is None else x - along(zero, x, axis)


def q_conv(a: Attributes, *i: Tensor) -> Tensor:
    """QLinearConv, whose bias has the scale of the product."""
    x, w = dequantize({}, *i[0:3]), dequantize({"axis": 0}, *i[3:6])
    return quantize(a, conv(a, x, w, i[8] * i[1] * i[4] if len(i) > 8 else None), *i[6:8])


def q_gemm(a: Attributes, *i: Tensor) -> Tensor:
    """QGemm, whose bias has the scale of the product."""
    x, w = dequantize({}, *i[0:3]), dequantize({"axis": 0 if a.get("transB") else 1}, *i[3:6])
    return quantize(a, gemm(a, x, w, i[6] * i[1] * i[4]), *i[7:9])


def q_pair(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """QLinear operators of two operands."""
    return lambda a, *i: quantize(a, function(dequantize({}, *i[0:3]), dequantize({"axis": -1}, *i[3:6])), *i[6:8])


def q_single(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """QLinear operators of one operand."""
    return lambda a, *i: quantize(a, function(dequantize({}, *i[0:3])), *i[3:5])


def pool(x: Tensor) -> Tensor:
    """Average images."""
    return x.mean((2, 3), keepdim=True)


def reshape(a: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    """A size of 0 is that of x."""
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape.tolist())])


def unsqueeze(a: Attributes, x: Tensor, axes: Tensor) -> Tensor:
    """Insert axes, counted in the result."""
    for axis in sorted(int(axis) % (x.ndim + axes.numel()) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def cut(a: Attributes, x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor, steps: Tensor) -> Tensor:
    """Slice with steps of 1."""
    for start, end, axis in zip(starts.tolist(), ends.tolist(), axes.tolist(), strict=True):
        x = x.movedim(axis, 0)[start:end].movedim(0, axis)
    return x


def normalize(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Layer normalization along the last axis."""
    return F.layer_norm(x, x.shape[-1:], scale, bias, a["epsilon"])


def clip(a: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Clip from one or both sides."""
    return torch.clamp(x, low, high)


def total(a: Attributes, x: Tensor, axes: Tensor) -> Tensor:
    """Sum."""
    return x.sum(axes.tolist(), keepdim=bool(a.get("keepdims", 1)))


def length(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Euclidean norm; the axes were an attribute before opset 18."""
    return torch.linalg.vector_norm(x, dim=a["axes"] if axes is None else axes.tolist(), keepdim=True)


OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": lambda a, x, y: x + y,
    "Cast": lambda a, x: x.long() if a["to"] == onnx.TensorProto.INT64 else x.to(a["dtype"]),
    "Clip": clip,
    "Concat": lambda a, *parts: torch.cat(parts, a["axis"]),
    "Constant": lambda a: tensor(onnx.numpy_helper.to_array(a["value"]), a["dtype"]),
    "Conv": conv,
    "ConvInteger": lambda a, x, w, v=None, z=None: conv(a, less(x, v), less(w, z)),
    "DequantizeLinear": dequantize,
    "Div": lambda a, x, y: x / y,
    "DynamicQuantizeLinear": dynamically,
    "Erf": lambda a, x: torch.erf(x),
    "Expand": lambda a, x, shape: x.expand(torch.broadcast_shapes(x.shape, shape.tolist())),
    "Flatten": lambda a, x: x.flatten(1),
    "Gather": lambda a, x, index: x[index.long()],
    "Gemm": gemm,
    "GlobalAveragePool": lambda a, x: pool(x),
    "LayerNormalization": normalize,
    "MatMul": lambda a, x, y: x @ y,
    "MatMulInteger": lambda a, x, y, v=None, z=None: less(x, v) @ less(y, z, -1),
    "Mul": lambda a, x, y: x * y,
    "QGemm": q_gemm,
    "QLinearAdd": q_pair(torch.add),
    "QLinearConv": q_conv,
    "QLinearGlobalAveragePool": q_single(pool),
    "QLinearMatMul": q_pair(torch.matmul),
    "QLinearMul": q_pair(torch.mul),
    "QLinearSoftmax": q_single(lambda x: torch.softmax(x, -1)),
    "QuantizeLinear": quantize,
    "ReduceL2": length,
    "ReduceSum": total,
    "Reshape": reshape,
    "Shape": lambda a, x: torch.tensor(x.shape),
    "Slice": cut,
    "Softmax": lambda a, x: torch.softmax(x, a.get("axis", -1)),
    "Sub": lambda a, x, y: x - y,
    "Transpose": lambda a, x: x.permute(a["perm"]),
    "Unsqueeze": unsqueeze,
}
ZERO = {  # where an operator has the zero point of its result, whose dtype says where the result saturates
    **dict.fromkeys(("QLinearAdd", "QLinearConv", "QLinearMatMul", "QLinearMul"), 7),
    **dict.fromkeys(("QLinearGlobalAveragePool", "QLinearSoftmax"), 4),
    "QGemm": 8,
    "QuantizeLinear": 2,
}
