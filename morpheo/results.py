"""
What an attempt made, put into the blob store.

Its rows are written later, with the end of the attempt (`morpheo.ends`).
"""

from __future__ import annotations

import logging
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from morpheo.artifacts import ArtifactService, Upload
from morpheo.errors import StorageUnavailable
from morpheo.failpoints import failpoint
from morpheo.models import Artifact, Scores
from morpheo.runtime.contract import Interrupt

logger = logging.getLogger(__name__)

#: How long a blob store that is away is waited for, and how often it is tried, in seconds.
STORE_FOR_S = 300.0
STORE_AGAIN_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a job made; the blobs of its artifacts are stored, their rows are not."""

    artifacts: tuple[Artifact, ...]
    scores: Scores | None = None


def store_result(
    artifacts: ArtifactService, upload: Upload, path: Path, *, attempt: int, interrupt: Interrupt
) -> Artifact:
    """
    Store a file as an artifact whose row is written later.

    A store that is away is waited for: what took hours to compute is worth some minutes of this worker.

    Args:
        artifacts: Stores it.
        upload: What it is.
        path: The file.
        attempt: Number of the attempt that made it.
        interrupt: Ends the waiting.

    Raises:
        StorageUnavailable: it could not be stored for `STORE_FOR_S`.
        Interrupted: the interrupt was set meanwhile.
    """
    failpoint("in_upload")
    give_up = time.monotonic() + STORE_FOR_S
    while True:
        # The token is new each time: a zombie of this attempt can overwrite nothing.
        token = f"{attempt}-{secrets.token_hex(8)}"
        try:
            with path.open("rb") as file:
                artifact = artifacts.put_blob(upload, file, length=path.stat().st_size, token=token)
        except StorageUnavailable as exc:
            left_s = give_up - time.monotonic()
            if left_s < 0:
                raise
            logger.warning("the result cannot be stored, and is kept for %.0f s more: %s", left_s, exc)
        else:
            failpoint("after_upload")
            return artifact
        interrupt.check()
        time.sleep(STORE_AGAIN_S)
