"""The items of a trial: those that the problem's archive ships, or the person's own."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from morpheo.artifacts import ArtifactService, Upload
from morpheo.errors import BadArchive, InvalidInput
from morpheo.models import ArtifactKind
from morpheo.runtime.archive import ArchiveLimits, ArchiveReader
from morpheo.storage.blobs import Source

FOLDER = "sample"
#: Namespace of the ids that items get: the same file has the same id in each trial.
_IDS = UUID("2b6f3a50-6a3c-4f0c-8d3f-0a6b7b8a9c11")


@dataclass(frozen=True, kw_only=True)
class Item:
    """A data file with its target."""

    #: What containers know it by.
    id: UUID
    #: What the person knows it by.
    name: str


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What an algo is tried on."""

    train: tuple[Item, ...]
    test: tuple[Item, ...]


def store_sample(
    archive: Path, artifacts: ArtifactService, limits: ArchiveLimits, *, train: Iterable[Path], test: Iterable[Path]
) -> Sample:
    """
    Store the items of a trial.

    Args:
        archive: The problem's ``.tar.gz``, with items in ``sample/train`` and ``sample/test``.
        artifacts: Where they are stored.
        limits: What the archive may hold.
        train: Files to take in place of those of ``sample/train``, if there are any.
        test: Files to take in place of those of ``sample/test``.

    Raises:
        BadArchive: the archive cannot be read.
        InvalidInput: there is nothing to train or to test on.
    """
    given = {"train": list(train), "test": list(test)}
    items = {part: [_store_file(artifacts, part, path) for path in paths] for part, paths in given.items()}
    if not all(items.values()):
        for part, found in _store_shipped(archive, artifacts, limits).items():
            items[part] = items[part] or found
    if missing := [part for part, found in items.items() if not found]:
        raise InvalidInput(_nothing(missing))
    return Sample(train=tuple(items["train"]), test=tuple(items["test"]))


def _store_shipped(archive: Path, artifacts: ArtifactService, limits: ArchiveLimits) -> dict[str, list[Item]]:
    found: dict[str, list[Item]] = {"train": [], "test": []}
    try:
        with archive.open("rb") as source:
            reader = ArchiveReader(source, limits)
            for entry in reader:
                folder, _, name = entry.name.removeprefix(f"{FOLDER}/").partition("/")
                if not entry.name.startswith(f"{FOLDER}/") or folder not in found or not name:
                    continue
                if entry.is_folder or entry.link is not None or "/" in name:
                    raise InvalidInput(f"the problem's {entry.name} is no file; {FOLDER}/{folder} must hold files only")
                found[folder].append(_store(artifacts, folder, name, reader, entry.size_bytes))
    except BadArchive as exc:
        raise BadArchive(f"the problem's archive: {exc}") from exc
    return found


def _store_file(artifacts: ArtifactService, part: str, path: Path) -> Item:
    try:
        with path.open("rb") as file:
            return _store(artifacts, part, str(path), file, path.stat().st_size)
    except OSError as exc:
        raise InvalidInput(f"{path}: {exc.strerror}; name a file that can be read") from exc


def _store(artifacts: ArtifactService, part: str, name: str, source: Source, size_bytes: int) -> Item:
    if not size_bytes:
        raise InvalidInput(f"the {part} item {name} is empty; give it content, or take it out")
    item = Item(id=uuid.uuid5(_IDS, f"{part}/{name}"), name=name)
    artifacts.upload(Upload(kind=ArtifactKind.DATA, id=item.id), source, length=size_bytes)
    return item


def _nothing(missing: list[str]) -> str:
    folders = " and ".join(f"{FOLDER}/{part}" for part in missing)
    options = " and ".join(f"--{part} FILE" for part in missing)
    return (
        f"the problem ships no sample: its archive has no file in {folders}. Give items of your own, with their "
        f"targets ({options}), or ask the problem's custodian to add some, made up or free to be shown "
        "(and not named in its .dockerignore)"
    )
