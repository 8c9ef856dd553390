"""Tensors of other libraries go in, and attributions come out, without a copy.

On the CPU, what is meant for a GPU runs with memory of the host: the same code, but for the address.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import onnxplain as ox
from onnxplain.errors import InputError, OptionError
from onnxplain.graph.axes import BatchAxes
from onnxplain.graph.emit import Emitter
from onnxplain.questions import inputs as checks
from onnxplain.runtime.chunked import Chunked
from onnxplain.runtime.device import Tensor, received
from onnxplain.runtime.providers import CPU, CUDA, choose
from onnxplain.runtime.session import Session
from tests.models import IMAGES, TINY
from tests.reference import rng

STAY = {"gradient", "gradient_x_input", "lrp", "deeplift", "guided_backprop", "grad_cam", "taylor"}
X = IMAGES.x(5)


class OnGpu:
    """A tensor that claims to be on a GPU, for machines without one."""

    dtype = np.dtype(np.float32)

    def __init__(self, number: int = 0) -> None:
        self.number = number

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.number

    def __dlpack__(self, **options: Any) -> Any:
        raise BufferError("not while gradients are wanted")


# Tensors.


def test_a_tensor_shares_its_memory_both_ways() -> None:
    x = torch.arange(12.0).reshape(4, 3)
    tensor = Tensor.of(x)
    assert (tensor.shape, tensor.ndim, tensor.size, tensor.dtype, tensor.device) == (
        (4, 3),
        2,
        12,
        "float32",
        ("cpu", 0),
    )
    assert tensor.address == x.data_ptr()
    x[1, 2] = -7
    assert tensor.numpy()[1, 2] == -7
    back = torch.from_dlpack(tensor)
    assert back.data_ptr() == x.data_ptr()
    del x, tensor
    assert back[1, 2] == -7  # whoever holds a view holds the memory


def test_rows_of_a_tensor_are_where_they_were() -> None:
    x = torch.arange(24.0, dtype=torch.float64).reshape(4, 3, 2)
    rows = Tensor.of(x).rows(slice(1, 3))
    assert (rows.shape, rows.dtype, rows.address) == ((2, 3, 2), "float64", x[1:].data_ptr())
    assert rows.rows(slice(1, 2)).address == x[2:].data_ptr()


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "int32", "uint8", "int8"])
def test_types(dtype: str) -> None:
    x = np.arange(3).astype(dtype)
    assert Tensor.of(x).dtype == x.dtype
    np.testing.assert_array_equal(Tensor.of(x).numpy(), x)
    assert Tensor.empty((2, 3), x.dtype, ("cpu", 0)).dtype == x.dtype


# What users give.


def test_tensors_on_the_host_are_views() -> None:
    x = torch.ones(2, 6)
    for given in (x, x[:, ::2], x.T):
        array = received(given, "x", gpu=False)
        assert isinstance(array, np.ndarray)
        assert array.ctypes.data == given.data_ptr()
        np.testing.assert_array_equal(array, given.numpy())
    array = np.ones(3)
    assert received(array, "x", gpu=True) is array
    assert received([[1.0], [2.0]], "x", gpu=False).shape == (2, 1)


def test_tensors_that_cannot_be_exchanged() -> None:
    for given in (torch.ones(2, requires_grad=True), torch.ones(2, dtype=torch.bfloat16)):
        with pytest.raises(
            InputError, match=r"tensor for input 'x' cannot be exchanged by DLPack: .*\n.*detach\(\).float\(\)"
        ):
            received(given, "x", gpu=False)
    with pytest.raises(InputError, match="cannot be exchanged by DLPack: not while gradients are wanted"):
        received(OnGpu(), "x", gpu=True)
    with pytest.raises(InputError, match="not a regular array"):
        received([[1.0], [1.0, 2.0]], "x", gpu=False)


def test_tensors_in_the_wrong_place() -> None:
    with pytest.raises(InputError, match=r"'x' is on GPU 0, and the explainer does not run there\n.*x\.cpu\(\)"):
        received(OnGpu(), "x", gpu=False)
    with pytest.raises(InputError, match=r"'x' is on GPU 1; only tensors on GPU 0 .*\nCUDA_VISIBLE_DEVICES"):
        received(OnGpu(1), "x", gpu=True)
    with pytest.raises(InputError, match="'x' is on GPU 0, and the explainer does not run there"):
        ox.Explainer(IMAGES.proto(), "gradient", providers=[CPU])(OnGpu())


def test_an_explainer_takes_tensors_of_the_host() -> None:
    explainer = ox.Explainer(IMAGES.proto(), "gradient")
    expected = explainer(X)
    given = torch.from_numpy(X.copy())
    assert explainer.prepare(given).feeds["x"].ctypes.data == given.data_ptr()
    np.testing.assert_array_equal(explainer(given).values, expected.values)
    channels_last = given.contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(explainer(channels_last).values, expected.values)
    np.testing.assert_array_equal(torch.from_dlpack(explainer(given)), expected.values)
    with pytest.raises(InputError, match="takes float32, not float64"):
        explainer(given.double())
    with pytest.raises(InputError, match="holds NaN or infinity, first at"):
        explainer(given / 0)


# Attributions that stay where they are.


@pytest.mark.parametrize("memory", [1, "1 GiB"])
def test_attributions_stay_where_they_are_calculated(memory: int | str) -> None:
    explainer = ox.Explainer(IMAGES.proto(), "lrp", memory=memory)
    expected = explainer(X, [0, 1, 2, 0, 1])
    calls: list[tuple[int, int]] = []
    result = explainer(X, [0, 1, 2, 0, 1], lambda *done: calls.append(done), device=True)
    assert calls == ([(k, 5) for k in range(1, 6)] if memory == 1 else [(5, 5)])
    tensor = torch.from_dlpack(result)
    assert tensor.data_ptr() == result.values.ctypes.data == torch.from_dlpack(result["x"]).data_ptr()
    np.testing.assert_array_equal(tensor, expected.values)
    np.testing.assert_array_equal(result.score, expected.score)
    np.testing.assert_array_equal(result.target, expected.target)
    assert result.residual is None
    assert expected.residual is not None


def test_methods_that_add_up_on_the_host_say_so() -> None:
    for method in ("smoothgrad", "integrated_gradients", "occlusion", "expected_gradients"):
        explainer = ox.Explainer(IMAGES.proto(), method)
        with pytest.raises(OptionError, match=f"{method} looks at several points, and adds up on the host"):
            explainer(X, device=True)


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Treat every tensor as being on the sessions' device; collect the inputs that sessions get."""
    fed: list[dict[str, Any]] = []
    run = Session.run

    def spied(self: Session, feeds: Any, *rest: Any) -> Any:
        fed.append(dict(feeds))
        return run(self, feeds, *rest)

    monkeypatch.setattr(Session, "run", spied)
    monkeypatch.setattr(checks, "received", lambda x, name, gpu: Tensor.of(x))
    return fed


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("method", ["gradient", "lrp", "deeplift", "smoothgrad", "integrated_gradients", "rise"])
def test_inputs_where_the_sessions_calculate(shared: list[dict[str, Any]], name: str, method: str) -> None:
    feeds = {n: np.asarray(a) for n, a in TINY[name].feeds(3).items()}
    options = {"samples": 4} if method in ("smoothgrad", "rise") else {}
    explainer = ox.Explainer(TINY[name].proto(), method, **options)
    with pytest.MonkeyPatch.context() as plain:
        plain.setattr(checks, "received", received)
        expected = explainer(feeds)
    shared.clear()
    result = explainer({n: torch.from_numpy(a) for n, a in feeds.items()})
    addresses = {n: given.address for call in shared for n, given in call.items() if isinstance(given, Tensor)}
    stays = method in STAY
    assert addresses == ({n: a.ctypes.data for n, a in feeds.items()} if stays else {})
    for part in expected.names:
        np.testing.assert_array_equal(result[part].values, expected[part].values)
    if stays and expected.residual is not None:
        np.testing.assert_array_equal(result.residual, expected.residual)
    assert [line.arrived is None for line in result.report()] == [line.arrived is None for line in expected.report()]


