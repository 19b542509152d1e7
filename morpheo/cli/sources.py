"""What commands are given to register: files and folders, which are uploaded first, and ids of what is stored."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from uuid import UUID

import click

from morpheo.cli.common import remark, shown, storage_client, transfer
from morpheo.cli.find import exact_id
from morpheo.client import StoredArtifact
from morpheo.errors import ApiError
from morpheo.models import ArtifactKind
from morpheo.packing import pack_folder

Source = Path | UUID


class SourceType(click.ParamType[Source]):
    """
    A path, or the id of something stored.

    Args:
        folders: Whether the path may be a folder.
    """

    name = "file"

    def __init__(self, *, folders: bool = False) -> None:
        self._folders = folders

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Source:
        """Return the path or the id, or complain."""
        if isinstance(value, Path | UUID):
            return value
        if identifier := exact_id(str(value)):
            return identifier
        path = Path(str(value))
        if path.is_dir() and not self._folders:
            self.fail(f"{value!r} is a folder; name its files", param, ctx)
        if not (path.is_file() or path.is_dir()):
            self.fail(f"{value!r} is neither a file nor the id of something stored", param, ctx)
        if not os.access(path, os.R_OK):
            self.fail(f"{value!r} cannot be read", param, ctx)
        return path


FILE_OR_ID = SourceType()
FOLDER_OR_ID = SourceType(folders=True)


class Uploads:
    """What was uploaded for one registration."""

    def __init__(self) -> None:
        self.done: list[tuple[Path, UUID]] = []
        #: Set before what was uploaded is registered.
        self.complete = False

    def data(self, sources: Sequence[Source]) -> list[UUID]:
        """Return the ids of data, in the order given, after the upload of what is not stored yet."""
        files = [source for source in sources if isinstance(source, Path)]
        stored = iter(
            self._upload(ArtifactKind.DATA, path, path, f"{path.name} ({number} of {len(files)})").id
            for number, path in enumerate(files, start=1)
        )
        return [next(stored) if isinstance(source, Path) else source for source in sources]

    def archive(
        self, kind: ArtifactKind, source: Source, *, name: str | None, description: str | None = None
    ) -> StoredArtifact:
        """Return the stored archive of a problem or algo, after its upload; a folder is packed first."""
        if isinstance(source, UUID):
            return storage_client().get(kind, source)
        name = name or _name(source)
        if kind is ArtifactKind.PROBLEM:
            description = description or name
        with _archive(source) as file:
            return self._upload(kind, source, file, source.name, name=name, description=description)

    def _upload(
        self,
        kind: ArtifactKind,
        source: Path,
        file: Path,
        label: str,
        *,
        name: str | None = None,
        description: str | None = None,
    ) -> StoredArtifact:
        with transfer(f"uploading {shown(label)}", file.stat().st_size) as progress:
            stored = storage_client().upload(kind, file, name=name, description=description, progress=progress)
        self.done.append((source, stored.id))
        return stored


@contextlib.contextmanager
def uploads() -> Iterator[Uploads]:
    """Collect what is uploaded; if the rest fails, say what was, so that it can be used by its id."""
    made = Uploads()
    try:
        yield made
    except BaseException as exc:
        for path, identifier in made.done:
            remark(f"uploaded {shown(str(path))} as {identifier}")
        if made.done:
            refused = not made.complete or (isinstance(exc, ApiError) and exc.status < HTTPStatus.INTERNAL_SERVER_ERROR)
            state = "nothing was registered" if refused else "whether this was registered is not known"
            remark(f"{state}; to try again, give these ids in place of the files")
        raise


def _name(path: Path) -> str:
    """Return what an archive is called if nobody says."""
    name = path.resolve().name
    for ending in (".tar.gz", ".tgz"):
        name = name.removesuffix(ending)
    return name


@contextlib.contextmanager
def _archive(path: Path) -> Iterator[Path]:
    """Give the archive that a file is, or that a folder is packed into."""
    if not path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="morpheo-") as folder:
        packed = Path(folder) / "packed.tar.gz"
        with packed.open("wb") as file:
            pack_folder(path, file)
        yield packed
