"""``morpheo pred``: predict one data file with the best model of a problem."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import click
from rich.status import Status

from morpheo.challenges import Problem
from morpheo.cli.chains import words_of
from morpheo.cli.common import (
    EXIT_JOB_FAILED,
    UUID_TYPE,
    err,
    json_option,
    orchestrator_client,
    print_json,
    remark,
    shown,
    shown_bytes,
    storage_client,
    tell,
)
from morpheo.cli.find import find_problem, problem_option
from morpheo.cli.sources import FILE_OR_ID, Source, uploads
from morpheo.cli.trainings import timeout_option
from morpheo.cli.waiting import leaving, print_end_of_log, wait_until
from morpheo.client import Preduplet
from morpheo.errors import InvalidInput
from morpheo.models import ArtifactKind


@click.command()
@click.argument("data", type=FILE_OR_ID)
@problem_option
@click.option("--model", type=UUID_TYPE, help="Storage id of a model; the best one of the problem by default.")
@click.option(
    "--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="Write the prediction to this new file."
)
@click.option("--force", is_flag=True, help="Write the file even if it exists.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait for the prediction.")
@timeout_option
@json_option
def pred(
    data: Source,
    problem: str,
    model: UUID | None,
    output: Path | None,
    force: bool,
    wait: bool,
    timeout_s: float | None,
    as_json: bool,
) -> None:
    """Predict one data file with the best model of a problem, and print the prediction.

    DATA is a file, or the id of a stored one. The exit status is 3 if the prediction failed.
    """
    if output is not None and not wait:
        raise click.UsageError("--output needs the prediction; leave out --no-wait")
    chosen = find_problem(problem)
    with _reserved(output, force=force):
        ordered = _order(data, chosen, model)
        if wait:
            with leaving("the prediction goes on", f"See it with `morpheo jobs show {ordered.uuid}`"):
                ordered = _wait(ordered.uuid, timeout_s=timeout_s)
        if ordered.status == "failed":
            _fail(ordered, as_json=as_json)
        if output is not None and ordered.prediction_storage_uuid:
            storage_client().download(ArtifactKind.PREDICTION, ordered.prediction_storage_uuid, output)
            remark(f"prediction written to {shown(str(output))}")
    if as_json:
        print_json(ordered)
    elif not wait:
        tell(f"job {ordered.uuid}")
        remark(f"see it with `morpheo jobs show {ordered.uuid}`")
    elif output is None and ordered.prediction_storage_uuid:
        _print(ordered.prediction_storage_uuid)


@contextlib.contextmanager
def _reserved(output: Path | None, *, force: bool) -> Iterator[None]:
    """Make the file before anything is ordered: nobody else's is overwritten, and it can be written."""
    if output is None or force:
        yield
        return
    try:
        output.open("xb").close()
    except FileExistsError:
        raise InvalidInput(f"{output} exists; name another file, or give --force") from None
    except OSError as exc:
        raise InvalidInput(f"{output} cannot be written: {exc.strerror}") from exc
    try:
        yield
    except BaseException:
        output.unlink(missing_ok=True)
        raise


def _order(data: Source, problem: Problem, model: UUID | None) -> Preduplet:
    with uploads() as made:
        (identifier,) = made.data([data])
        made.complete = True
        return orchestrator_client().predict(identifier, problem=problem.id, model=model)


def _wait(job_id: UUID, *, timeout_s: float | None) -> Preduplet:
    words = {"todo": "queued", "pending": "running"}
    orchestrator = orchestrator_client()
    with Status(f"prediction {job_id}", console=err) as status:

        def show(now: Preduplet) -> None:
            status.update(f"prediction {job_id}: {words.get(now.status, now.status)}")

        return wait_until(
            lambda: orchestrator.preduplet(job_id),
            lambda now: now.status in ("done", "failed"),
            show=show,
            timeout_s=timeout_s,
        )


def _fail(ordered: Preduplet, *, as_json: bool) -> None:
    if as_json:
        print_json(ordered)
    remark(f"[red]the prediction failed:[/] {shown(words_of(ordered.failure))}")
    print_end_of_log(ordered.uuid)
    remark(f"try again: morpheo retry {ordered.uuid}")
    sys.exit(EXIT_JOB_FAILED)


def _print(prediction: UUID) -> None:
    content = storage_client().read(ArtifactKind.PREDICTION, prediction)
    if sys.stdout.isatty() and not _is_text(content):
        tell(f"prediction {prediction} is no text ({shown_bytes(len(content))}); write it with --output")
    else:
        click.echo(content, nl=False)


def _is_text(content: bytes) -> bool:
    try:
        return all(letter.isprintable() or letter in "\t\r\n" for letter in content.decode())
    except UnicodeDecodeError:
        return False