def test_requests_with_tensors_are_joined_on_the_host(shared: list[dict[str, Any]]) -> None:
    explainer = ox.Explainer(IMAGES.proto(), "gradient")
    given = [torch.from_numpy(X[:2].copy()), torch.from_numpy(X[2:].copy())]
    requests = [explainer.check(x) for x in given]
    assert not requests[0].joins(requests[1])
    copies = [request.copy() for request in requests]
    assert copies[0].joins(copies[1])
    given[0].zero_()
    answers = explainer.answer(copies)
    np.testing.assert_array_equal(np.concatenate([a.values for a in answers]), explainer(torch.from_numpy(X)).values)


def test_copies_on_the_host_are_searched_for_nan(shared: list[dict[str, Any]]) -> None:
    with pytest.raises(InputError, match="holds NaN"):
        ox.Explainer(IMAGES.proto(), "smoothgrad")(torch.full(X.shape, np.nan))


def chunked(chunk: int, axis: int = 0, exactly: bool = False) -> Chunked:
    emitter = Emitter()
    x = emitter.input("x", "float32", ("batch", 3) if axis == 0 else (3, "batch"))
    graph = emitter.graph([x], {"y": x * 2, "z": x + 1})
    return Chunked(Session(graph, choose([CPU])), BatchAxes(dict.fromkeys("xyz", axis)), chunk, exactly)


