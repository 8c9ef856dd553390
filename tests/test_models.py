import hashlib
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import skimage.data
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from onnxplain.imaging import images

ROOT = Path(__file__).parent.parent
MODELS = ROOT / "models"
CARD = (MODELS / "README.md").read_text("utf-8")
NETWORKS = ("efficientnet_lite0", "digits_cnn")


def session(name):
    return onnxruntime.InferenceSession(MODELS / f"{name}.onnx", providers=["CPUExecutionProvider"])


def note(name):
    return json.loads((MODELS / f"{name}.preprocessing.json").read_text())


def labels(name):
    return (MODELS / note(name)["labels"]).read_text("utf-8").splitlines()


def preprocess(image, name):
    """Follow the note in plain numpy and OpenCV, so that it means what the card says."""
    steps = note(name)
    assert [steps[key] for key in ("layout", "resize", "interpolation")] == ["NCHW", "stretch", "area"]
    flag, conversion = {
        "RGB": (cv2.IMREAD_COLOR, cv2.COLOR_BGR2RGB),
        "GRAY": (cv2.IMREAD_GRAYSCALE, None),
    }[steps["color"]]
    pixels = cv2.imread(str(MODELS / image), flag)
    if conversion is not None:
        pixels = cv2.cvtColor(pixels, conversion)
    pixels = cv2.resize(pixels, steps["size"][::-1], interpolation=cv2.INTER_AREA).astype(np.float32)
    pixels = (pixels * steps["scale"] - steps["mean"]) / steps["std"]
    return np.float32(np.atleast_3d(pixels).transpose(2, 0, 1)[None])


def predict(image, name):
    (logits,) = session(name).run(None, {"image": preprocess(image, name)})
    exponents = np.exp(logits[0] - logits[0].max())
    return exponents / exponents.sum()


def held_out_digits():
    pixels, digits = load_digits(return_X_y=True)
    _, held_out, _, truth = train_test_split(pixels, digits, test_size=0.2, stratify=digits, random_state=0)
    return (held_out / 16).reshape(-1, 1, 8, 8).astype(np.float32), truth


def test_card_lists_every_file_with_its_size_and_sha256():
    files = [path for path in sorted(MODELS.iterdir()) if path.name != "README.md"]
    rows = [f"| `{p.name}` | {p.stat().st_size} | `{hashlib.sha256(p.read_bytes()).hexdigest()}` |" for p in files]
    assert sorted(line for line in CARD.splitlines() if line.startswith("| `")) == rows


@pytest.mark.parametrize("name", NETWORKS)
def test_model_is_what_the_card_says(name):
    model = onnx.load(MODELS / f"{name}.onnx")
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    assert {node.op_type for node in model.graph.node}.isdisjoint({"BatchNormalization", "Pad", "Shape", "Reshape"})
    assert "Apache-2.0" in model.doc_string
    assert {entry.key: json.loads(entry.value) for entry in model.metadata_props} == {
        "onnxplain.preprocessing": note(name)
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_batch_axis_is_free(name):
    network = session(name)
    (image,), (logits,) = network.get_inputs(), network.get_outputs()
    assert (image.name, logits.name) == ("image", "logits")
    assert image.shape[0] == logits.shape[0] == "batch"
    assert image.shape[2:] == note(name)["size"]
    assert len(labels(name)) == len(set(labels(name))) == logits.shape[1]
    noise = np.random.default_rng(0).standard_normal((3, *image.shape[1:])).astype(np.float32)
    together = network.run(None, {"image": noise})[0]
    alone = [network.run(None, {"image": one[None]})[0][0] for one in noise]
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "image"),
    [("efficientnet_lite0", "cat.png"), ("efficientnet_lite0", "coffee.png"), ("digits_cnn", "digit_3.png")],
)
def test_library_follows_the_note(name, image):
    found = images.find_note(MODELS / f"{name}.onnx", {})
    assert found.labels == MODELS / note(name)["labels"]
    made = images.preprocess(
        images.read_image(MODELS / image), found.preprocessing, session(name).get_inputs()[0].shape
    )
    np.testing.assert_allclose(made, preprocess(image, name), atol=1e-6)


@pytest.mark.parametrize(("image", "target"), [("cat.png", 285), ("coffee.png", 967)])
def test_efficientnet_names_the_photo(image, target):
    probabilities = predict(image, "efficientnet_lite0")
    top = np.argsort(-probabilities)[:3]
    assert top[0] == target
    names = labels("efficientnet_lite0")
    assert f"| {image} | " + " | ".join(f"{i} {names[i]} {probabilities[i]:.2f}" for i in top) + " |" in CARD


@pytest.mark.parametrize(
    ("image", "original"), [("cat.png", skimage.data.chelsea), ("coffee.png", skimage.data.coffee)]
)
def test_photo_is_the_original(image, original):
    np.testing.assert_array_equal(cv2.cvtColor(cv2.imread(str(MODELS / image)), cv2.COLOR_BGR2RGB), original())


def test_photos_are_rebuilt_byte_for_byte(tmp_path):
    subprocess.run([sys.executable, ROOT / "tools/make_photos.py", "-o", tmp_path], check=True, capture_output=True)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {
        name: (MODELS / name).read_bytes() for name in ("cat.png", "coffee.png")
    }


def test_digits_accuracy_on_the_held_out_fifth():
    pixels, truth = held_out_digits()
    correct = int((session("digits_cnn").run(None, {"image": pixels})[0].argmax(1) == truth).sum())
    assert correct / len(truth) >= 0.97
    assert f"{correct} of {len(truth)}" in CARD


def test_sample_digit_comes_back_as_a_held_out_three():
    pixels, truth = held_out_digits()
    distance = np.abs(pixels - preprocess("digit_3.png", "digits_cnn")).max((1, 2, 3))
    assert truth[distance.argmin()] == 3
    assert distance.min() <= 0.5 / 255 + 1e-6  # 16 grey levels, rounded to 8 bits
    assert predict("digit_3.png", "digits_cnn").argmax() == 3
