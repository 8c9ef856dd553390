"""``python -m onnxplain`` is the ``onnxplain`` command."""

from onnxplain.cli import main

main()
