"""Files that appear complete or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from onnxplain.errors import OutputError

PathLike = str | os.PathLike[str]


@contextmanager
def replacing(path: PathLike) -> Iterator[Path]:
    """Yield a temporary path next to ``path``. The file written there replaces ``path`` at the end.

    After an error, the temporary file is removed, and ``path`` is as it was.

    Raises
    ------
    OutputError
        ``path`` cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid.uuid4().hex[:12]}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        if not path.parent.is_dir():
            raise OutputError(f"cannot write '{path}': there is no folder '{path.parent}'") from None
        raise OutputError(f"cannot write '{path}': {error.strerror or error}") from None
    finally:
        if path.parent.is_dir():
            temporary.unlink(missing_ok=True)


def check_writable(path: PathLike, endings: Collection[str]) -> None:
    """Raise OutputError unless ``path`` has one of the endings and its folder can be written; writes nothing."""
    path = Path(path)
    if path.suffix not in endings:
        raise OutputError(f"cannot write '{path}': its name must end in {' or '.join(sorted(endings))}")
    if path.is_dir():
        raise OutputError(f"cannot write '{path}': it is a folder")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write '{path}': there is no folder '{path.parent}'")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"cannot write '{path}': no permission for the folder '{path.parent}'")
