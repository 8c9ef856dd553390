"""The ``onnxplain`` command."""

from onnxplain.cli.main import main

__all__ = ["main"]
