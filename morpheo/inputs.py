"""What an attempt works on: artifacts that are there and whole, put into its workspace."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from uuid import UUID

from morpheo.artifacts import CHANGED, LOST, ArtifactService, check_usable
from morpheo.errors import BadArchive, CorruptBlob, DatabaseUnavailable, NotFound, Quarantined
from morpheo.failpoints import failpoint
from morpheo.failures import failed
from morpheo.models import Artifact, ArtifactKind, Blame, Cause, JobFailed
from morpheo.runtime.archive import ArchiveLimits
from morpheo.runtime.cache import NodeCache
from morpheo.runtime.confined import unpack_confined
from morpheo.runtime.contract import Folder, Interrupt
from morpheo.runtime.workspace import Workspace

#: How long an attempt waits for the database, and the pause before it asks again, in seconds.
PATIENCE_S = 30.0
LOOK_AGAIN_S = 0.5


class Inputs:
    """
    Finds and fetches the artifacts of one attempt.

    Args:
        artifacts: What is stored.
        cache: What this machine has fetched.
        workspace: The attempt's folder.
        interrupt: Stops it from outside.
    """

    def __init__(
        self, artifacts: ArtifactService, cache: NodeCache, *, workspace: Workspace, interrupt: Interrupt
    ) -> None:
        self._artifacts = artifacts
        self._cache = cache
        self._workspace = workspace
        self._interrupt = interrupt
        self._found: dict[tuple[ArtifactKind, UUID], Artifact] = {}

    def find(self, kind: ArtifactKind, artifact_id: UUID) -> Artifact:
        """
        Return an artifact that can be used.

        Raises:
            JobFailed: there is none, or it is in quarantine.
            DatabaseUnavailable: the database did not answer for `PATIENCE_S`.
        """
        if (kind, artifact_id) in self._found:
            return self._found[kind, artifact_id]
        try:
            artifact = self._look_up(kind, artifact_id)
            check_usable(artifact)  # even if this machine has its bytes: another one has not
        except NotFound as exc:
            message = f"{exc}; upload it and order the job again"
            raise failed(Cause.ARTIFACT_NOT_FOUND, Blame.CUSTODIAN, message) from exc
        except Quarantined as exc:
            raise failed(Cause.CORRUPT_ARTIFACT, Blame.INFRASTRUCTURE, f"{exc}, and order the job again") from exc
        self._found[kind, artifact_id] = artifact
        return artifact

    def _look_up(self, kind: ArtifactKind, artifact_id: UUID) -> Artifact:
        # A database that is started again costs no attempt: what was fetched and built so far would be lost.
        give_up = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self._artifacts.get(kind, artifact_id)
            except DatabaseUnavailable:
                if time.monotonic() > give_up:
                    raise
            self._interrupt.check()
            time.sleep(LOOK_AGAIN_S)

    def link(self, artifacts: Iterable[Artifact], folder: Folder) -> None:
        """
        Put files into a folder of the workspace, each under its id.

        Raises:
            JobFailed: a blob is gone or damaged; its artifact is in quarantine now.
            StorageUnavailable: the blob store does not answer.
        """
        for artifact in artifacts:
            self._fetch(artifact, self._workspace[folder] / str(artifact.id))

    def _fetch(self, artifact: Artifact, target: Path) -> None:
        try:
            self._cache.link(artifact, target, self._interrupt)
            failpoint("after_download")
        except (NotFound, CorruptBlob) as exc:
            raise self.damaged(artifact, exc) from exc

    def damaged(self, artifact: Artifact, error: NotFound | CorruptBlob) -> JobFailed:
        """Put an artifact into quarantine whose blob was found so; return what ends the job."""
        self._artifacts.quarantine(artifact, LOST if isinstance(error, NotFound) else CHANGED)
        message = f"the blob of {artifact.kind} {artifact.id} cannot be used: {error}; upload the artifact again"
        return failed(Cause.CORRUPT_ARTIFACT, Blame.INFRASTRUCTURE, f"{message}, and order the job again")

    def unpack_model(self, model: Artifact, limits: ArchiveLimits) -> list[str]:
        """
        Put the files of a model into its folder; return their names.

        Raises:
            JobFailed: its blob is gone or damaged, or its archive breaks a rule.
            StorageUnavailable: the blob store does not answer.
        """
        packed = self._workspace.temporary("model_start.tar.gz")
        self._fetch(model, packed)
        try:
            names = unpack_confined(packed, self._workspace[Folder.MODEL], limits, self._interrupt)
        except BadArchive as exc:
            message = f"the archive of model {model.id}: {exc}; upload it again"
            raise failed(Cause.BAD_ARCHIVE, Blame.SUBMITTER, message) from exc
        packed.unlink()
        return names
