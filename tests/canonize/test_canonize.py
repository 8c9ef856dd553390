"""Models as they are deployed: every opset, functions, control flow, odd declarations, other precisions."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnxplain.canonize import canonize, fold
from onnxplain.canonize.prepare import named_inputs, prepare
from onnxplain.errors import ModelError, OptionError, UnsupportedModelError
from onnxplain.graph.ir import OPSET
from onnxplain.storage.reader import read
from tests.canonize.models import canonical, check, model, normal, ops, run_original, shapes
from tests.reference import relative_error, run_ort

CONV = "(float[N,3,8,8] x) => (float[N,4,6,6] y) { c = Conv(x, k, b) y = Relu(c) }"
WEIGHTS = {"k": normal(4, 3, 3, 3), "b": normal(4)}
IMAGE = {"x": normal(2, 3, 8, 8)}


@pytest.mark.parametrize("opset", range(7, 27))
def test_every_opset(opset):
    proto = model(CONV, opset=opset, **WEIGHTS)
    result = canonical(proto)
    assert ops(result.graph) == ["Conv", "Relu"]
    assert (f"opset {opset} became {OPSET}" in result.changes) == (opset != OPSET)
    check(result, model(CONV, **WEIGHTS), IMAGE)


OLD = {  # operators whose form changed since; (opset, text)
    "attributes that are inputs now": (
        9,
        """(float[N,3,8,8] x) => (float[N,3,9] y) {
            a = Slice<axes=[2], starts=[1], ends=[-1]>(x)
            b = Pad<mode="constant", pads=[0,0,0,0,0,0,0,1], value=0.5>(a)
            c = Clip<min=-1.0, max=1.0>(b)
            y = ReduceSum<axes=[2], keepdims=0>(c)
        }""",
    ),
    "softmax over all later axes": (11, "(float[N,3,8,8] x) => (float[N,3,8,8] y) { y = Softmax<axis=1>(x) }"),
    "upsampling by attribute": (
        8,
        '(float[N,3,8,8] x) => (float[N,3,16,16] y) { y = Upsample<mode="nearest", scales=[1.0,1.0,2.0,2.0]>(x) }',
    ),
    "dropout": (9, "(float[N,3,8,8] x) => (float[N,3,8,8] y) { d, m = Dropout<ratio=0.5>(x) y = Neg(d) }"),
    "group normalization of its first form": (
        18,
        "(float[N,4,8,8] z) => (float[N,4,8,8] y) { y = GroupNormalization<num_groups=2>(z, two, half) }",
    ),
    "layer normalization": (
        17,
        "(float[N,3,8,8] x) => (float[N,3,8,8] y) { y = LayerNormalization<axis=-1>(x, eight) }",
    ),
    "gelu": (20, '(float[N,3,8,8] x) => (float[N,3,8,8] y) { y = Gelu<approximate="tanh">(x) }'),
}


@pytest.mark.parametrize("name", OLD)
def test_older_forms(name):
    opset, text = OLD[name]
    weights = {"two": normal(2), "half": normal(2, seed=1), "eight": normal(8)}
    used = {k: v for k, v in weights.items() if f"{k}," in text or f"{k})" in text}
    proto = model(text, opset=opset, **used)
    check(canonical(proto), proto, {proto.graph.input[0].name: normal(2, 4 if "GroupN" in text else 3, 8, 8)})


def test_gelu_and_layer_normalization_stay_whole():
    text = "(float[N,8] x) => (float[N,8] y) { l = LayerNormalization(x, w) y = Gelu(l) }"
    assert ops(canonical(model(text, opset=20, w=normal(8))).graph) == ["LayerNormalization", "Gelu"]


NEW = {  # operators that opset 21 does not know; (opset, text)
    "attention": (23, "(float[N,2,5,8] x) => (float[N,2,5,8] y) { y = Attention(x, x, x) }"),
    "causal attention of rank 3": (
        24,
        """(float[N,5,8] x) => (float[N,5,8] y) {
            y = Attention<q_num_heads=2, kv_num_heads=2, is_causal=1, scale=0.5>(x, x, x)
        }""",
    ),
    "rms normalization": (23, "(float[N,2,8] x) => (float[N,2,8] y) { y = RMSNormalization(x, w) }"),
    "rotary embedding": (
        23,
        "(float[N,2,5,8] x) => (float[N,2,5,8] y) { y = RotaryEmbedding(x, turn, turn, where) }",
    ),
    "swish with its default": (24, "(float[N,8] x) => (float[N,8] y) { y = Swish(x) }"),
    "a cast that says how it rounds": (
        25,
        '(float[N,8] x) => (float[N,8] y) { i = Cast<to=6, round_mode="up">(x) y = Cast<to=1>(i) }',
    ),
}


@pytest.mark.parametrize("name", NEW)
def test_newer_operators_are_expanded(name):
    opset, text = NEW[name]
    weights = {"w": normal(8), "turn": normal(9, 4), "where": np.arange(10).reshape(2, 5) % 9}
    used = {k: v for k, v in weights.items() if f"{k}," in text or f"{k})" in text}
    proto = model(text, opset=opset, ir=10, **used)
    shape = [2 if not d.dim_value else d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    feeds = {"x": normal(*shape)}
    result = canonical(proto)
    known = {op for op in ops(result.graph) if onnx.defs.has(op, OPSET)}
    assert known == set(ops(result.graph))
    # The reference is onnx's own evaluator: ONNX Runtime has no kernel for some of these.
    expected = onnx.reference.ReferenceEvaluator(proto).run(None, feeds)[0]
    assert relative_error(run_ort(result.graph, feeds)["y"], expected) < 1e-5


@pytest.mark.skipif(onnx.defs.onnx_opset_version() < 26, reason="this onnx does not know opset 26")
def test_an_operator_that_nothing_expresses_is_named():
    proto = model("(float[N,8] x) => (float[N,8] y) { y = BitCast<to = 1>(x) }", opset=26)
    proto.graph.node[0].name = "bits"
    with pytest.raises(UnsupportedModelError, match="BitCast 'bits' is newer than opset 21"):
        canonical(proto)


def test_a_failed_conversion_says_why():
    proto = model("(float[N,8] x) => (float[N,8] y) { y = Strange(x) }", opset=12)
    with pytest.raises(UnsupportedModelError, match=r"^opset 12 cannot be converted to 21: \S"):
        canonical(proto)


def test_operators_of_onnx_runtime_pass_through():
    proto = model("(float[N,8] x) => (float[N,8] y) { g = com.microsoft.Gelu(x) y = Softmax(g) }", opset=12)
    proto.opset_import.add(domain="com.microsoft", version=1)
    check(canonical(proto), proto, {"x": normal(2, 8)})


def test_quantized_weights_become_float_constants():
    proto = model(
        """(float[N,20] x) => (float[N,30] y) {
            q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) f = DequantizeLinear(w, s, z) y = MatMul(d, f)
        }""",
        s=np.float32(0.05),
        z=np.int8(3),
        w=np.arange(600).astype(np.int8).reshape(20, 30),
    )
    result = canonical(proto)
    assert ops(result.graph) == ["Clip", "Sum", "QuantizeLinear", "DequantizeLinear", "MatMul"]
    check(result, proto, {"x": normal(2, 20)}, tolerance=1e-5)


def test_functions_are_inlined():
    proto = model(
        "(float[N,8] x) => (float[N,8] y) { y = local.twice(x) }",
        functions="""<domain: "local", opset_import: ["" : 17]> twice (a) => (b) { b = Add(a, a) }""",
    )
    result = canonical(proto)
    assert ops(result.graph) == ["Add"]
    assert "inlined functions: twice" in result.changes
    check(result, proto, {"x": normal(2, 8)})


def test_a_constant_condition_is_inlined_and_another_is_kept():
    branches = (
        """<then_branch = t () => (float[N,8] a) { a = Neg(x) }, else_branch = f () => (float[N,8] b) { b = Abs(x) }>"""
    )
    proto = model(f"(float[N,8] x) => (float[N,8] y) {{ y = If(c){branches} }}", c=np.array(True))
    assert ops(canonical(proto).graph) == ["Neg"]
    proto = model(f"(float[N,8] x, bool c) => (float[N,8] y) {{ y = If(c){branches} }}")
    result = canonical(proto)
    assert ops(result.graph) == ["If"]
    for condition in (True, False):
        check(result, proto, {"x": normal(2, 8), "c": np.array(condition)})


def test_weights_used_in_a_branch():
    proto = model(
        """(float[N,30] x, bool c) => (float[N,20] y) {
            y = If(c) <then_branch = t () => (float[N,20] p) { p = MatMul(x, w) },
                       else_branch = f () => (float[N,20] q) { m = MatMul(x, w) q = Neg(m) }>
        }""",
        w=normal(30, 20),
    )
    result = canonical(proto)
    for condition in (True, False):
        check(result, proto, {"x": normal(2, 30), "c": np.array(condition)})


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a = Identity(x) d = Dropout(a) y = Relu(d) z = Identity(y)", ["Relu", "Identity"]),  # y is an output itself
        ("y = Neg(x) r = Relu(x) i = Identity(r) s = Neg(i) z = Cast<to=1>(i)", ["Neg", "Relu"]),
        ("y = Neg(x) r = Relu(x) i = Identity(r) s = Neg(i) j = Dropout(s) z = Identity(j)", ["Neg", "Relu", "Neg"]),
        ("y = Neg(x) z = Identity(x)", ["Neg", "Identity"]),
    ],
)
def test_nodes_that_hand_on_their_input_vanish(text, left):
    proto = model(f"(float[N,8] x) => (float[N,8] y, float[N,8] z) {{ {text} }}")
    result = canonical(proto)
    assert sorted(ops(result.graph)) == sorted(left)
    assert set(result.graph.values) == {"x"} | set(result.graph.producer)
    check(result, proto, {"x": normal(2, 8)})


def test_a_relu_before_a_clip_stays():
    bounds = {"low": np.array(0, np.float32), "six": np.array(6, np.float32)}
    result = canonical(model("(float[N,3] x) => (float[N,3] y) { r = Relu(x) y = Clip(r, low, six) }", **bounds))
    assert ops(result.graph) == ["Relu", "Clip"]


def test_batch_normalization_is_folded_into_its_layer():
    weights = {**WEIGHTS, "s": normal(4), "o": normal(4), "m": normal(4), "v": np.abs(normal(4))}
    proto = model(
        "(float[N,3,8,8] x) => (float[N,4,6,6] y) { c = Conv(x, k, b) y = BatchNormalization(c, s, o, m, v) }",
        **weights,
    )
    result = canonical(proto)
    assert ops(result.graph) == ["Conv"]
    check(result, proto, IMAGE, tolerance=1e-5)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("y = MatMul(x, w)", True),
        ("h = MatMul(x, w) y = Add(h, b)", True),
        ("t = Transpose<perm=[1,0]>(v) y = MatMul(x, t)", False),
        ("h = MatMul(x, w) f = Flatten(h) y = BatchNormalization(f, b, b, b, b)", False),
        ("h = MatMul(x, w) g = MatMul(x, w) y = Mul(h, g)", True),
        ("s = MatMul(w, u) y = MatMul(x, s)", False),
        ("i = Cast<to=7>(x) g = Gather<axis=0>(w, i) y = ReduceMean<axes=[1]>(g)", True),
    ],
)
def test_weights_that_folding_cannot_change_are_not_copied(text, kept):
    weights = {"w": normal(32, 32), "v": normal(32, 32), "u": normal(32, 32), "b": np.abs(normal(32))}
    used = {k: v for k, v in weights.items() if f"({k}," in text or f", {k}" in text or f"({k})" in text}
    proto = model(f"(float[N,32] x) => (float y) {{ {text} }}", **used)
    source = read(proto)
    assert ("w" in fold.unfoldable(fold.StubbedModel(source.proto, source.weights))) == kept
    result = canonical(proto)
    if kept:
        assert result.graph.constants["w"] is not None
    check(result, proto, {"x": np.abs(normal(3, 32))}, tolerance=1e-5)


def test_weights_in_constant_nodes():
    proto = model("(float[N,20] x) => (float[N,30] y) { y = MatMul(x, w) }")
    value = onnx.numpy_helper.from_array(normal(20, 30))
    proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w"], value=value))
    result = canonical(proto)
    assert ops(result.graph) == ["MatMul"]
    check(result, proto, {"x": normal(2, 20)})


def test_weights_that_are_also_inputs():
    proto = model(
        "(float[N,20] x, float[20,30] w) => (float[N,30] y) { y = MatMul(x, w) }", ir=3, opset=8, w=normal(20, 30)
    )
    result = canonical(proto)
    assert [v.name for v in result.graph.inputs] == ["x"]
    assert [v.name for v in named_inputs(read(proto).proto)] == ["x"]
    assert "1 weights that were also listed as inputs are constants now" in result.changes
    check(result, proto, {"x": normal(2, 20)})


@pytest.mark.parametrize("flat", [True, False])
def test_sparse_weights(flat):
    dense = np.zeros((20, 30), np.float32)
    dense[3, 4], dense[19, 29] = 5, -7
    indices = np.array([3 * 30 + 4, 599]) if flat else np.array([[3, 4], [19, 29]])
    proto = model("(float[N,20] x) => (float[N,30] y) { y = MatMul(x, w) }")
    values = onnx.numpy_helper.from_array(np.float32([5, -7]), "w")
    sparse = onnx.helper.make_sparse_tensor(values, onnx.numpy_helper.from_array(indices, "i"), [20, 30])
    proto.graph.sparse_initializer.append(sparse)
    x = normal(2, 20)
    assert relative_error(run_ort(canonical(proto).graph, {"x": x})["y"], x @ dense) < 1e-6


def test_declared_output_shapes_are_not_believed():
    proto = model("(float[N,8] x) => (float[1,77] y) { y = Relu(x) }")
    proto.graph.value_info.extend(proto.graph.output)
    result = canonical(proto)
    assert result.graph.outputs[0].shape == ("batch", 8)


def test_dimensions_without_names_get_them():
    proto = model(
        "(float[?,?,2] x, float[M,?] z, float s) => (float y) { a = Add(x, s) m = ReduceSum(z) y = Mul(a, m) }"
    )
    assert [v.shape for v in named_inputs(read(proto).proto)] == [("batch", "x_dim1", 2), ("batch", "z_dim1"), ()]
    result = canonical(proto, x_dim1=3)
    assert [v.shape for v in result.graph.inputs] == [("batch", 3, 2), ("batch", "z_dim1"), ()]
    check(result, proto, {"x": normal(4, 3, 2), "z": normal(4, 5), "s": normal()}, tolerance=1e-5)


def test_a_given_batch_size_is_kept():
    result = canonical(model(CONV, **WEIGHTS), batch=2)
    assert result.fixed_batch == 2
    assert shapes(result.graph) == set()
    check(result, model(CONV, **WEIGHTS), IMAGE)


def test_an_unknown_dimension_is_refused():
    with pytest.raises(OptionError, match="no free dimension 'length'") as error:
        canonical(model("(float[N,tokens] x) => (float[N,tokens] y) { y = Relu(x) }"), length=3)
    assert "batch, tokens" in error.value.hint


def test_inputs_that_are_no_tensors_are_refused():
    proto = model("(seq(float[N]) x) => (float y) { zero = Constant<value = int64 {0}>() y = SequenceAt(x, zero) }")
    with pytest.raises(UnsupportedModelError, match="input 'x' is not a tensor"):
        canonical(proto)


def test_sequences_inside_and_as_outputs():
    proto = model(
        """(float[N,6] x) => (seq(float[?,?]) parts, float[N,3] y) {
            parts = SplitToSequence<axis=1, keepdims=1>(x, size)
            last = Constant<value = int64 {-1}>()
            y = SequenceAt(parts, last)
        }""",
        size=np.array(3),
    )
    feeds = {"x": normal(2, 6)}
    results = list(run_ort(canonical(proto).graph, feeds).values())
    expected = run_original(proto, feeds)
    assert all(np.array_equal(a, b) for a, b in zip(results[0], expected[0], strict=True))
    assert np.array_equal(results[1], expected[1])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_calculated_in_single_precision(dtype):
    name = np.dtype(dtype).name
    back = int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    half = {k: v.astype(dtype) for k, v in WEIGHTS.items()}
    proto = model(
        f"""({name}[N,3,8,8] x) => ({name}[N,4,6,6] y) {{
            c = Conv(x, k, b) f = Cast<to=1>(c) r = Relu(f) y = Cast<to={back}>(r)
        }}""",
        **half,
    )
    result = canonical(proto)
    assert ops(result.graph) == ["Conv", "Relu"]
    assert f"{name} is computed in float32" in result.changes
    assert {v.dtype for v in result.graph.values.values()} == {np.dtype(np.float32)}
    assert [v.dtype for v in named_inputs(read(proto).proto)] == [np.dtype(dtype)]
    check(result, model(CONV, **{k: v.astype(np.float32) for k, v in half.items()}), IMAGE)


def test_a_model_that_onnx_runtime_refuses():
    proto = model("(float[N,8] x) => (float[N,8] y) { y = Add(x, w) }", w=normal(3))
    with pytest.raises(ModelError, match="ONNX Runtime cannot load the model: "):
        canonical(proto)


def test_every_value_has_a_dtype_and_a_rank():
    result = canonical(model(CONV, **WEIGHTS))
    assert set(result.graph.values) == {"x", "c", "y"}
    assert shapes(result.graph) == {"batch"}


def test_the_source_stays_as_it_was():
    source = read(model(CONV, opset=9, ir=3, **WEIGHTS))
    before = onnx.ModelProto()
    before.CopyFrom(source.proto)
    canonize(source)
    assert source.proto == before


def test_names_of_sizes_that_the_project_writes_itself():
    """No name of a user's size is taken for a multiple of the batch's, or for the batch's."""
    proto = model("(float[N,5,4] x, float[N,3,6] z) => (float[N,1] y) { a = Neg(x)  b = Neg(z)  y = Identity(c) }")
    del proto.graph.node[:]
    proto.graph.node.append(onnx.helper.make_node("ReduceSum", ["x"], ["y"]))
    for axis, name in ((1, "12*batch"), (2, "x_dim1")):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    for axis, name in ((1, "subbatch"), (2, "batch")):
        proto.graph.input[1].type.tensor_type.shape.dim[axis].dim_param = name
    proto.graph.input[1].type.tensor_type.shape.dim[0].dim_value = 1
    shapes = [v.shape for v in named_inputs(proto)]
    assert shapes == [("batch", "x_dim1_", "x_dim1"), (1, "subbatch", "batch")]
    assert [v.shape for v in named_inputs(_called("sub", "unk__0"))] == [("batch", "unk__0")]


