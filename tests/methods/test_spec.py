"""The documentation of methods: complete, and held to what the methods do."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import onnxplain as ox
from onnxplain.distributions.lines import QUADRATURES, Quadrature
from onnxplain.errors import OptionError
from onnxplain.execution import Runner
from onnxplain.methods import FAMILIES, METHODS, Method, MethodSpec, Option, cams, make, papers
from onnxplain.methods.papers import Paper
from onnxplain.methods.spec import Cost, Family, documented
from tests.models import IMAGES

SPECS = pytest.mark.parametrize("spec", METHODS.values(), ids=METHODS)
OPTIONS = [(spec, option) for spec in METHODS.values() for option in spec.options]
EVERY_OPTION = pytest.mark.parametrize(("spec", "option"), OPTIONS, ids=[f"{s.name}-{o.name}" for s, o in OPTIONS])

# What stands beside a valid value, where an option needs another one.
COMPANIONS: Mapping[tuple[str, str], dict[str, Any]] = {
    ("lrp", "epsilon"): {"rule": "epsilon"},
    ("lrp", "gamma"): {"rule": "gamma"},
    ("lrp", "alpha"): {"rule": "alpha_beta", "beta": 0.5},
    ("lrp", "beta"): {"rule": "alpha_beta", "alpha": 1.5},
    ("lrp", "low"): {"rule": "z_box", "high": 1.0},
    ("lrp", "high"): {"rule": "z_box", "low": 0.0},
    ("deep_taylor", "low"): {"high": 1.0},
    ("deep_taylor", "high"): {"low": 0.0},
}
VALUES: Mapping[str, list[Any]] = {
    "baseline": [0.5, "blur", np.zeros(3), 1],
    "baselines": [np.zeros((2, 3)), [0.0, 1.0]],
    "features": [np.arange(4), "grid"],
    "root": ["zero", "segment", "gradient", 0.5, np.zeros(3)],
    "base": ["lrp", {"method": "lrp", "rule": "epsilon"}],
    "window": [3, (2, 3)],
    "stride": [2],
    "alpha": [1.5],
    "beta": [0.5],
    "low": [0, np.zeros(3)],
    "high": [1.0, np.ones(3)],
    "rule": ["epsilon", "gamma", "z_plus"],
    "composite": ["epsilon_plus", "attn_lrp", ox.COMPOSITES["attn_lrp"]()],
}
BAD: list[Any] = [object(), np.array([np.nan]), b"?"]  # no option takes any of these


def valid_values(spec: MethodSpec, option: Option) -> list[Any]:
    """Some values that an option takes, as its type says."""
    if spec.name == "deeplift" and option.name == "rule":
        return ["rescale", "reveal_cancel"]
    if option.name in VALUES:
        return VALUES[option.name]
    if option.type.startswith("{"):
        names = re.findall(r"'(\w+)'", option.type)
        return [name for name in names if (spec.name, name) != ("guided_grad_cam", "none")]
    return {"bool": [True, False], "int": [2, np.int64(3)], "float": [0.5, 1, np.float32(0.25)]}[option.type.split()[0]]


@SPECS
def test_every_method_is_documented(spec: MethodSpec) -> None:
    assert spec.family in FAMILIES
    for text in (spec.summary, spec.use, spec.avoid):
        assert text.endswith(".")
        assert text[0].isupper()
    assert len(spec.summary) <= 112
    assert spec.formula
    assert spec.latex
    assert spec.papers or spec.name == "feature_ablation"
    assert bool(spec.promise) == (spec().promise is not None)


def test_every_family_has_a_method_and_a_title() -> None:
    assert {spec.family for spec in METHODS.values()} == set(FAMILIES)
    assert all(": " in title for title in FAMILIES.values())


@SPECS
def test_names_and_defaults_are_those_of_the_function(spec: MethodSpec) -> None:
    assert METHODS[spec.name] is spec
    parameters = inspect.signature(spec.build).parameters
    defaults = {name: p.default.name if isinstance(p.default, Method) else p.default for name, p in parameters.items()}
    assert {option.name: option.default for option in spec.options} == defaults


@EVERY_OPTION
def test_every_option_is_documented(spec: MethodSpec, option: Option) -> None:
    assert option.meaning.endswith(".")
    assert option.meaning[0].isupper()
    assert option.type
    assert option.valid
    numeric = re.search(r"\b(int|float|ndarray)\b", option.type)
    assert bool(option.unit) == bool(numeric), "numbers have units, names and flags have none"


@EVERY_OPTION
def test_every_documented_value_is_accepted(spec: MethodSpec, option: Option) -> None:
    for value in valid_values(spec, option):
        options = {**COMPANIONS.get((spec.name, option.name), {}), option.name: value}
        assert make(spec.name, options).name == spec.name
    if option.default is None:
        assert make(spec.name, {option.name: None}).name == spec.name


@EVERY_OPTION
def test_bad_values_are_refused_with_the_valid_ones(spec: MethodSpec, option: Option) -> None:
    for value in BAD:
        with pytest.raises(OptionError) as caught:
            make(spec.name, {option.name: value})
        names = re.findall(r"'(\w+)'", option.type) if option.type.startswith("{") else []
        named = all(name in str(caught.value) for name in names)
        assert named
        assert names or re.search(r"must be|a baseline must be|NaN or infinity|features are", caught.value.message)
        assert caught.value.hint


HELD = [
    (spec, option)
    for spec, option in OPTIONS
    if option.type.split(" or ")[0] in ("int", "bool", "float")
    and "ndarray" not in option.type
    and spec.name not in ("lrp", "rect_grad", "beta_smooth")
    and option.name not in ("clip", "values", "window", "stride")
]


@pytest.mark.parametrize(("spec", "option"), HELD, ids=[f"{s.name}-{o.name}" for s, o in HELD])
def test_bounds_are_those_of_the_dataclass_that_holds_the_value(spec: MethodSpec, option: Option) -> None:
    """Dataclasses check their fields, too: what the documentation calls valid is what they take."""
    others = {"root": "segment"} if spec.name == "taylor" else {}
    for value in (-1, 0, 0.5, 1, 2, 1.5, 100, True, False, float("nan"), float("inf"), "x"):
        outcomes = []
        for take in (lambda v: option.check(option.name, v), lambda v: spec.build(**others, **{option.name: v})):
            try:
                take(value)
            except OptionError:
                outcomes.append(False)
            else:
                outcomes.append(True)
        assert outcomes[0] == outcomes[1], value


@SPECS
def test_costs_are_formulas_in_options_and_names_that_are_explained(spec: MethodSpec) -> None:
    for formula in (spec.cost.forward, spec.cost.backward):
        for name in re.findall(r"[a-z_]+", formula):
            assert name in {option.name for option in spec.options} or f"{name}: " in spec.cost.note


COSTS: list[tuple[str, dict[str, Any], dict[str, int]]] = [
    ("gradient", {}, {}),
    ("lrp", {}, {}),
    ("integrated_gradients", {"steps": 7}, {}),
    ("expected_gradients", {"samples": 5, "baselines": np.zeros((2, 2, 9, 8), np.float32)}, {"baselines": 2}),
    ("smoothgrad", {"samples": 4}, {}),
    ("smoothgrad_squared", {"samples": 3}, {}),
    ("vargrad", {}, {}),
    ("internal_influence", {"steps": 6}, {}),
    ("conductance", {"steps": 6}, {}),
    ("occlusion", {"window": 3, "stride": 2}, {"windows": 4 * 4}),
    ("feature_ablation", {}, {"features": 7 * 7}),
    ("rise", {"samples": 20}, {}),
    ("lime", {"samples": 21, "features": "grid"}, {}),
    ("kernel_shap", {"samples": 30}, {}),
    ("shapley_sampling", {"samples": 3}, {"features": 7 * 7}),
]


@pytest.mark.parametrize(("method", "options", "sizes"), COSTS, ids=[case[0] for case in COSTS])
def test_costs_are_what_is_run(
    method: str, options: dict[str, Any], sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For one sample: each run of the program is a forward pass, and one more where it returns a baseline's score."""
    forward, backward, run = 0, 0, Runner.run

    def counted(self: Runner, feeds: Any, target: Any, outputs: Any, *more: Any) -> Any:
        nonlocal forward, backward
        forward += len(target) * (1 + sum("baseline" in name for name in outputs))
        backward += len(target) * any(name.startswith(("cotangent", "attribution")) for name in outputs)
        return run(self, feeds, target, outputs, *more)

    monkeypatch.setattr(Runner, "run", counted)
    ox.explain(IMAGES.proto(), IMAGES.x(1), method, **options)
    spec = METHODS[method]
    names = {option.name: option.default for option in spec.options} | options | sizes
    assert (forward, backward) == tuple(eval(formula, {}, names) for formula in (spec.cost.forward, spec.cost.backward))