@pytest.mark.parametrize("chunk", [1, 2, 4, 9])
def test_chunks_of_tensors(chunk: int) -> None:
    x = rng(0).normal(size=(4, 3)).astype(np.float32)
    y = Tensor.empty(x.shape, x.dtype, ("cpu", 0))
    results = chunked(chunk).run({"x": Tensor.of(x)}, 4, ["z"], None, {"y": y})
    assert list(results) == ["z"]
    np.testing.assert_array_equal(results["z"], x + 1)
    np.testing.assert_array_equal(y.numpy(), 2 * x)


def test_chunks_that_cannot_be_cut_from_tensors() -> None:
    x = np.ones((3, 3), np.float32)
    with pytest.raises(InputError, match=r"takes 2 samples of 'x' at a time, and too few are left for the last run"):
        chunked(2, exactly=True).run({"x": Tensor.of(x)}, 3, ["y"])
    with pytest.raises(InputError, match=r"'x' .* can be split along its first axis only"):
        chunked(2, axis=1).run({"x": Tensor.of(x)}, 3, ["y"])
    (y,) = chunked(3, axis=1).run({"x": Tensor.of(x)}, 3, ["y"]).values()
    np.testing.assert_array_equal(y, 2 * x)


def test_results_of_a_binding_are_not_copied() -> None:
    """Sessions on a device read their results like this."""
    session = chunked(4).session._session
    binding = session.io_binding()
    binding.bind_cpu_input("x", np.ones((1, 3), np.float32))
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    (value,) = binding.get_outputs()
    array = value.numpy()
    assert array.ctypes.data == value.data_ptr()
    del binding, value
    np.testing.assert_array_equal(array, np.full((1, 3), 2))


# On a GPU.


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["gradient", "lrp", "deeplift", "smoothgrad"])
@pytest.mark.parametrize("memory", [1, "1 GiB"])
def test_tensors_on_the_gpu(method: str, memory: int | str) -> None:
    explainer = ox.Explainer(IMAGES.proto(), method, providers=[CUDA, CPU], memory=memory)
    given = onnxruntime.OrtValue.ortvalue_from_numpy(X, "cuda", 0)
    result, expected = explainer(given), explainer(X)
    np.testing.assert_allclose(result.values, expected.values, rtol=1e-5, atol=1e-6)
    if method in STAY:
        kept = explainer(given, device=True)
        assert kept.__dlpack_device__() == (2, 0)
        np.testing.assert_allclose(kept.values, expected.values, rtol=1e-5, atol=1e-6)
        again = explainer(kept, device=True)  # an attribution is a tensor on the GPU, too
        assert again.__dlpack_device__() == (2, 0)
    with pytest.raises(InputError, match="the explainer does not run there"):
        ox.Explainer(IMAGES.proto(), method, providers=[CPU])(given)


@pytest.mark.gpu
def test_tensor_float_32_is_off_by_default() -> None:
    expected = ox.Explainer(IMAGES.proto(), "gradient", providers=[CPU])(X).values
    for options in ({}, {"use_tf32": 1}):
        found = ox.Explainer(IMAGES.proto(), "gradient", providers=[(CUDA, options), CPU])(X).values
        np.testing.assert_allclose(found, expected, rtol=1e-2 if options else 1e-4, atol=1e-2 if options else 1e-5)