WORDS = "batch Batch BATCH batch_size BatchSize batchSize encoder_batch batch2 nbatch NBatch batchsize batches"


@pytest.mark.parametrize("name", WORDS.split())
def test_words_that_name_the_batch_axis(name):
    assert named_inputs(_called("channels", name))[0].shape == ("channels", "batch")


@pytest.mark.parametrize("name", ["subbatch", "batcher", "mybatching", "abatch", "débatch"])
def test_words_that_do_not(name):
    assert named_inputs(_called("channels", name))[0].shape == ("batch", name)


def _called(*names: str) -> onnx.ModelProto:
    proto = model("(float[A,B] x) => (float[A,B] y) { y = Neg(x) }")
    for dim, name in zip(proto.graph.input[0].type.tensor_type.shape.dim, names, strict=True):
        dim.dim_param = name
    return proto


def test_names_of_sizes_in_bodies_are_forgotten():
    text = """(float[N,5] x, bool c) => (float[N,5] y) {
        y = If(c) <
            then_branch = p () => (float[A,B] r) { s = Neg(x)  r = Neg(s) },
            else_branch = q () => (float[A,B] t) { t = Exp(x) }
        >
    }"""
    proto = model(text)
    for attribute in proto.graph.node[0].attribute:
        attribute.g.output[0].type.tensor_type.shape.dim[0].dim_param = "12*batch"
        attribute.g.output[0].type.tensor_type.shape.dim[1].dim_param = "batch"
    prepared = prepare(read(proto), {}).model
    assert not any(
        dim.dim_param
        for attribute in prepared.graph.node[0].attribute
        for dim in attribute.g.output[0].type.tensor_type.shape.dim
    )
    graph = canonical(proto).graph
    (node,) = [n for n in graph.nodes if n.op == "If"]
    assert {v.shape for body in node.subgraphs for v in body.values.values()} == {("batch", 5)}
