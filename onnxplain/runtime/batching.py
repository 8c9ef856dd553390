"""Samples per run: as many as fit into the memory limit, and no more than make runs faster."""

from __future__ import annotations

from collections.abc import Iterator

from onnxplain.errors import OptionError

DEFAULT_MEMORY = 2 << 30  # bytes of activations
MAX_SAMPLES = 64  # samples per run: larger batches were not faster on any provider that was measured
GPU_RUNS_AT_ONCE = 2  # runs: while one computes on the GPU, inputs and outputs of the other are copied

# Runs on a CPU: beyond a few samples, each costs as much or more, since less of it is in caches, unless it is small.
CPU_SAMPLES = 4  # samples per run, between the two bounds below
CPU_MIN_BYTES = 32 << 20  # bytes of activations: as many samples as fit into them, at least
CPU_MAX_BYTES = 160 << 20  # bytes of activations: only as many samples as fit into them, unless CPU_MIN_BYTES says more

MEMORY_SAFETY_FACTOR = 1.6  # bytes that ONNX Runtime took per estimated byte, at most; 1.1 on average

_UNITS = {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "kb": 10**3, "mb": 10**6, "gb": 10**9, "b": 1, "": 1}


def parse_memory(memory: int | float | str) -> int:
    """Convert an amount of memory to bytes.

    Parameters
    ----------
    memory
        Bytes, or a text such as "512 MiB" or "2 GB".

    Raises
    ------
    OptionError
        It is not a positive amount of memory.
    """
    text = str(memory).strip().lower()
    number = text.rstrip("bgikm ")
    unit = text[len(number) :].strip()
    try:
        amount = int(float(number) * _UNITS[unit])
    except (KeyError, ValueError, OverflowError):
        amount = 0
    if amount <= 0:
        raise OptionError(f"memory must be a positive number of bytes, or a text such as '512 MiB', not {memory!r}")
    return amount


def samples_that_fit(peak: int, memory: int) -> int:
    """How many samples fit into memory in one run, with room for what ONNX Runtime takes beyond the estimate.

    Parameters
    ----------
    peak
        Estimated bytes per sample (`onnxplain.graph.memory.peak_per_sample`).
    memory
        Limit in bytes.
    """
    return max(0, int(memory / (MEMORY_SAFETY_FACTOR * max(1, peak))))


def chunk_size(peak: int, memory: int, cpu: bool) -> int:
    """Choose the number of samples per run: as many as fit, and on CPUs the number that is cheapest per sample.

    `tools/chunks.py` measures the latter.

    Parameters
    ----------
    peak
        Estimated bytes per sample (`onnxplain.graph.memory.peak_per_sample`).
    memory
        Limit in bytes.
    cpu
        Whether the runs are on a CPU.
    """
    peak = max(1, peak)
    fastest = max(CPU_MIN_BYTES // peak, min(CPU_SAMPLES, CPU_MAX_BYTES // peak)) if cpu else MAX_SAMPLES
    return max(1, min(samples_that_fit(peak, memory), fastest, MAX_SAMPLES))


def chunks(total: int, size: int) -> Iterator[slice]:
    """Yield slices of at most ``size`` elements that cover ``total`` elements."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
