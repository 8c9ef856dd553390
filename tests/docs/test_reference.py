"""Every public name has a docstring and a place on a reference page, and so has every public attribute of it."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields, is_dataclass

import pytest

import onnxplain as ox
from tests.docs import pages

ON_PAGES = {
    name
    for path in (pages.DOCS / "reference").glob("*.md")
    for name in re.findall(r"^::: ([\w.]+)", path.read_text(), re.M)
}
CLASSES = [name for name in ox.__all__ if inspect.isclass(getattr(ox, name))]


def resolved(name):
    """Return the object with a full name."""
    found = ox
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    return found


def described(cls):
    """The names that a class's docstring, and those of its bases, describe as attributes or parameters."""
    texts = [inspect.getdoc(base) or "" for base in cls.__mro__[:-1]]
    return {
        name
        for text in texts
        for line in re.findall(r"^([\w, ]+?)(?: : .+)?$", text, re.M)
        for name in line.split(", ")
    }


@pytest.mark.parametrize("name", ox.__all__)
def test_public_names_are_on_a_reference_page(name):
    assert f"onnxplain.{name}" in ON_PAGES


@pytest.mark.parametrize("name", [name for name in ox.__all__ if callable(getattr(ox, name))])
def test_public_names_have_docstrings(name):
    text = inspect.getdoc(getattr(ox, name))
    assert text
    assert text.splitlines()[0].endswith(".")


@pytest.mark.parametrize("name", CLASSES)
def test_public_members_have_docstrings(name):
    cls = getattr(ox, name)
    for member, value in inspect.getmembers(cls):
        if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
            assert inspect.getdoc(value), member


@pytest.mark.parametrize("name", CLASSES)
def test_public_fields_are_described(name):
    cls = getattr(ox, name)
    if is_dataclass(cls):
        public = {field.name for field in fields(cls) if not field.name.startswith("_")}
        assert public <= described(cls), public - described(cls)


@pytest.mark.parametrize("name", sorted(ON_PAGES))
def test_names_on_reference_pages_exist(name):
    __import__(name.rpartition(".")[0])
    try:
        __import__(name)
    except ImportError:
        assert resolved(name) is not None
