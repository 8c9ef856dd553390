"""Quantized layers compute in floating point, with dequantized weights, on activations that are rounded as before.

Every tensor of integers has a floating-point twin (`onnxplain.canonize.expansions.site.Twin`), which its readers read
instead. The only integers left are between a QuantizeLinear and its DequantizeLinear, through which gradients and
relevance pass unchanged. Unused integers are dropped when ONNX Runtime folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onnx.helper import tensor_dtype_to_np_dtype

from onnxplain.canonize.expansions.attention import self_attention
from onnxplain.canonize.expansions.fused import channels_first, channels_last, known_rank, softmax_from
from onnxplain.canonize.expansions.positions import Lookup, embedded
from onnxplain.canonize.expansions.site import Expansion, Result, Site, StaysError
from onnxplain.graph.ir import Node
from onnxplain.graph.var import Var, concat
from onnxplain.ops import OPS, Trait

_WINDOW = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
_POOL = ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides")


def follow(site: Site) -> None:
    """Write a second node for a node that moves or clips integers, which does the same to their twin."""
    twins, node = site.scope.twins, site.node
    twin = twins.get(node.inputs[0]) if node.inputs else None
    if twin is None:
        return
    if node.op == "Concat" and node.domain == "":
        parts = [twins[name] for name in node.inputs if name in twins]
        if len(parts) == len(node.inputs) and {part.scale.name for part in parts} == {twin.scale.name}:
            joined = concat([replace(part.value, emitter=site.emitter) for part in parts], site.get("axis"))
            twins[node.outputs[0]] = replace(twin, value=joined)
    elif node.op == "Clip" and node.domain == "":
        integers = (site.input(1), site.input(2))
        bounds = [None if b is None else site.dequantized(b, twin.scale, twin.zero) for b in integers]
        twins[node.outputs[0]] = replace(twin, value=site.op("Clip", twin.value, *bounds))
    elif node.operator == "MaxPool" or OPS.has(
        node, Trait.MOVES
    ):  # MaxPool: the largest integer stands for the largest value
        value = replace(twin.value, emitter=site.emitter)
        outputs = node.outputs if node.op == "Split" else node.outputs[:1]
        dtypes = [value.dtype] * len(outputs)
        values = site.emitter.ops(node.op, value, *site.inputs[1:], outputs=len(outputs), dtypes=dtypes, **node.attrs)
        twins.update((name, replace(twin, value=v)) for name, v in zip(outputs, values, strict=True))


def _quantize(site: Site) -> Var:
    x, zero = site.need(0), site.input(2)
    site.refuse(x.value is not None)  # a weight, which will be folded
    attrs = site.some("axis", "block_size", "saturate")
    if zero is None and site.get("output_dtype"):
        code = site.get("output_dtype")
        attrs |= {"output_dtype": code, "dtype": tensor_dtype_to_np_dtype(code)}
    return site.quantized(x, site.need(1), zero, **attrs)


def _dequantize(site: Site) -> Var:
    return site.dequantized(site.need(0), site.need(1), site.input(2), **{"axis": 1, **site.some("axis", "block_size")})


def _dynamically_quantize(site: Site) -> Result:
    return _by_own_range(site, site.need(0), site.node.outputs)


def _by_own_range(site: Site, x: Var, names: Sequence[str]) -> Result:
    """Quantize ``x`` by its own range, treated as constant; ``names`` of integers, scale and zero point."""
    dtypes, shapes = ["uint8", "float32", "uint8"], [x.shape, (), ()]
    unused = site.emitter.fresh("integers")
    _, scale, zero = site.emitter.ops(
        "DynamicQuantizeLinear", x, outputs=3, dtypes=dtypes, shapes=shapes, names=[unused, *names[1:]]
    )
    return [site.quantized(x, scale, zero, names[0]), scale, zero]


def _conv(site: Site) -> Var:
    last = site.get("channels_last", 0)
    x, w = site.real(0, 1, 2), site.real(3, 4, 5, axis=0)
    rank = known_rank(w)
    bias = site.input(8)
    if bias is not None:
        bias = site.dequantized(bias, site.need(1) * site.need(4), None, axis=0)
    y = site.op("Conv", channels_first(x, rank) if last else x, w, bias, **site.some(*_WINDOW))
    return site.quantized(channels_last(y, rank) if last else y, site.need(6), site.input(7))


def _matmul(site: Site) -> Var:
    a, b = site.real(0, 1, 2, axis=0), site.real(3, 4, 5, axis=-1)
    return site.quantized(site.op("MatMul", a, b), site.need(6), site.input(7))


def _gemm(site: Site) -> Var:
    flip = site.get("transB", 0)
    a, b, c = site.real(0, 1, 2), site.real(3, 4, 5, axis=0 if flip else 1), site.input(6)
    if c is not None:
        c = site.dequantized(c, site.need(1) * site.need(4), None, axis=0)
    y = site.op("Gemm", a, b, c, **site.some("alpha", "transA", "transB"))
    scale = site.input(7)
    return y if scale is None else site.quantized(y, scale, site.input(8))


def _elementwise(site: Site) -> Var:
    op = site.node.op.removeprefix("QLinear")
    y = site.op(op, site.real(0, 1, 2), site.real(3, 4, 5))
    return site.quantized(y, site.need(6), site.input(7))


def _unary(site: Site) -> Var:
    x = site.real(0, 1, 2)
    y = site.op(site.node.op.removeprefix("QLinear"), x, known=x.shape, **site.some("alpha"))
    return site.quantized(y, site.need(3), site.input(4))


def _softmax(site: Site) -> Var:
    x, axis = site.real(0, 1, 2), site.get("axis", -1)
    y = softmax_from(site, x, axis) if site.get("opset") < 13 else site.op("Softmax", x, known=x.shape, axis=axis)
    return site.quantized(y, site.need(3), site.input(4))


def _pool(site: Site) -> Var:
    x, last, rank = site.real(0, 1, 2), site.get("channels_last", 0), 0
    if last:
        rank = known_rank(x)
        x = channels_first(x, rank)
    y = site.op(site.node.op.removeprefix("QLinear"), x, **site.some(*_POOL))
    return site.quantized(channels_last(y, rank) if last else y, site.need(3), site.input(4))


def _concat(site: Site) -> Var:
    parts = [site.real(i, i + 1, i + 2) for i in range(2, len(site.node.inputs), 3)]
    return site.quantized(concat(parts, site.get("axis")), site.need(0), site.input(1))


def _where(site: Site) -> Var:
    y = site.op("Where", site.need(0), site.real(1, 2, 3), site.real(4, 5, 6))
    return site.quantized(y, site.need(7), site.input(8))


def _matmul_to_float(site: Site) -> Var:
    y = site.op("MatMul", site.real(0, 2, 4, axis=-1), site.real(1, 3, 5, axis=-1))
    bias = site.input(6)
    return y if bias is None else y + bias


def _dynamic_matmul(site: Site) -> Var:
    names = [site.emitter.fresh(name) for name in ("quantized", "scale", "zero")]
    _by_own_range(site, site.need(0), names)
    y = site.op("MatMul", site.scope.twins[names[0]].value, site.real(1, 2, 3, axis=-1))
    bias = site.input(4)
    return y if bias is None else y + bias


def _scaled_product(site: Site) -> Var:
    """Expand Mul(Cast(MatMulInteger(a, b)), Mul(scale of a, scale of b)), or the same with ConvInteger."""
    nodes = site.scope.nodes
    for product, factor in (site.node.inputs, site.node.inputs[::-1]):
        cast = nodes.get(product)
        integer, bias = _without_bias(site, cast.inputs[0]) if cast and cast.op == "Cast" else (None, None)
        if integer and integer.op in ("MatMulInteger", "ConvInteger"):
            return _product(Site(integer, site.scope), nodes.get(factor), site.emitter.var(factor), bias)
    raise StaysError


def _without_bias(site: Site, name: str) -> tuple[Node | None, Var | None]:
    """Find the product and the bias of an Add: older tools add Reshape(Cast(Floor(bias / scale))) to the integers."""
    nodes = site.scope.nodes
    node = nodes.get(name)
    if node is None or node.op != "Add":
        return node, None
    for product, added in (node.inputs, node.inputs[::-1]):
        origin = nodes.get(added)
        while origin is not None and origin.op in ("Reshape", "Cast", "Floor"):
            origin = nodes.get(origin.inputs[0])
        if origin is not None and origin.op == "Div":
            return nodes.get(product), site.emitter.var(origin.inputs[0])
    return None, None


def _product(site: Site, scales: Node | None, scale: Var, bias: Var | None) -> Var:
    """Multiply the twins of both operands of an integer product; ``scale`` is the product of their scales."""
    twin = site.scope.twins.get(site.node.inputs[0])
    if twin is None:
        raise StaysError
    if scales is not None and scales.op == "Mul" and twin.scale.name in scales.inputs:
        names = list(scales.inputs)
        names.remove(twin.scale.name)
        other = site.emitter.var(names[0])
    elif scale.value is not None and twin.scale.value is not None:
        other = site.emitter.const(scale.value / twin.scale.value)
    else:
        raise StaysError
    x = site.dequantized(site.need(0), twin.scale, twin.zero)
    if site.node.op == "ConvInteger":
        w = site.dequantized(site.need(1), other.reshape([-1]) if other.shape else other, site.input(3), axis=0)
        return site.op("Conv", x, w, bias, **site.some(*_WINDOW))
    y = site.op("MatMul", x, site.dequantized(site.need(1), other, site.input(3), axis=-1))
    return y if bias is None else y + bias


def _lstm(site: Site) -> Result:
    """Expand DynamicQuantizeLSTM, without the rounding of its input and state, which differs from step to step."""
    weights = [_recurrent(site, i, scale) for i, scale in ((1, 8), (2, 10))]
    dtypes = ["float32"] * len(site.node.outputs)
    inputs = [site.need(0), *weights, *(site.input(i) for i in range(3, 8))]
    return site.emitter.ops("LSTM", *inputs, outputs=len(dtypes), dtypes=dtypes, **site.node.attrs)


def _recurrent(site: Site, weight: int, scale: int) -> Var:
    """Dequantize a weight of DynamicQuantizeLSTM, and exchange its last two axes, as LSTM requires."""
    directions = site.op("Shape", site.need(weight), known=(1,), start=0, end=1)
    shape = concat([directions, site.emitter.ints([1, -1])])
    factor = site.need(scale).reshape(shape)
    whole = site.cast(site.need(weight), factor.dtype)
    return ((whole - site.cast(site.need(scale + 1), factor.dtype).reshape(shape)) * factor).transpose([0, 2, 1])


def _attention(site: Site) -> Result:
    x, weights = site.real(0, 3, 6), site.real(1, 4, 7, axis=-1)
    return self_attention(site, x, weights, site.input(2), site.input(5, "int32"), site.input(8))


def _embed(site: Site) -> Result:
    def table(index: int) -> Lookup:
        return lambda ids: site.dequantized(
            site.op("Gather", site.need(index), ids, axis=0), site.need(index + 6), site.input(index + 11)
        )

    tables, parameters = (table(2), table(3), table(4)), (site.real(5, 11, 16), site.real(6, 12, 17))
    return embedded(site, tables, parameters, site.input(7, "int32"))


TABLE: dict[str, Expansion] = {
    "DequantizeLinear": _dequantize,
    "DynamicQuantizeLSTM": _lstm,
    "DynamicQuantizeLinear": _dynamically_quantize,
    "DynamicQuantizeMatMul": _dynamic_matmul,
    "MatMulIntegerToFloat": _matmul_to_float,
    "QAttention": _attention,
    "QEmbedLayerNormalization": _embed,
    "QGemm": _gemm,
    "QLinearAdd": _elementwise,
    "QLinearAveragePool": _pool,
    "QLinearConcat": _concat,
    "QLinearConv": _conv,
    "QLinearGlobalAveragePool": _pool,
    "QLinearLeakyRelu": _unary,
    "QLinearMatMul": _matmul,
    "QLinearMul": _elementwise,
    "QLinearSigmoid": _unary,
    "QLinearSoftmax": _softmax,
    "QLinearWhere": _where,
    "QuantizeLinear": _quantize,
}

PATTERNS: dict[str, Expansion] = {"Mul": _scaled_product}  # operator that may end a pattern of several nodes
