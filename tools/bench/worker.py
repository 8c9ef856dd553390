"""The measuring process: `python -m tools.bench.worker JSON` measures, and prints one result per line."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tools.bench.families import FAMILIES
from tools.bench.nets import NETS, Array, feeds, model_path

if TYPE_CHECKING:  # neither is imported before it is needed: cold starts and memory are measured here
    import onnxruntime

    from tools.bench.peers import Case

MARK = "bench: "  # in front of what the parent reads; libraries print, too
SPAN = 0.05  # seconds that a measurement takes at least: short calls are repeated
SHORT = 1.0  # seconds below which a call is warmed up each time
PAUSE = 0.02  # seconds, in which threads that spin after a run fall asleep: they would slow down whoever comes next
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
PROVIDERS: dict[str, list[Any]] = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
    "cuda-graphs": [("CUDAExecutionProvider", {"enable_cuda_graph": 1}), "CPUExecutionProvider"],
}
Call = Callable[[], Any]


@dataclass(frozen=True)
class Job:
    """What to measure: "time", "memory" or "cold", of whom ("forward", "ours" or a peer's name; time: of all)."""

    what: str
    net: str
    batch: int
    methods: list[str]
    who: str
    repeat: int
    budget: float
    clock: str
    threads: int
    provider: str
    folder: str
    memory: str | None

    def dumps(self) -> str:
        """Serialise as JSON."""
        return json.dumps(asdict(self))


def forward(job: Job) -> Callable[[], list[Array]]:
    """Return the model's forward pass in a plain session."""
    import onnxruntime

    path = model_path(job.net, Path(job.folder))
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.force_spinning_stop", "1")  # or its threads slow down whose turn is next
    providers = PROVIDERS[job.provider.removesuffix("-graphs")]  # they need more than plain calls
    session = onnxruntime.InferenceSession(path, options, providers=providers)
    arrays = feeds(job.net, job.batch)
    names = {value.name for value in session.get_inputs()}
    return lambda: session.run(None, {key: array for key, array in arrays.items() if key in names})


def ours(job: Job, method: str, target: Array) -> Callable[[], Array]:
    """Return our method, loaded and compiled; its values are those of the first explained input."""
    import onnxplain as ox

    family = FAMILIES[method]
    path = model_path(job.net, Path(job.folder))
    options = family.options_at(job.batch) | ({"memory": job.memory} if job.memory else {})
    explainer = ox.Explainer(path, family.method, providers=PROVIDERS[job.provider], **options)
    arrays = feeds(job.net, job.batch)

    def call() -> Array:
        result = explainer(arrays, target)
        return result[result.names[0]].values

    return call


def case_of(job: Job, method: str, target: Array) -> Case:
    """Return the peers' task."""
    import torch

    from tools.bench import modules, peers

    torch.set_num_threads(job.threads)
    device = "cpu" if job.provider == "cpu" else "cuda"
    module = modules.load(job.net, Path(job.folder))
    part, x, baseline, extra = modules.at_first_floats(job.net, module, feeds(job.net, job.batch))
    x, baseline, targets, *rest = (t.to(device) for t in (x, baseline, torch.from_numpy(target), *extra))
    return peers.Case(
        NETS[job.net], part.to(device), x, baseline, tuple(rest), targets, FAMILIES[method].points(job.batch)
    )


def peer(job: Job, method: str, name: str, target: Array) -> Callable[[], Array]:
    """Return a peer's method, ready to be called."""
    from tools.bench import peers

    function, arguments = FAMILIES[method].peers[name]
    made: Callable[[], Array] = getattr(peers, function)(case_of(job, method, target), *arguments)
    return made


def times(calls: dict[str, Call], estimates: dict[str, float], job: Job) -> dict[str, list[float]]:
    """Return seconds per call, in rounds in which everyone has a turn, until the budget is spent."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    inner = {name: max(1, round(SPAN / estimates[name])) for name in calls}
    start, clock = time.perf_counter(), CLOCKS[job.clock]
    for _ in range(job.repeat):
        for name, call in calls.items():
            time.sleep(PAUSE)
            if estimates[name] < SHORT:  # or it would pay for what a long call before it has left in the caches
                call()
            before = clock()
            for _ in range(inner[name]):
                call()
            found[name].append((clock() - before) / inner[name])
        if time.perf_counter() - start > job.budget:
            break
    return found


def similarity(a: Array, b: Array) -> float:
    """Return the cosine similarity; for tokens, our values are sums over the embedding."""
    if b.ndim == a.ndim + 1:
        b = b.sum(-1)
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-300))


def measure_times(job: Job) -> Iterator[dict[str, Any]]:
    """Measure the time of every method, ours and the peers'."""
    run = forward(job)
    target = run()[0].argmax(1)
    for method in job.methods:
        yield {"begins": method}
        makers: dict[str, Callable[[], Call]] = {"ours": lambda method=method: ours(job, method, target)}
        for name in FAMILIES[method].peers:
            makers[name] = lambda method=method, name=name: peer(job, method, name, target)
        calls: dict[str, Call] = {"forward": run}
        estimates, values, refusals = {"forward": _timed(run)[0]}, {}, {}
        for name, make in makers.items():
            try:
                calls[name] = make()
                estimates[name], values[name] = _timed(calls[name])
            except Exception as error:  # whatever a library raises where it cannot do something
                calls.pop(name, None)
                refusals[name] = _words(error)
        # Sums over an embedding that is normalised next have a gradient of zero: rounding has nothing to compare.
        zero = NETS[job.net].kind == "tokens" and method == "gradient"
        comparable = "ours" in values and not FAMILIES[method].random and not zero
        similar = {n: similarity(values["ours"], v) for n, v in values.items() if n != "ours" and comparable}
        measured = times(calls, estimates, job)
        yield {"method": method, "seconds": measured, "refusals": refusals, "similarity": similar}


def measure_memory(job: Job) -> Iterator[dict[str, Any]]:
    """Measure peak resident bytes; for peers, also the bytes of the loaded model before."""
    (method,), target = job.methods, np.zeros(job.batch, np.int64)
    try:
        if job.who == "ours":
            ours(job, method, target)()
            yield {"peak": _status("VmHWM")}
            return
        if job.who == "forward":
            importlib.import_module("onnxplain")  # whose modules are no part of what explaining takes
            call: Call = forward(job)
        else:
            call = peer(job, method, job.who, target)
        loaded = _status("VmRSS")
        call()
        yield {"loaded": loaded, "peak": _status("VmHWM")}
    except Exception as error:
        yield {"refusal": _words(error)}


def measure_cold(job: Job) -> Iterator[dict[str, Any]]:
    """Compute a first result; the parent process measures the time."""
    (method,), target = job.methods, np.zeros(job.batch, np.int64)
    try:
        (ours(job, method, target) if job.who == "ours" else peer(job, method, job.who, target))()
        yield {"done": True}
    except Exception as error:
        yield {"refusal": _words(error)}


def _timed(call: Call) -> tuple[float, Any]:
    """Return the seconds of a call; a short first call is a warm-up, and the second counts."""
    for _ in range(2):
        before = time.perf_counter()
        value = call()
        seconds = time.perf_counter() - before
        if seconds > 1:
            break
    return seconds, value


def _words(error: Exception) -> str:
    words = " ".join(str(error).split())[:160]
    return f"refuses: {words or type(error).__name__}"


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024


def limit_threads(threads: int) -> None:
    """Give every session as many threads as torch gets; onnxplain leaves that to ONNX Runtime, which takes all."""
    import onnxruntime

    make = onnxruntime.SessionOptions

    def limited() -> onnxruntime.SessionOptions:
        options = make()
        options.intra_op_num_threads = threads
        return options

    onnxruntime.SessionOptions = limited


def main() -> None:
    """Run the job from the command line."""
    job = Job(**json.loads(sys.argv[1]))
    if job.who in ("", "forward", "ours"):
        limit_threads(job.threads)
    measure = {"time": measure_times, "memory": measure_memory, "cold": measure_cold}[job.what]
    for found in measure(job):
        print(MARK + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