@pytest.mark.parametrize(
    ("method", "option", "unit"),
    [
        ("integrated_gradients", "tolerance", "absolute"),
        *((method, "tolerance", "relative") for method in ("rise", "lime", "kernel_shap", "shapley_sampling")),
    ],
)
def test_tolerances_say_of_what(method: str, option: str, unit: str) -> None:
    assert unit in next(o.unit for o in METHODS[method].options if o.name == option)


@SPECS
def test_docstrings_hold_all_of_it(spec: MethodSpec) -> None:
    text = " ".join((inspect.getdoc(spec.build) or "").split())
    for part in (spec.summary, spec.use, spec.avoid, spec.promise, *map(str, spec.papers)):
        assert " ".join(part.split()) in text
    for option in spec.options:
        assert f"{option.name} : {option.type}" in text
        assert option.meaning in text
        assert option.unit in text


@SPECS
def test_descriptions_are_plain(spec: MethodSpec) -> None:
    plain = spec.described
    assert [option["name"] for option in plain["options"]] == [option.name for option in spec.options]
    assert [paper["url"] for paper in plain["papers"]] == [paper.url for paper in spec.papers]
    assert "build" not in plain


def test_an_unknown_option_is_told_the_known_ones() -> None:
    with pytest.raises(OptionError) as caught:
        make("lime", {"kernel": 0.5})
    assert caught.value.message == "method 'lime' has no option 'kernel'"
    assert caught.value.hint.startswith("Did you mean 'kernel_width'? Its options are features (")
    assert "kernel_width (cosine distance, from 0 (all features) to 1 (none), default 0.25)" in caught.value.hint
    with pytest.raises(OptionError, match=r"Did you mean 'noise'\?"):
        METHODS["smoothgrad"](noize=0.5)


