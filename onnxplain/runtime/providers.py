"""The choice of ONNX Runtime's execution providers, and the reasons for it."""

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
    """Execution providers in order of preference, and a reason for each in plain words."""

    providers: tuple[Provider, ...]
    reasons: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """The providers' names."""
        return [p if isinstance(p, str) else p[0] for p in self.providers]

    @property
    def device(self) -> int:
        """Number of the GPU that CUDA uses."""
        return next((int(p[1].get("device_id", 0)) for p in self.providers if isinstance(p, tuple) and p[0] == CUDA), 0)

    @property
    def takes_tensors(self) -> bool:
        """Whether sessions run on GPU 0, so that tensors there can be used without a copy."""
        return self.names[0] == CUDA and self.device == 0

    @property
    def replays(self) -> bool:
        """Whether runs are captured as CUDA graphs."""
        return _captures(self.providers[0])

    def __str__(self) -> str:
        return "; ".join(self.reasons)


def choose(wanted: Sequence[Provider] | None = None) -> ProviderChoice:
    """Choose execution providers.

    CUDA multiplies in full float32, unless its options turn on TensorFloat-32 (``{"use_tf32": 1}``), which rounds
    factors to 10 bits: attributions differ in the third digit, and more behind kinks. All its other options are ONNX
    Runtime's, with its defaults: ``gpu_mem_limit`` and ``arena_extend_strategy`` bound its memory;
    ``cudnn_conv_algo_search`` is "EXHAUSTIVE", which tries every algorithm for each new batch size, and "HEURISTIC"
    tries none.

    ``{"enable_cuda_graph": 1}`` captures what the first call with a batch size launches on the GPU, and launches all
    of it at once in later calls, which saves the time between launches. Calls then run one at a time, and while one is
    captured, the rest of the process must not allocate memory on that GPU.

    Parameters
    ----------
    wanted
        Providers in order of preference, as for `onnxruntime.InferenceSession`. Providers that are not installed are
        skipped, and ``reasons`` says so. None: CUDA if it is available, else the CPU.

    Raises
    ------
    ProviderError
        A name is unknown, none of the providers is installed, or CUDA graphs are on but CUDA is not the first provider.
    """
    available: list[str] = ort.get_available_providers()
    if wanted is None:
        if CUDA in available:
            return ProviderChoice((_exact(CUDA), CPU), (f"{CUDA}: available, and no provider was requested",))
        return ProviderChoice((CPU,), (f"{CPU}: {CUDA} is not available in this ONNX Runtime",))
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if not isinstance(wanted, Sequence) or not all(isinstance(p, str | tuple) and p for p in wanted):
        raise ProviderError(f"providers must be names, or pairs of a name and its options, not {wanted!r}")
    known: list[str] = ort.get_all_providers()
    kept: list[Provider] = []
    reasons = []
    for provider in wanted:
        name = provider if isinstance(provider, str) else provider[0]
        if name in available:
            kept.append(_exact(provider) if name == CUDA else provider)
            reasons.append(f"{name}: requested")
        elif name in known:
            reasons.append(f"{name} skipped: not in this build of ONNX Runtime")
        else:
            raise ProviderError(f"there is no execution provider '{name}'", did_you_mean(name, known))
    if not kept:
        hint = "pip install 'onnxplain[gpu]' (after removing onnxruntime) brings CUDA."
        what = f"none of the requested providers is installed; available: {', '.join(available)}"
        raise ProviderError(what, hint)
    if any(map(_captures, kept[1:])):
        raise ProviderError(f"enable_cuda_graph requires {CUDA} as the first provider")
    return ProviderChoice(tuple(kept), tuple(reasons))


def _captures(provider: Provider) -> bool:
    """Whether a provider is CUDA with CUDA graphs turned on."""
    name, options = (provider, {}) if isinstance(provider, str) else provider
    return name == CUDA and str(options.get("enable_cuda_graph", 0)).lower() in ("1", "true")


def _exact(cuda: Provider) -> Provider:
    """Turn TensorFloat-32 off in CUDA's options, unless they set it."""
    return CUDA, {"use_tf32": 0, **({} if isinstance(cuda, str) else cuda[1])}
