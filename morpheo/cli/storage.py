"""Commands for artifacts."""

from __future__ import annotations

import tempfile
from pathlib import Path
from uuid import UUID

import click
from rich.table import Table

from morpheo.cli.common import UUID_TYPE, json_option, out, print_json, shown_bytes, storage_client, transfer
from morpheo.models import ArtifactKind
from morpheo.packing import pack_folder
from morpheo.runtime.archive import pack

_KIND = click.Choice([kind.value for kind in ArtifactKind])


@click.command()
@click.argument("kind", type=_KIND)
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--id", "artifact_id", type=UUID_TYPE, help="The id it gets; one is made up by default.")
@click.option("--name", help="Of a problem or algo; the file's name by default.")
@click.option("--description", help="Of a problem.")
@click.option("--algo", type=UUID_TYPE, help="The algo that made a model.")
@json_option
def upload(
    kind: str,
    path: Path,
    artifact_id: UUID | None,
    name: str | None,
    description: str | None,
    algo: UUID | None,
    as_json: bool,
) -> None:
    """Store a file. A folder (of a problem, algo or model) is packed into a .tar.gz first.

    What the .dockerignore of a problem or an algo names is left out.
    """
    chosen = ArtifactKind(kind)
    if chosen in (ArtifactKind.PROBLEM, ArtifactKind.ALGO):
        name = name or path.resolve().name
    if chosen is ArtifactKind.PROBLEM:
        description = description or name
    with tempfile.TemporaryDirectory() as folder:
        file = _packed(chosen, path, Path(folder) / "packed.tar.gz") if path.is_dir() else path
        with transfer(f"uploading {path.name}", file.stat().st_size) as progress:
            stored = storage_client().upload(
                chosen, file, id=artifact_id, name=name, description=description, algo=algo, progress=progress
            )
    if as_json:
        print_json(stored)
    else:
        out.print(f"{stored.kind} {stored.id} ({shown_bytes(stored.size_bytes)})")


def _packed(kind: ArtifactKind, folder: Path, target: Path) -> Path:
    with target.open("wb") as file:
        if kind is ArtifactKind.MODEL:
            pack(folder, [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()], file)
        else:
            pack_folder(folder, file)
    return target


@click.command()
@click.argument("kind", type=_KIND)
@click.argument("artifact_id", type=UUID_TYPE)
@click.argument("target", type=click.Path(path_type=Path))
def download(kind: str, artifact_id: UUID, target: Path) -> None:
    """Write the blob of an artifact to a file."""
    client = storage_client()
    size = client.get(ArtifactKind(kind), artifact_id).size_bytes
    with transfer(f"downloading {target.name}", size) as progress:
        client.download(ArtifactKind(kind), artifact_id, target, progress=progress)
    out.print(f"{target} ({shown_bytes(size)})")


@click.command()
@click.argument("kind", type=_KIND)
@click.option("--name", help="Only those whose name holds this.")
@json_option
def ls(kind: str, name: str | None, as_json: bool) -> None:
    """List artifacts, newest first."""
    items = list(storage_client().list(ArtifactKind(kind), name=name))
    if as_json:
        print_json(items)
        return
    table = Table("id", "name", "size", "stored at")
    for item in items:
        table.add_row(
            str(item.id), item.name or "-", shown_bytes(item.size_bytes), f"{item.created_at:%Y-%m-%d %H:%M:%S} UTC"
        )
    out.print(table)
