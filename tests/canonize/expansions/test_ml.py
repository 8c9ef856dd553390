"""Expansions of classical machine learning compute the same as ONNX Runtime's kernels; errors name the others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import pytest

import onnxplain as ox
from onnxplain.canonize import Canonical
from tests.canonize import contrib
from tests.canonize.models import Array, canonical, normal, ops, run_original
from tests.reference import gradient_graph, relative_error, run_ort

X = normal(5, 4, seed=8)
LABELS = 'classlabels_strings=["a","b","c"]'
W3, B3 = normal(3, 4, seed=1), normal(3, seed=2)


def floats(array: Any) -> str:
    return "[" + ",".join(f"{v:.6f}" for v in np.ravel(array)) + "]"


@dataclass(frozen=True)
class Case(contrib.Case):
    opset: int = 18
    version: int = 1

    def __str__(self) -> str:
        return self.text.partition("ai.onnx.ml.")[2].partition("(")[0].replace('"', "")[:60]

    def proto(self) -> onnx.ModelProto:
        proto = super().proto()
        proto.opset_import.add(domain="ai.onnx.ml", version=self.version)
        return proto


def case(call: str, x: Array = X, y: str = "float[N,M]", tolerance: float = 1e-5) -> Case:
    kind = {"f4": "float", "f8": "double", "i4": "int32", "i8": "int64"}[x.dtype.str[1:]]
    sizes = ",".join(["N", *map(str, x.shape[1:])]) if x.ndim > 1 else str(len(x))
    return Case(f"({kind}[{sizes}] x) => ({y} y) {{ y = ai.onnx.ml.{call} }}", {"x": x}, tolerance=tolerance)


def classifier(call: str, x: Array = X, label: str = "string", tolerance: float = 1e-5) -> Case:
    plain = case(call, x, tolerance=tolerance)
    return Case(
        plain.text.replace("=> (", f"=> ({label}[N] l, ").replace("y =", "l, y ="), plain.feeds, tolerance=tolerance
    )


def linear(weights: Array, bias: Array) -> str:
    return f"coefficients={floats(weights)}, intercepts={floats(bias)}"


POSITIVE = f"coefficients={floats(abs(W3) / 9)}, intercepts=[0.2,0.3,0.1]"  # scores that PROBIT takes
SAFE = abs(X) / 4

LINEAR = [
    case(f"LinearRegressor<{linear(W3[:1], B3[:1])}>(x)"),
    case(f'LinearRegressor<{linear(W3[:1], B3[:1])}, post_transform="SOFTMAX">(x)'),
    case(f'LinearRegressor<{POSITIVE}, targets=3, post_transform="PROBIT">(x)', SAFE, tolerance=1e-4),
    case(f"LinearRegressor<coefficients={floats(W3)}, targets=3>(x)"),
    case(f'LinearRegressor<{linear(W3, B3)}, targets=3, post_transform="LOGISTIC">(x)'),
    case(f"LinearRegressor<{linear(W3[:1], B3[:1])}>(x)", X[0]),
    *(
        classifier(f'LinearClassifier<{linear(W3, B3)}, {LABELS}, post_transform="{how}">(x)')
        for how in ("NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO")
    ),
    classifier(f'LinearClassifier<{POSITIVE}, {LABELS}, post_transform="PROBIT">(x)', SAFE, tolerance=1e-4),
    *(
        classifier(
            f'LinearClassifier<{linear(W3[:1], B3[:1])}, classlabels_ints=[7,5], post_transform="{how}">(x)',
            label="int64",
        )
        for how in ("NONE", "LOGISTIC", "SOFTMAX")
    ),
    classifier(f"LinearClassifier<{linear(W3, B3)}, {LABELS}>(x)", X[0]),
]

SCALES = "offset=[0.5,-1.0,2.0,0.0], scale=[2.0,0.5,-1.0,3.0]"
GAPS = np.where(X > 1, np.float32(np.nan), X)
ZEROS = np.where(np.arange(5)[:, None] == 2, np.float32(0), X)

PREPARATION = [
    case(f"Scaler<{SCALES}>(x)"),
    case("Scaler<offset=[0.5], scale=[2.0]>(x)", normal(2, 3, 4)),
    *(case(f'Normalizer<norm="{norm}">(x)', ZEROS) for norm in ("MAX", "L1", "L2")),
    case("Imputer<imputed_value_floats=[1.0,2.0,3.0,4.0], replaced_value_float=0.0>(x)", ZEROS),
    case("Imputer<imputed_value_floats=[1.0], replaced_value_float=0.0>(x)", ZEROS),
    Case(
        """(float[N,4] x, float[N,2,3] z) => (float[N,M] y) {
            y = ai.onnx.ml.FeatureVectorizer<inputdimensions=[5,2]>(x, z)
        }""",
        {"x": X, "z": normal(5, 2, 3, seed=5)},
    ),
    Case(
        """(float[N,4] x) => (float[N,M] y) {
            i = Constant<value = int64[1,3] {3, 0, 3}>() y = ai.onnx.ml.ArrayFeatureExtractor(x, i)
        }""",
        {"x": X},
    ),
]
INTEGERS = np.array([[1, -2, 0, 3], [0, 0, 0, 0]])
OTHER_TYPES = [
    *(case(f"Scaler<{SCALES}>(x)", x) for x in (INTEGERS, INTEGERS.astype(np.int32), X.astype(np.float64))),
    *(case(f'Normalizer<norm="{norm}">(x)', INTEGERS) for norm in ("MAX", "L1", "L2")),
    case("Imputer<imputed_value_int64s=[7,8,9,10], replaced_value_int64=0>(x)", INTEGERS, "int64[N,M]"),
    classifier(f"LinearClassifier<{linear(W3, B3)}, {LABELS}>(x)", INTEGERS),
    classifier(f"LinearClassifier<{linear(W3, B3)}, {LABELS}>(x)", X.astype(np.float64)),
    Case(
        """(float[N,4] x) => (string[N] l) {
            k = ArgMax<axis=1, keepdims=0>(x) c = Constant<value_strings=["p","q","r","s"]>()
            f = ai.onnx.ml.ArrayFeatureExtractor(c, k) s = Constant<value_ints=[-1]>() l = Reshape(f, s)
        }""",
        {"x": X},
    ),
]

VECTORS, COUNTS = normal(9, 4, seed=3), "vectors_per_class=[4,2,3]"
KERNELS = {
    "LINEAR": "[0.0,0.0,0.0]",
    "POLY": "[0.3,0.5,3.0]",
    "RBF": "[0.4,0.0,0.0]",
    "SIGMOID": "[0.2,0.1,0.0]",
}


def machine(kernel: str, classes: int = 3, more: str = "") -> str:
    pairs = classes * (classes - 1) // 2
    counts = COUNTS if classes == 3 else "vectors_per_class=[5,4]"
    names = LABELS if classes == 3 else 'classlabels_strings=["a","b"]'
    parameters = f"coefficients={floats(normal(classes - 1, 9, seed=4))}, rho={floats(normal(pairs, seed=5) / 10)}"
    vectors = f"support_vectors={floats(VECTORS)}, {counts}"
    kind = f'kernel_type="{kernel}", kernel_params={KERNELS[kernel]}'
    return f"SVMClassifier<{names}, {parameters}, {vectors}, {kind}{more}>(x)"


def chances(classes: int) -> str:
    pairs = classes * (classes - 1) // 2
    return f", prob_a={floats(-1 - abs(normal(pairs, seed=6)))}, prob_b={floats(normal(pairs, seed=7))}"


SUPPORT = f"support_vectors={floats(VECTORS)}, n_supports=9, coefficients={floats(normal(9, seed=4))}, rho=[0.3]"
LIBLINEAR = 'kernel_type="RBF", kernel_params=[0.5,0.0,0.0]'  # ignored
MACHINES = [
    *(case(f'SVMRegressor<{SUPPORT}, kernel_type="{k}", kernel_params={p}>(x)') for k, p in KERNELS.items()),
    case(f"SVMRegressor<coefficients={floats(W3[0])}, rho=[0.3], {LIBLINEAR}>(x)"),
    *(classifier(machine(kernel)) for kernel in KERNELS),
    *(classifier(machine(kernel, 3, chances(3)), tolerance=1e-4) for kernel in KERNELS),
    *(classifier(machine("RBF", 2, f', post_transform="{how}"')) for how in ("NONE", "LOGISTIC", "SOFTMAX")),
    classifier(machine("RBF", 2, chances(2)), tolerance=1e-4),
    classifier(machine("POLY", 3, ', post_transform="SOFTMAX"')),
    classifier(f"SVMClassifier<{LABELS}, coefficients={floats(W3)}, rho=[0.3], {LIBLINEAR}>(x)"),
    *(
        classifier(
            f'SVMClassifier<classlabels_strings=["a","b"], coefficients={floats(w)}, rho=[-0.3], {LIBLINEAR}>(x)'
        )
        for w in (W3[:2], abs(W3[:2]))
    ),
]
ONE_CLASS = case(f"SVMRegressor<{SUPPORT}, {LIBLINEAR}, one_class=1>(x)")


def check(result: Canonical, case: Case) -> None:
    results = run_ort(result.graph, case.feeds).values()
    for found, expected in zip(results, run_original(case.proto(), case.feeds), strict=True):
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        if expected.dtype.kind == "f":
            assert relative_error(found, expected) <= case.tolerance
        else:
            assert np.array_equal(found, expected)


@pytest.mark.parametrize("case", [*LINEAR, *PREPARATION, *OTHER_TYPES, *MACHINES, ONE_CLASS], ids=str)
def test_calculates_what_the_kernel_does(case: Case) -> None:
    result = canonical(case.proto())
    assert not contrib.strange(result.graph.nodes)
    check(result, case)


@pytest.mark.parametrize("case", [*LINEAR, *PREPARATION, *MACHINES], ids=str)
def test_gradient_is_that_of_the_kernel(case: Case) -> None:
    jumps = case.feeds["x"] is ZEROS
    contrib.check_gradient(replace(case, feeds={"x": X}) if jumps else case)


def test_both_signs_and_every_class_are_met() -> None:
    x = normal(99, 4)
    for name, number in (("LinearClassifier", 3), (machine("RBF"), 3), (machine("RBF", 2, chances(2)), 2)):
        example = next(c for c in (*LINEAR, *MACHINES) if name in c.text)
        assert len(set(run_original(example.proto(), {"x": x})[0])) == number
        check(canonical(example.proto()), replace(example, feeds={"x": x}))


def test_missing_numbers_are_replaced_and_get_no_gradient() -> None:
    case_ = case("Imputer<imputed_value_floats=[1.0,2.0,3.0,4.0], replaced_value_float=nan>(x)", GAPS)
    proto = case_.proto()
    result = canonical(proto)
    assert np.isnan(GAPS).any()
    check(result, case_)
    gradient = gradient_graph(result.graph, {"y": np.ones_like(X)}, ["x"])
    (found,) = run_ort(gradient, {"x": GAPS, "ct_y": np.ones_like(X)}).values()
    assert np.array_equal(found, ~np.isnan(GAPS))


def test_halves_of_scores_that_onnx_runtime_leaves_uninitialised_are_not_imitated() -> None:
    call = f'LinearClassifier<{linear(W3[:1], B3[:1])}, classlabels_ints=[7,5], post_transform="PROBIT">(x)'
    assert ops(canonical(classifier(call, label="int64").proto()).graph) == ["LinearClassifier"]


PIPELINE = f"""(float[N,4] x) => (string[N] label, seq(map(string, float)) scores) {{
    s = ai.onnx.ml.Scaler<{SCALES}>(x)
    l, p = ai.onnx.ml.LinearClassifier<{linear(W3, B3)}, {LABELS}, multi_class=1, post_transform="SOFTMAX">(s)
    n = ai.onnx.ml.Normalizer<norm="L1">(p)
    label = Identity(l)
    scores = ai.onnx.ml.ZipMap<{LABELS}>(n)
}}"""


def pipeline(**changes: str) -> onnx.ModelProto:
    """As skl2onnx writes a logistic regression behind a StandardScaler."""
    text = PIPELINE.replace("seq(map(string, float)) scores", "float[N,3] scores")
    for old, new in changes.items():
        text = text.replace(old, new)
    proto = Case(text, {}).proto()
    kind = proto.graph.output[1].type
    if any(n.op_type == "ZipMap" for n in proto.graph.node):
        entry = onnx.helper.make_map_type_proto(
            onnx.TensorProto.STRING, onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None)
        )
        kind.CopyFrom(onnx.helper.make_sequence_type_proto(entry))
    return proto


def test_maps_become_the_scores_that_they_are_made_of() -> None:
    proto = pipeline()
    result = canonical(proto)
    label, maps = run_original(proto, {"x": X})
    found = run_ort(result.graph, {"x": X})
    assert np.array_equal(found["label"], label)
    assert relative_error(found["scores"], np.array([[m[k] for k in "abc"] for m in maps])) < 1e-6
    assert "output 'scores' is a tensor of scores, no longer a sequence of maps" in result.changes
    assert result.labels == {"scores": ("a", "b", "c")}


def test_a_linear_model_is_a_layer_before_a_softmax() -> None:
    graph = canonical(pipeline()).graph
    assert [op for op in ops(graph) if op not in ("ArgMax", "Gather")] == ["Sub", "Mul", "Gemm", "Softmax"]
    explained = ox.explain(pipeline(), X, "lrp", rule="zero", target=0)
    logits = (X - [0.5, -1, 2, 0]) * [2, 0.5, -1, 3] @ W3.T + B3
    assert relative_error(explained.score, logits[:, 0]) < 1e-5


def test_normalizer_stays_where_scores_do_not_add_up_to_one() -> None:
    assert "LpNormalization" in ops(canonical(pipeline(SOFTMAX="LOGISTIC")).graph)


def test_labels() -> None:
    text = """(float[N,4] x) => (string[N] l, float[N,M] y) {{
        h = Tanh(x) y = Softmax<axis=1>(h)
        k = ArgMax<axis=1, keepdims=0>(y) c = Constant<value_strings=["p","q",{}"s"]>()
        f = ai.onnx.ml.ArrayFeatureExtractor(c, k) s = Constant<value_ints=[-1]>() l = Reshape(f, s)
    }}"""
    assert canonical(Case(text.format('"r",'), {}).proto()).labels == {"y": ("p", "q", "r", "s")}
    assert canonical(Case(text.format(""), {}).proto()).labels == {}  # one more score than there are labels
    ints = classifier(f"LinearClassifier<{linear(W3, B3)}, classlabels_ints=[7,5,6]>(x)", label="int64")
    assert canonical(ints.proto()).labels == {"y": (7, 5, 6)}
    scores = Case(ints.text.replace("int64[N] l, ", ""), {}).proto()
    assert canonical(scores).labels == {"y": (7, 5, 6)}
    assert canonical(classifier(machine("RBF")).proto()).labels == {}  # scores of pairs
    assert canonical(classifier(machine("RBF", 3, chances(3))).proto()).labels == {"y": ("a", "b", "c")}
    assert canonical(LINEAR[0].proto()).labels == {}


STUMP = """nodes_treeids=[0,0,0], nodes_nodeids=[0,1,2], nodes_featureids=[1,0,0], nodes_values=[0.1,0.0,0.0],
    nodes_modes=["BRANCH_LEQ","LEAF","LEAF"], nodes_truenodeids=[1,0,0], nodes_falsenodeids=[2,0,0]"""
FOREST = f"""(float[N,4] x) => (string[N] l, float[N,3] y) {{ l, y = ai.onnx.ml.TreeEnsembleClassifier<{STUMP},
    class_treeids=[0,0], class_nodeids=[1,2], class_ids=[0,1], class_weights=[1.0,1.0],
    classlabels_strings=["low","high","none"]>(x) }}"""


@pytest.mark.parametrize("batch", ["N", "1"])
@pytest.mark.parametrize("version", [1, 3])
def test_forests_are_explained_by_occlusion(batch: str, version: int) -> None:
    proto = Case(FOREST.replace("[N", f"[{batch}"), {}, version=version).proto()
    assert canonical(proto).labels == {"y": ("low", "high", "none")}
    values = ox.explain(proto, X, "occlusion", target=1).values
    step = (X[:, 1] > 0.1).astype(np.float32)
    assert np.allclose(values, np.stack([0 * step, step, 0 * step, 0 * step], 1))
    with pytest.raises(ox.errors.UnsupportedOperatorError, match=r"TreeEnsembleClassifier 'l'.*\n.*occlusion"):
        ox.explain(proto, X, "gradient")


def test_trees_of_the_newest_version() -> None:
    tensors = {"nodes_splits": np.float32([0.1]), "leaf_weights": np.float32([2, 3]), "nodes_modes": np.uint8([0])}
    attrs = {name: onnx.numpy_helper.from_array(array) for name, array in tensors.items()}
    attrs |= {name: [0] for name in ("tree_roots", "nodes_truenodeids")}
    attrs |= {"nodes_featureids": [1], "nodes_falsenodeids": [1], "leaf_targetids": [0, 0]}
    attrs |= {"nodes_trueleafs": [1], "nodes_falseleafs": [1], "n_targets": 1}
    proto = Case("(float[N,4] x) => (float[N,1] y) { y = Identity(x) }", {}, version=5).proto()
    proto.graph.node[0].CopyFrom(onnx.helper.make_node("TreeEnsemble", ["x"], ["y"], domain="ai.onnx.ml", **attrs))
    result = canonical(proto)
    assert np.array_equal(run_ort(result.graph, {"x": X})["y"], np.where(X[:, 1:2] > 0.1, 3, 2))


COLUMNS = """(float[N,4] x, string[N,1] c) => (float[N,1] y) {
    o = ai.onnx.ml.OneHotEncoder<cats_strings=["u","v","w"]>(c)
    s = Constant<value_ints=[-1,3]>() f = Reshape(o, s)
    e = ai.onnx.ml.LabelEncoder<keys_strings=["u","v"], values_floats=[0.5,1.5]>(c)
    all = Concat<axis=1>(x, f, e)
    y = ai.onnx.ml.LinearRegressor<coefficients=[1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.0]>(all)
}"""


@pytest.mark.parametrize("batch", ["N", "1"])
def test_columns_of_strings(batch: str) -> None:
    feeds = {"x": X, "c": np.array([["u"], ["v"], ["w"], ["u"], ["?"]], object)}
    proto = Case(COLUMNS.replace("[N", f"[{batch}"), feeds, version=2).proto()
    result = canonical(proto)
    assert result.fixed_batch is None
    check(result, Case(COLUMNS, feeds, version=2))
    values = ox.explain(proto, feeds, "gradient", wrt="x").values
    assert np.array_equal(values, np.tile(np.float32([1, 2, 3, 4]), (5, 1)))
    assert np.allclose(ox.explain(proto, feeds, "occlusion", wrt="x").values, X * [1, 2, 3, 4], atol=1e-5)


@pytest.mark.parametrize(("kind", "other"), [("string", "int64"), ("int64", "string")])
def test_label_encoders_of_the_first_version(kind: str, other: str) -> None:
    text = f"""({kind}[N] c) => ({other}[N] y) {{
        y = ai.onnx.ml.LabelEncoder<classes_strings=["u","v"], default_string="none", default_int64=9>(c)
    }}"""
    c = np.array(["v", "u", "?"], object) if kind == "string" else np.array([1, 0, 5])
    example = Case(text, {"c": c})
    check(canonical(example.proto()), example)


@pytest.mark.parametrize("call", ["Binarizer<threshold=0.5>(x)", "OneHotEncoder<cats_int64s=[0,1]>(x)"])
def test_steps_are_named_by_gradient_methods(call: str) -> None:
    text = f"""(float[N,4] x) => (float[N,M] y) {{
        b = ai.onnx.ml.{call} s = Constant<value_ints=[0,-1]>() y = Reshape(b, s)
    }}"""
    proto = Case(text, {}).proto()
    assert ox.explain(proto, X, "occlusion").values.shape == X.shape
    with pytest.raises(ox.OnnxplainError, match=call.partition("<")[0]):
        ox.explain(proto, X, "gradient")


def test_chances_of_pairs_are_coupled_as_often_as_a_sample_needs_it() -> None:
    """Samples do not influence each other, and a sample that needs no sweep keeps equal chances."""
    example = classifier(machine("RBF", 3, chances(3)), 9 * normal(40, 4))
    result = canonical(example.proto())
    together = run_ort(result.graph, example.feeds)["y"]
    alone = [run_ort(result.graph, {"x": x[None]})["y"][0] for x in example.feeds["x"]]
    assert relative_error(together, np.array(alone)) < 1e-6
    check(result, example)
