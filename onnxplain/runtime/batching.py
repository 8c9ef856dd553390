"""What fits a bound on memory: samples that go through a model at once, and copies of its weights."""

from __future__ import annotations

from collections.abc import Iterator

from onnxplain.errors import OptionError

DEFAULT_MEMORY = 2 << 30  # bytes
MAX_SAMPLES = 64  # samples; beyond that a larger batch brings nothing on any provider we measured
GPU_RUNS_AT_ONCE = 2  # runs on a GPU: while one calculates, what another needs and gives is copied
CPU_SAMPLES = (
    4  # samples; more cost as much each on CPUs, or more, since less of them is in caches, unless they are small
)
CPU_MIN_BYTES, CPU_MAX_BYTES = (
    32 << 20,
    160 << 20,
)  # bytes; as many as fit into the first at least, and into the second at most
MEMORY_SAFETY_FACTOR = 1.6  # the most that ONNX Runtime took in the place of one estimated byte; 1.1 on average


_UNITS = {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "kb": 10**3, "mb": 10**6, "gb": 10**9, "b": 1, "": 1}


def parse_memory(memory: int | float | str) -> int:
    """Bytes from a number or a text such as "512 MiB".

    Raises
    ------
    OptionError
        Not a positive amount of memory.
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
    """Samples that take no more than ``memory`` at a time, whatever ONNX Runtime makes of the graph.

    ``peak``: see `peak_per_sample`.
    """
    return max(0, int(memory / (MEMORY_SAFETY_FACTOR * max(1, peak))))


def chunk_size(peak: int, memory: int, cpu: bool) -> int:
    """Samples per run: those that fit, and on CPUs not more than cost the least each (`tools/chunks.py`)."""
    peak = max(1, peak)
    fastest = max(CPU_MIN_BYTES // peak, min(CPU_SAMPLES, CPU_MAX_BYTES // peak)) if cpu else MAX_SAMPLES
    return max(1, min(samples_that_fit(peak, memory), fastest, MAX_SAMPLES))


def chunks(total: int, size: int) -> Iterator[slice]:
    """Slices of at most ``size`` that cover ``total``."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
