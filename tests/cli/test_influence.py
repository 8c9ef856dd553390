"""The influence command: folders and arrays, what it prints, what it refuses."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import onnxplain as ox
from onnxplain.cli import inputs
from tests.cli.command import DIGIT, DIGITS, PHOTO, SMALL, TWO, digits, refuse, run, saved
from tests.reference import rng

AT = ox.load(DIGITS).tensors[1].name  # a feature map


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The folder that the commands run in, with some digits."""
    monkeypatch.chdir(tmp_path)
    noise = 0.1 * rng(0).normal(size=(5, 1, 8, 8))
    np.save("x.npy", (digits() + noise).astype(np.float32))
    (tmp_path / "photos").mkdir()
    for number in range(9):
        shutil.copy(DIGIT, tmp_path / "photos" / f"{number}.png")
    return tmp_path


def as_json(*args):
    return json.loads(run("influence", DIGITS, *args, "--at", AT, "--json").stdout)


def test_an_array_gives_the_units_of_the_api():
    done = as_json("x.npy", "--target", "3", "--versus", "8", "-m", "gradient_x_input", "--top", "3", "--carried")
    found = ox.influence(DIGITS, np.load("x.npy"), AT, ox.Difference(3, 8), "gradient_x_input")
    assert (done["samples"], done["units"], done["at"]) == (5, found.units.size, AT)
    assert done["target"] == "class 3 (3) rather than class 8 (8)"
    assert [u["index"] for u in done["top"]] == [u.index for u in found.top(3)]
    np.testing.assert_allclose([u["error"] for u in done["top"]], [u.error for u in found.top(3)])
    carried = found.carried(np.load("x.npy"))
    assert done["carried"]["k"] == carried.ks.tolist()
    np.testing.assert_allclose(done["carried"]["share"], carried.share)


def test_a_folder_of_photos_and_arrays(folder):
    photos = as_json("photos", "--target", "3")
    one = ox.influence(DIGITS, digits(), AT, 3)
    assert photos["samples"] == 9
    np.testing.assert_allclose([u["influence"] for u in photos["top"]], [u.influence for u in one.top()], rtol=1e-6)
    assert as_json(DIGIT)["top"][0]["error"] is None  # one sample tells no error
    (folder / "photos" / "note.txt").write_text("no input")
    shutil.copy("x.npy", folder / "photos" / "5.npy")
    np.savez(folder / "photos" / "z.npz", **{ox.load(DIGITS).inputs[0].name: digits()})
    assert as_json("photos")["samples"] == 15


def test_photos_of_several_sizes_are_batches_of_their_own(folder):
    free = saved("free (float[N,1,H,W] x) => (float[N,1] y) { p = GlobalAveragePool(x)\n y = Flatten(p) }")
    done = run("influence", free, "photos", "--at", "p", *PHOTO, "--color", "GRAY", "--size", "8", "--json")
    assert json.loads(done.stdout)["samples"] == 9


def test_what_people_read():
    lines = run("influence", DIGITS, "x.npy", "--at", AT, "--top", "2", "--carried").stdout.splitlines()
    assert lines[0] == f"predicted class: gradient at {AT}, mean of 5 samples"
    assert lines[1].startswith("the strongest of ")
    assert [line[:2] for line in lines[2:4]] == ["  ", "  "]
    assert lines[4].startswith("mean of 5 samples; score with the top k units alone")
    assert lines[-1].endswith("100.0% ± 0.0%")


def test_signs_and_axes():
    done = as_json("x.npy", "--target", "3", "--sign", "negative", "--axis", "-1", "--axis", "1")
    assert all(u["influence"] < 0 and len(u["index"]) == 2 for u in done["top"])


def test_a_unit_in_terms_of_an_earlier_layer():
    late = ox.load(DIGITS).tensors[4].name
    done = as_json("x.npy", "--of", late, "--target", "2,...")
    found = ox.influence(DIGITS, np.load("x.npy"), AT, ox.Channel(late, 2))
    assert done["target"] == f"'{late}' at 2,..."
    assert [u["index"] for u in done["top"]] == [u.index for u in found.top()]


def test_arrays_are_mapped():
    assert isinstance(inputs.load_array(inputs.Path("x.npy"), mapped=True).base, np.memmap)


def test_refusals(folder):
    def refused(data="x.npy", *more, at=AT, status=1, model=DIGITS):
        return refuse("influence", model, data, "--at", at, *more, status=status)

    assert "no floating-point tensor 'nothing'" in refused(at="nothing")[0]
    assert "Missing option '--at'" in refuse("influence", DIGITS, "x.npy", status=2)[0]
    assert "--top" in refused("x.npy", "--top", "0", status=2)[0]
    assert "occlusion does not walk back" in refused("x.npy", "-m", "occlusion")[0]
    assert "cannot read 'y.npy'" in refused("y.npy")[0]
    assert "no class called 'cat'" in refused("x.npy", "--target", "1", "--versus", "cat")[0]
    assert "target 10 is out of range" in refused("x.npy", "--versus", "10")[0]
    assert "--mean is for photos" in refused("x.npy", "--mean", "1")[0]
    (folder / "empty").mkdir()
    assert "'empty' holds neither photos nor arrays" in refused("empty")[0]
    (folder / "photos" / "a.png").write_bytes(b"no photo")
    assert "a.png' is not an image" in refused("photos")[0]
    np.save("wide.npy", np.zeros((2, 1, 8, 9), np.float32))
    assert "axis 3 differs" in refused("wide.npy")[0]
    assert "the model takes" in refused(DIGIT, at="y", model=saved(TWO))[0]
    assert "it is unknown how" in refused(DIGIT, at="y", model=saved(SMALL))[0]
