"""The name of this machine."""

from __future__ import annotations

import contextlib
import os
import tempfile
import uuid
from pathlib import Path

from morpheo.errors import DiskFull


def node_id(data_dir: Path) -> str:
    """
    Return the name of the node whose caches are in this folder; made once.

    Raises:
        DiskFull: it cannot be written.
    """
    path = data_dir / "node-id"
    try:
        if not path.exists():
            _write_once(path, uuid.uuid4().hex)
        return path.read_text()
    except OSError as exc:
        text = f"{path} cannot be written: {exc.strerror}; make room there, or set MORPHEO_DATA_DIR to another folder"
        raise DiskFull(text) from exc


def _write_once(path: Path, text: str) -> None:
    """Make a file that nobody ever sees without its content; another process may be faster."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f"{path.name}.") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
        os.fchmod(file.fileno(), 0o644)
        with contextlib.suppress(FileExistsError):
            os.link(file.name, path)
