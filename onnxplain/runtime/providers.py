"""Which execution provider runs a model, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onnxplain.errors import ProviderError, did_you_mean
from onnxplain.runtime import ort

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

Provider = str | tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class ProviderChoice:
    """The providers to ask for, best first, and the reasons in plain words."""

    providers: tuple[Provider, ...]
    reasons: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """The providers' names."""
        return [p if isinstance(p, str) else p[0] for p in self.providers]

    @property
    def device(self) -> int:
        """Which GPU CUDA is to use."""
        return next((int(p[1].get("device_id", 0)) for p in self.providers if isinstance(p, tuple) and p[0] == CUDA), 0)

    @property
    def takes_tensors(self) -> bool:
        """Whether tensors on GPU 0 are where the calculation is to be."""
        return self.names[0] == CUDA and self.device == 0

    @property
    def replays(self) -> bool:
        """Whether runs are to be captured as CUDA graphs."""
        return _captures(self.providers[0])

    def __str__(self) -> str:
        return "; ".join(self.reasons)


def choose(wanted: Sequence[Provider] | None = None) -> ProviderChoice:
    """Choose execution providers.

    CUDA multiplies in full float32, unless its options ask for TensorFloat-32 (``{"use_tf32": 1}``), which rounds to 10
    bits: attributions differ in the third digit, and more behind kinks. All its other options are ONNX Runtime's, with
    its defaults: ``gpu_mem_limit`` and ``arena_extend_strategy`` bound its memory; ``cudnn_conv_algo_search`` is
    "EXHAUSTIVE", which tries every algorithm when it meets a new batch size, and "HEURISTIC" tries none.

    ``{"enable_cuda_graph": 1}`` captures what the first call with some batch size launches on the GPU, and launches all
    of it at once from then on, which saves the time between. Calls take turns then, and while one is captured, the rest
    of the process must not allocate memory on that GPU.

    Parameters
    ----------
    wanted
        Providers in order of preference, as for `onnxruntime.InferenceSession`; those not available are passed over,
        and the choice says so. None: CUDA where available, else the CPU.

    Raises
    ------
    ProviderError
        An unknown name, none of those asked for is available, or CUDA graphs where CUDA does not lead.
    """
    available: list[str] = ort.get_available_providers()
    if wanted is None:
        if CUDA in available:
            return ProviderChoice((_exact(CUDA), CPU), (f"{CUDA}: available, and none was asked for",))
        return ProviderChoice((CPU,), (f"{CPU}: {CUDA} is not available in this ONNX Runtime",))
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if not isinstance(wanted, Sequence) or not all(isinstance(p, str | tuple) and p for p in wanted):
        raise ProviderError(f"providers are names, or pairs of a name and its options, not {wanted!r}")
    known: list[str] = ort.get_all_providers()
    kept: list[Provider] = []
    reasons = []
    for provider in wanted:
        name = provider if isinstance(provider, str) else provider[0]
        if name in available:
            kept.append(_exact(provider) if name == CUDA else provider)
            reasons.append(f"{name}: asked for")
        elif name in known:
            reasons.append(f"{name} passed over: not in this build of ONNX Runtime")
        else:
            raise ProviderError(f"there is no execution provider '{name}'", did_you_mean(name, known))
    if not kept:
        hint = "pip install 'onnxplain[gpu]' (after removing onnxruntime) brings CUDA."
        raise ProviderError(f"no provider that was asked for is available; here are {', '.join(available)}", hint)
    if any(map(_captures, kept[1:])):
        raise ProviderError(f"enable_cuda_graph is for where all runs on CUDA: {CUDA} has to be asked for first")
    return ProviderChoice(tuple(kept), tuple(reasons))


def _captures(provider: Provider) -> bool:
    """Whether it is CUDA, and to capture CUDA graphs."""
    name, options = (provider, {}) if isinstance(provider, str) else provider
    return name == CUDA and str(options.get("enable_cuda_graph", 0)).lower() in ("1", "true")


def _exact(cuda: Provider) -> Provider:
    """CUDA without TensorFloat-32, unless its options say otherwise."""
    return CUDA, {"use_tf32": 0, **({} if isinstance(cuda, str) else cuda[1])}
