"""Images for tests: the payload, for a real engine and for the fake one, and a tiny problem and algo."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from morpheo.testing import FakeContainer

PAYLOAD = Path(__file__).parent / "payload.py"
DOCKERFILE = 'FROM morpheo/base:1\nCOPY payload.py /payload.py\nENTRYPOINT ["python3", "-S", "/payload.py"]\n'


def context(files: Mapping[str, str | bytes] | None = None) -> BinaryIO:
    """Return a build context: the payload's, or one with other files."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for name, content in (files or {"Dockerfile": DOCKERFILE, "payload.py": PAYLOAD.read_bytes()}).items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    target.seek(0)
    return target


def run_fake_payload(container: FakeContainer) -> int:
    """Do the payload's operations in the fake runtime."""
    for name, *values in json.loads(container.args[-1]):
        if name == "print":
            container.print(" ".join(values))
        elif name == "write":
            container.write(values[0], values[1].encode())
        elif name == "show":
            container.print(container.path(values[0]).read_text())
        elif name == "sleep":
            container.sleep(values[0])
        elif name == "exit":
            return int(values[0])
    return 0
