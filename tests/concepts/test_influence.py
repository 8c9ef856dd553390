"""Influence over data sets, against numpy in float64: means, errors, units, what they carry; and constant memory."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import onnxplain as ox
from onnxplain.datasets.moments import Moments
from tests.models import FIXED_BATCH, FREE_SIZES, IMAGES, MLP, TOKENS, TWO_INPUTS, model
from tests.reference import rng

AB = ox.Difference(1, 3)
WALKS = [name for name, make in ox.METHODS.items() if make().composite is not None and make().cam is None]


def batches(x, size=3):
    """A generator."""
    return (x[i : i + size] for i in range(0, len(x), size))


def spread(rows):
    """Standard error of the mean."""
    return rows.std(axis=0, ddof=1) / len(rows) ** 0.5


def close(a, b, tolerance=1e-6):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


# means and errors


def test_moments_are_those_of_all_rows_at_once():
    rows = 1e4 + rng(0).normal(size=(50, 3, 2))
    moments = Moments((3, 2))
    for part in batches(rows, 7):
        moments.add(part)
    np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.error, spread(rows), rtol=1e-10)
    pairs = Moments((3,), together=True)
    pairs.add(rows[:, :, 0])
    np.testing.assert_allclose(pairs.covariance * 50, np.cov(rows[:, :, 0].T), rtol=1e-10)


def test_gradient_at_a_hidden_layer_is_known():
    x, w2 = MLP.x(20), MLP.weights["w2"].astype(np.float64)
    found = ox.influence(MLP.proto(), x, "h", AB)
    close(found.mean, w2[:, 1] - w2[:, 3])
    close(found.error, 0)
    on = MLP.evaluate({"x": x}, "z") > 0
    found = ox.influence(MLP.proto(), x, "z", AB)
    close(found.mean, (on * (w2[:, 1] - w2[:, 3])).mean(0))
    close(found.error, spread(on * (w2[:, 1] - w2[:, 3])))
    assert found.samples == 20
    np.testing.assert_array_equal(found.units, found.mean)


def test_units_of_feature_maps_are_channels_summed_up_sample_by_sample():
    x, w3 = IMAGES.x(12), IMAGES.weights["w3"].astype(np.float64)
    flow = IMAGES.evaluate({"x": x}, "r2").reshape(12, 4, -1) * w3[:, 2].reshape(4, -1)
    found = ox.influence(IMAGES.proto(), batches(x), "r2", 2, "gradient_x_input")
    close(found.mean.reshape(4, -1), flow.mean(0))
    close(found.error.reshape(4, -1), spread(flow))
    close(found.units, flow.sum(2).mean(0))
    close(found.unit_errors, spread(flow.sum(2)))


@pytest.mark.parametrize("method", WALKS)
def test_every_method_is_averaged(method):
    x, few = IMAGES.x(5), {"steps": 3} if method in ("internal_influence", "conductance") else {}
    options = {"low": -1.0, "high": 1.0} if method == "deep_taylor" else few
    found = ox.influence(IMAGES.proto(), batches(x, 2), "r1", 2, method, memory=1, **options)
    values = ox.explain(IMAGES.proto(), x, method, target=2, at="r1", **options).values.astype(np.float64)
    close(found.mean, values.mean(0))
    close(found.units, values.sum((2, 3)).mean(0))
    close(found.unit_errors, spread(values.sum((2, 3))))


def cut():
    x, each = MLP.x(10), np.arange(10) % 4
    yield "array", x, each
    yield "list of targets", x, each.tolist()
    yield "dict", {"x": x}, each
    yield "pairs", ((x[i : i + 3], each[i : i + 3]) for i in range(0, 10, 3)), None
    yield "pairs of dicts", [({"x": x[:7]}, each[:7]), ({"x": x[7:]}, each[7:])], None
    yield "one by one", zip(x[:, None], each.tolist(), strict=True), None
    yield "weights", x, ox.Class(each) * np.ones(10)


@pytest.mark.parametrize(("data", "target"), [c[1:] for c in cut()], ids=[c[0] for c in cut()])
def test_data_and_targets_can_come_in_any_form(data, target):
    w2, on = MLP.weights["w2"], MLP.evaluate({"x": MLP.x(10)}, "z") > 0
    found = ox.influence(MLP.proto(), data, "z", target)
    close(found.mean, (on * w2[:, np.arange(10) % 4].T).mean(0))


def test_predicted_class_is_each_samples_own():
    x = MLP.x(9)
    each = MLP.evaluate({"x": x}).argmax(1)
    close(ox.influence(MLP.proto(), x, "z").mean, ox.influence(MLP.proto(), x, "z", each).mean)


def test_log_probabilities_and_what_carries_them():
    x, w2 = MLP.x(6), MLP.weights["w2"].astype(np.float64)
    h, y = MLP.evaluate({"x": x}, "h"), MLP.evaluate({"x": x})
    softmax = np.exp(y) / np.exp(y).sum(1, keepdims=True)
    found = ox.influence(MLP.proto(), x, "h", ox.LogProbability(1))
    close(found.mean, (w2[:, 1] - softmax @ w2.T).mean(0))
    kept = found.top(1)[0].index
    left = h[:, [kept]] * w2[kept] + MLP.weights["b2"]
    close(found.carried(x, ks=(1,)).score[1], (left[:, 1] - np.log(np.exp(left).sum(1))).mean())


def test_several_inputs_and_a_fixed_batch():
    feeds = TWO_INPUTS.feeds(7)
    at = ox.load(TWO_INPUTS.proto()).tensors[0].name
    values = ox.explain(TWO_INPUTS.proto(), feeds, at=at, target=0).values
    close(ox.influence(TWO_INPUTS.proto(), feeds, at, 0).mean, values.mean(0, dtype=np.float64))
    x = MLP.x(5)
    close(ox.influence(FIXED_BATCH.proto(), x, "z", 1).mean, ox.influence(MLP.proto(), x, "z", 1).mean)


def test_last_axis_of_a_sequence():
    x = rng(3).integers(0, 7, (6, 5))
    values = ox.explain(TOKENS.proto(), x, target=1, at="embedded").values.astype(np.float64)
    close(ox.influence(TOKENS.proto(), x, "embedded", 1).units, values.sum(2).mean(0))
    found = ox.influence(TOKENS.proto(), x, "embedded", 1, axis=-1)
    close(found.units, values.sum(1).mean(0))
    single = ox.influence(TOKENS.proto(), x, "embedded", 1, axis=(1, 2))
    close(single.units, values.mean(0))
    best = np.unravel_index(abs(values.mean(0)).argmax(), (5, 4))
    assert single.top(1)[0].index == tuple(map(int, best))


def test_sizes_that_differ_leave_the_units():
    sizes = [(7, 6), (4, 9)]
    data = [rng(i).normal(size=(3, 2, *size)).astype(np.float32) for i, size in enumerate(sizes)]
    found = ox.influence(FREE_SIZES.proto(), data, "r1", 2)
    sums = [ox.explain(FREE_SIZES.proto(), x, target=2, at="r1").values.sum((2, 3), dtype=np.float64) for x in data]
    close(found.units, np.concatenate(sums).mean(0))
    assert found.mean is None
    assert found.error is None
    with pytest.raises(ox.InputError, match=r"batch 1: 'r1' has units of shape \(4,\) here, and had \(7,\) before"):
        ox.influence(FREE_SIZES.proto(), data, "r1", 2, axis=2)


def test_nothing_of_a_generator_is_kept():
    seen = []

    def data():
        for number in range(5):
            gc.collect()
            assert [ref() is None for ref in seen[:-1]] == [True] * max(0, number - 1)
            batch = MLP.x(4, seed=number)
            seen.append(weakref.ref(batch))
            yield batch

    assert ox.influence(MLP.proto(), data(), "z", 1).samples == 20


def test_pieces_fit_the_memory_bound():
    steps = []
    bound = 6000 + sum(array.nbytes for array in IMAGES.weights.values())  # which are copied
    explainer = ox.Explainer(IMAGES.proto(), "occlusion", at="r2", memory=bound)
    runner = explainer.prepare(IMAGES.x(1)).runner
    assert runner.front.chunk == 2  # 1.6 * 4 * 2 * (3 * 9 * 8) = 2765 bytes each: a feature map, and it rectified
    assert runner.main.chunk > 2
    ox.influence(IMAGES.proto(), IMAGES.x(3), "r2", 1, memory=1, progress=lambda *step: steps.append(step))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    steps.clear()
    ox.influence(IMAGES.proto(), batches(IMAGES.x(4)), "r2", 1, progress=lambda *step: steps.append(step))
    assert steps == [(1, None), (3, None), (4, None)]
    steps.clear()
    found = ox.influence(IMAGES.proto(), IMAGES.x(5), "r2", 1, memory=bound)
    found.carried(IMAGES.x(5), progress=lambda *step: steps.append(step))
    assert steps == [(1, 5), (3, 5), (5, 5)]


def test_an_exception_in_progress_ends_the_work():
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ox.influence(MLP.proto(), MLP.x(4), "z", 1, progress=stop)


# units


def test_top_units_and_signs():
    found = ox.influence(MLP.proto(), MLP.x(3), "h", AB)
    w = MLP.weights["w2"][:, 1] - MLP.weights["w2"][:, 3]
    assert [u.index for u in found.top(3)] == np.argsort(-abs(w))[:3].tolist()
    assert [u.index for u in found.top(8, "positive")] == [int(i) for i in np.argsort(-w) if w[i] > 0]
    assert [u.index for u in found.top(8, "negative")] == [int(i) for i in np.argsort(w) if w[i] < 0]
    assert len(found.top(100)) == 8
    best = found.top(1)[0]
    close(best.influence, w[best.index])
    assert best.tensor == "h"
    lines = str(found).splitlines()
    assert lines[0] == "gradient at h: mean of 3 samples, the strongest of 8 units"
    assert lines[1].startswith(f"  {best.index}: {best.influence:+.3g} ± ")
    assert "nan" not in str(ox.influence(MLP.proto(), MLP.x(1), "h", AB))


@pytest.mark.parametrize(("at", "axis"), [("r1", None), ("r1", 3), ("r1", (1, 2, 3)), ("flat", None)])
def test_what_a_unit_looks_at(at, axis):
    x = IMAGES.x(4)
    unit = ox.influence(IMAGES.proto(), x, at, 2, axis=axis).top(1)[0]
    result = ox.explain(IMAGES.proto(), x, target=unit.quantity)
    activation = IMAGES.evaluate({"x": x}, at).reshape(4, *((3, 9, 8) if at == "r1" else (16,)))
    index = {None: unit.index, 3: (..., unit.index)}.get(axis, unit.index)
    close(result.score, activation[(slice(None), *np.atleast_1d(np.array(index, object)))].reshape(4, -1).sum(1), 1e-5)
    assert result.values.shape == x.shape


def test_agreement():
    one = ox.influence(IMAGES.proto(), IMAGES.x(6, seed=5), "flat", 2)
    two = ox.influence(IMAGES.proto(), IMAGES.x(6, seed=6), "flat", 4, "gradient_x_input")
    found = one.agreement(two, 6)
    tops = [set(np.argsort(-abs(f.units), kind="stable")[:6].tolist()) for f in (one, two)]
    assert found.overlap == len(tops[0] & tops[1]) / len(tops[0] | tops[1])
    assert 0 < found.overlap < 1
    close(found.correlation, np.corrcoef(one.units, two.units)[0, 1])
    close(found.rank_correlation, spearmanr(one.units, two.units).statistic)  # there are equal values: dead units
    same = one.agreement(one)
    assert (same.overlap, round(same.correlation, 9), round(same.rank_correlation, 9)) == (1, 1, 1)
    assert str(same) == "overlap of the top 10: 100%; of all units: rank correlation 1.000, correlation 1.000"
    with pytest.raises(ox.OptionError, match=r"units of shape \(16,\) do not compare with those of \(4,\)"):
        one.agreement(ox.influence(IMAGES.proto(), IMAGES.x(2), "r2", 2))


# what they carry


def ratio(part, whole):
    """Ratio of means, and its standard error: that of the mean of part - ratio whole (linearised)."""
    share = part.mean() / whole.mean()
    return share, spread(part - share * whole) / abs(whole.mean())


@pytest.mark.parametrize("baseline", [0.0, 0.7, "array"])
@pytest.mark.parametrize("sign", ["both", "positive"])
def test_carried_equals_ablation_in_numpy(baseline, sign):
    x, w3, b3 = IMAGES.x(9), IMAGES.weights["w3"].astype(np.float64), IMAGES.weights["b3"]
    r2 = IMAGES.evaluate({"x": x}, "r2").reshape(9, 4, 2, 2)
    there = rng(2).normal(size=(4, 1, 1)).astype(np.float32) if baseline == "array" else baseline
    found = ox.influence(IMAGES.proto(), x, "r2", ox.Difference(1, 3), "gradient_x_input")
    order = [u.index for u in found.top(4, sign)]
    carried = found.carried([x[:5], x[5:]], ks=(1, 2, 50), baseline=there, sign=sign)

    def scores(units):
        point = np.broadcast_to(there, r2.shape).copy()
        point[:, units] = r2[:, units]
        y = point.reshape(9, -1) @ w3 + b3
        return y[:, 1] - y[:, 3]

    assert carried.samples == 9
    assert carried.ks.tolist() == [0, 1, 2, 4]
    none, whole = scores([]), scores([0, 1, 2, 3])
    for row, k in enumerate((0, 1, 2, 4)):
        left = whole if k == 4 else scores(order[:k])
        close([carried.score[row], carried.error[row]], [left.mean(), spread(left)])
        close([carried.share[row], carried.share_error[row]], ratio(left - none, whole - none), 1e-5)
    assert carried.control is None


def test_carried_by_random_units():
    x, w2 = MLP.x(6), MLP.weights["w2"].astype(np.float64)
    h = MLP.evaluate({"x": x}, "h")
    found = ox.influence(MLP.proto(), x, "h", AB)
    carried = found.carried(batches(x, 4), ks=(2, 3), control=5)
    flow = h * (w2[:, 1] - w2[:, 3])
    for row, k in ((1, 2), (2, 3)):
        chosen = [np.random.default_rng((5, sample)).permutation(8)[:k] for sample in range(6)]
        left = np.array([flow[sample, units].sum() for sample, units in enumerate(chosen)])
        close((carried.control[row], carried.control_error[row]), ratio(left, flow.sum(1)), 1e-5)
    close(carried.control[[0, 3]], [0, 1])
    assert str(carried).splitlines()[-1].endswith("100.0% ± 0.0% (random units: 100.0% ± 0.0%)")


def test_carried_explains_the_class_that_the_whole_model_predicts():
    x, w2, b2 = MLP.x(6), MLP.weights["w2"].astype(np.float64), MLP.weights["b2"]
    each = MLP.evaluate({"x": x}).argmax(1)
    found = ox.influence(MLP.proto(), x, "h", 0)
    carried = found.carried(x, ks=(1,), target=each)
    close(carried.score[0], b2[each].mean())
    predicted = ox.influence(MLP.proto(), x, "h").carried(x, ks=(1,))
    close(predicted.score[[0, 2]], carried.score[[0, 2]])
    kept = ox.influence(MLP.proto(), x, "h").top(1)[0].index
    left = MLP.evaluate({"x": x}, "h")[:, kept] * w2[kept, each] + b2[each]
    close(predicted.score[1], left.mean())


def test_carried_of_a_middle_layer_goes_on_through_the_rest():
    x = IMAGES.x(5)
    found = ox.influence(IMAGES.proto(), x, "c1", 2)
    unit = found.top(1)[0].index
    weights = {n: IMAGES.weights[n] * 0 for n in ("w1", "b1")}
    for name in weights:
        weights[name][unit] = IMAGES.weights[name][unit]
    left = ox.explain(IMAGES.proto(**weights), x, target=2).score
    close(found.carried(x, ks=(1,)).score[1], left.mean(dtype=np.float64))


# what is refused


def refused(error, match, *args, **options):
    with pytest.raises(error, match=match):
        ox.influence(*args, **options)


def test_bad_questions_are_refused_before_any_work():
    def data():
        raise AssertionError("work has started")
        yield

    for net in (MLP.proto(), FREE_SIZES.proto()):
        refused(ox.OptionError, "no floating-point tensor 'hh'", net, data(), "hh")
    refused(ox.OptionError, "occlusion does not walk back", MLP.proto(), data(), "h", method="occlusion")
    refused(ox.OptionError, "grad_cam does not walk back", IMAGES.proto(), data(), "r2", method="grad_cam")
    refused(ox.OptionError, "no option 'steps'", MLP.proto(), data(), "h", steps=3)
    refused(ox.OptionError, "influence needs one tensor", IMAGES.proto(), data(), "r?")
    for axis in (0, 2, -2, 1.0, True, (1, 2)):
        refused(ox.OptionError, "is not an axis of units", MLP.proto(), data(), "h", axis=axis)


def test_bad_data_are_refused_with_the_number_of_their_batch():
    x, net = MLP.x(4), MLP.proto()
    refused(ox.InputError, "data must be an array, .* not int", net, 3, "h")
    refused(ox.InputError, "data must be an array, .* not str", net, "x.npy", "h")
    for empty in ([], iter(()), x[:0], [x[:0]]):
        refused(ox.InputError, "no sample", net, empty, "h")
    refused(ox.InputError, "^batch 1: input 'x' has shape", net, [x, x[:, :5]], "h")
    refused(ox.InputError, "^batch 0: input 'x' has 2 axes", net, list(x), "h")
    refused(ox.InputError, "^batch 2: .* holds NaN", net, [x, x, x * np.nan], "h")
    refused(ox.InputError, "^batch 0: .* not a regular array", net, [[[1.0], [1.0, 2.0]]], "h")
    grown = torch.ones(2, 3, requires_grad=True)
    refused(ox.InputError, "^batch 0: .* cannot be exchanged by DLPack: .*gradient", net, [grown], "h")
    refused(ox.InputError, "^batch 1: the model has no input 'y'", net, [x, {"y": x}], "h")
    refused(ox.InputError, r"^batch 0: a tuple must be \(batch, target\)", net, [(x, 1, 2)], "h")
    refused(ox.OptionError, "^batch 0: there is a target in the tuple", net, [(x, 1)], "h", 1)
    refused(ox.TargetError, "^batch 1: target 4 is out of range", net, [(x, 1), (x, 4)], "h")
    refused(ox.TargetError, "^there are 3 targets for 4 samples", net, x, "h", np.arange(3))
    refused(ox.TargetError, "^there are 5 targets for 4 samples", net, x, "h", ox.Class(0) * np.ones(5))
    refused(ox.InputError, "no array for input", TWO_INPUTS.proto(), {"a": x}, "h")
    refused(ox.InputError, "^batch 0: the model has 2 inputs", TWO_INPUTS.proto(), [x], "h")
    feeds = TWO_INPUTS.feeds(4)
    uneven = {name: array[: 4 - i] for i, (name, array) in enumerate(feeds.items())}
    refused(ox.InputError, "different numbers of samples", TWO_INPUTS.proto(), uneven, "h")


def test_bad_options_of_units_are_refused():
    x = MLP.x(3)
    found = ox.influence(MLP.proto(), x, "h")
    for bad in (0, 1.5, True):
        with pytest.raises(ox.OptionError, match="k must be a whole number"):
            found.top(bad)
        with pytest.raises(ox.OptionError, match="k must be a whole number"):
            found.agreement(found, bad)
        with pytest.raises(ox.OptionError, match="each of ks must be a whole number"):
            found.carried(x, ks=(1, bad))
    for call in (found.top, lambda **o: found.carried(x, **o), lambda **o: found.agreement(found, **o)):
        with pytest.raises(ox.OptionError, match="no sign 'up'"):
            call(sign="up")
    with pytest.raises(ox.OptionError, match="control must be a whole number"):
        found.carried(x, control=-1)
    for bad, match in (
        ("mean", "no baseline 'mean'"),
        (np.nan, "NaN"),
        (np.ones(3, np.float32), "does not fit the input"),
    ):
        with pytest.raises(ox.OptionError, match=match):
            found.carried(x, baseline=bad)


def test_a_unit_that_changes_nothing_has_no_share():
    net = model("dead (float[N,2] x) => (float[N,2] y) { h = Relu(x)\n y = Mul(h, none) }", none=np.zeros(2))
    carried = ox.influence(net, np.ones((3, 2), np.float32), "h", 0).carried(np.ones((3, 2), np.float32), ks=(1,))
    assert np.isnan(carried.share).all()
