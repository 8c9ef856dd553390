"""The command line: ``onnxplain explain``, ``convert``, ``inspect``, ``influence`` and ``methods``."""

from onnxplain.cli.main import main

__all__ = ["main"]