def test_options_of_the_averaged_method_are_known_beside_its_own() -> None:
    assert make("smoothgrad", {"samples": 3, "base": "lrp", "rule": "epsilon"}).value_seed
    with pytest.raises(OptionError, match=r"'smoothgrad' has no option 'rul'\nDid you mean 'rule'"):
        make("smoothgrad", {"base": "lrp", "rul": "epsilon"})


def test_every_paper_has_an_address_and_is_used() -> None:
    known = {value for value in vars(papers).values() if isinstance(value, Paper)}
    assert all(paper.arxiv or paper.doi for paper in known)
    cited = {paper for spec in METHODS.values() for paper in spec.papers}
    text = " ".join(option.source + option.meaning for spec in METHODS.values() for option in spec.options)
    assert {paper for paper in known - cited if paper.citation not in text} == set()


def test_names_of_choices_are_those_of_their_tables() -> None:
    assert list(Quadrature.__args__) == list(QUADRATURES)
    assert list(cams.Upsampling.__args__) == list(cams.UPSAMPLINGS)
    assert list(Family.__args__) == list(FAMILIES)


def test_an_option_without_documentation_is_refused() -> None:
    def bare(steps: int = 3) -> Method:
        """A method without documented options."""
        raise NotImplementedError

    with pytest.raises(AssertionError, match="steps"):
        documented("gradients", formula="", latex="", cost=Cost("1"), use="", avoid="")(bare)
