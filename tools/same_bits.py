"""Show that explanations have stayed equal to the last bit: digests of every method's attributions, before and after.

    python -m tools.same_bits MODEL.onnx... -o before.json     # in one checkout
    python -m tools.same_bits MODEL.onnx... --against before.json     # in the other

Inputs are seeded random numbers, two samples of the size 224 where a size is free. Methods that draw at random take few
samples, with their seed. A method that refuses a model has its error's first line in the place of digests.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import onnxplain as ox

FREE_SIZE = 224  # pixels, for a free size other than the batch's
SAMPLES = 2
LRP = ["epsilon_plus_flat", "epsilon_alpha2_beta1", "epsilon_gamma_box", "by_depth", "attn_lrp"]
OPTIONS: dict[str, dict[str, Any]] = {  # fewer points than by default: 224 x 224 pixels have many
    "integrated_gradients": {"steps": 4},
    "expected_gradients": {"samples": 4},
    "smoothgrad": {"samples": 3},
    "smoothgrad_squared": {"samples": 3},
    "vargrad": {"samples": 3},
    "internal_influence": {"steps": 3},
    "conductance": {"steps": 3},
    "occlusion": {"window": 96, "stride": 64},
    "feature_ablation": {"features": "grid"},
    "rise": {"samples": 12},
    "lime": {"samples": 12},
    "kernel_shap": {"samples": 12},
    "shapley_sampling": {"samples": 2},
    "feature_permutation": {"features": "grid"},
}
SKIPPED = {"score_cam", "recipro_cam"}  # a pass for each channel or place of the feature map


def runs() -> list[tuple[str, str, dict[str, Any]]]:
    """Label, method and options of each run."""
    plain = [(name, name, OPTIONS.get(name, {})) for name in ox.METHODS if name not in {*SKIPPED, "lrp"}]
    rules = [(f"lrp {name}", "lrp", {"composite": name, "low": -3.0, "high": 3.0}) for name in LRP if "box" in name]
    rules += [(f"lrp {name}", "lrp", {"composite": name}) for name in LRP if "box" not in name]
    return [*plain, *rules, ("smoothgrad lrp", "smoothgrad", {"samples": 2, "base": "lrp", "rule": "epsilon"})]


def feeds(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Seeded random inputs of a model with one axis for the batch in front."""
    random = np.random.default_rng(0)
    arrays = {}
    for value in onnx.load(path, load_external_data=False).graph.input:
        sizes = [d.dim_value or FREE_SIZE for d in value.type.tensor_type.shape.dim]
        arrays[value.name] = random.normal(size=(SAMPLES, *sizes[1:])).astype(np.float32)
    return arrays


def digests(path: Path) -> dict[str, str]:
    """Run -> the SHA-256 of its attributions, scores and residuals, or its refusal."""
    x, results = feeds(path), {}
    model = ox.load(path)
    for label, method, options in runs():
        try:
            answer = ox.explain(model, x, method, target=[3, 5], **options)
        except ox.OnnxplainError as error:
            results[label] = str(error).splitlines()[0]
        else:
            digest = hashlib.sha256(np.asarray(answer.score).tobytes())
            for name in x:
                digest.update(np.ascontiguousarray(answer[name].values).tobytes())
            results[label] = digest.hexdigest()
        print(f"{path.name:32s}{label:28s}{results[label][:64]}", file=sys.stderr)
    return results


def main() -> None:
    """Write digests, or compare them with those of another checkout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="models with one batch axis in front of each input")
    parser.add_argument("--output", "-o", type=Path, help="where to write the digests, as JSON")
    parser.add_argument("--against", type=Path, help="digests to compare with; the exit status is 1 if any differ")
    options = parser.parse_args()
    made = {path.name: digests(path) for path in options.models}
    if options.output:
        options.output.write_text(json.dumps(made, indent=1))
    if options.against:
        before = json.loads(options.against.read_text())
        pairs = [(m, run, before.get(m, {}).get(run), digest) for m, row in made.items() for run, digest in row.items()]
        for model, run, old, new in pairs:
            if old != new:
                print(f"{model} {run}: {old} before, {new} now")
        differ = sum(old != new for *_, old, new in pairs)
        print(f"{len(pairs) - differ} of {len(pairs)} runs are equal to the last bit")
        sys.exit(bool(differ))


if __name__ == "__main__":
    main()
