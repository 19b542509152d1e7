"""``morpheo try``: what would fail, before an algo is submitted."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.status import Status

from morpheo.cli.common import EXIT_JOB_FAILED, err, json_option, out, print_json, storage_client
from morpheo.cli.find import find_problem
from morpheo.config import MIB, Settings
from morpheo.errors import ApiUnavailable, NotFound
from morpheo.models import ArtifactKind, Blame
from morpheo.trial.findings import Check, JobFailure, Report, State
from morpheo.trial.home import Home, default_home
from morpheo.trial.run import Inputs, run_trial

_MARKS = {
    State.PASSED: "[green]✓[/]",
    State.FAILED: "[red]✗[/]",
    State.WARNING: "[yellow]![/]",
    State.NOT_REACHED: "[dim]-[/]",
}
_LOG_LINES = 20
_LEAST_MEMORY = 16 * MIB


class SizeType(click.ParamType[int]):
    """A number of bytes on the command line, such as 512M or 2GiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes, or complain."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", str(value).strip().lower())
        if match is None:
            self.fail(f"{value!r} is not a size, such as 512M or 2G", param, ctx)
        size = int(float(match[1]) * 1024 ** " kmgt".index(match[2] or " "))
        if size < _LEAST_MEMORY:
            self.fail(f"{value!r} is less than {_LEAST_MEMORY // MIB}M", param, ctx)
        return size


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("try")
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--problem",
    required=True,
    metavar="P",
    help="Id, beginning of an id, or name of a registered problem, or a folder or .tar.gz.",
)
@click.option("--train", type=_FILE, multiple=True, help="Train on this file instead of the sample's; repeat.")
@click.option("--test", type=_FILE, multiple=True, help="Test on this file instead of the sample's; repeat.")
@click.option("--memory", type=SizeType(), help="Memory of a container, such as 512M; MORPHEO_MEMORY_BYTES by default.")
@click.option("--cpus", type=click.FloatRange(min=0, min_open=True), help="Processors; MORPHEO_CPUS by default.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds that a container may run; MORPHEO_LEARN_TIMEOUT_S and MORPHEO_PREDICT_TIMEOUT_S by default.",
)
@click.option(
    "--keep", is_flag=True, help="Keep the algo's image until the next try: unchanged, it is not built again."
)
@json_option
def try_algo(
    folder: Path,
    problem: str,
    train: tuple[Path, ...],
    test: tuple[Path, ...],
    memory: int | None,
    cpus: float | None,
    timeout: float | None,
    keep: bool,
    as_json: bool,
) -> None:
    """Find out on this machine what would fail if the algo in DIR were submitted.

    Trains, trains again from the model, and predicts, in the same sandbox as a worker, on the sample that the
    problem ships. Needs a container engine (MORPHEO_DOCKER_HOST or DOCKER_HOST). The exit status is 3 if a job
    would fail.
    """
    # The report says what a worker's log would.
    logging.getLogger("morpheo").setLevel(logging.CRITICAL)
    given = {"memory_bytes": memory, "cpus": cpus, "learn_timeout_s": timeout, "predict_timeout_s": timeout}
    settings = Settings.from_env().model_copy(update={name: value for name, value in given.items() if value})
    with _local_problem(problem) as archive, Status("starting", console=err) as status:
        report = run_trial(
            Inputs(algo=folder, problem=archive, train=train, test=test),
            settings,
            home=Home(default_home()),
            on_step=status.update,
            keep_algo=keep,
        )
    if as_json:
        print_json(report)
    else:
        _print(report)
    if not report.passed:
        sys.exit(EXIT_JOB_FAILED)


@contextlib.contextmanager
def _local_problem(problem: str) -> Iterator[Path]:
    """Give a problem's folder or archive, downloaded if it is registered."""
    if Path(problem).exists():
        yield Path(problem)
        return
    try:
        workflow = find_problem(problem).workflow
    except (ApiUnavailable, NotFound) as exc:
        raise type(exc)(f"{problem} is no folder and no .tar.gz here, and as a registered problem: {exc}") from exc
    with tempfile.TemporaryDirectory(prefix="morpheo-try-") as folder:
        archive = Path(folder) / "problem.tar.gz"
        storage_client().download(ArtifactKind.PROBLEM, workflow, archive)
        yield archive


def _print(report: Report) -> None:
    width = max(len(check.name) for check in report.checks)
    for check in report.checks:
        out.print(_line(check, width), highlight=False, soft_wrap=True)
    for failure in report.failures:
        _print_failure(failure)
    verdict = "nothing would fail" if report.passed else "a job with this algo would fail"
    out.print(f"\n{verdict} ({report.seconds:.1f} s)", highlight=False)


def _line(check: Check, width: int) -> str:
    took = "" if check.seconds is None else f"{check.seconds:.1f} s"
    return f"{_MARKS[check.state]} {check.name:<{width}}  {took:>7}  {escape(check.detail)}".rstrip()


def _print_failure(failure: JobFailure) -> None:
    out.print(f"\n[bold]{failure.job}[/]: {failure.cause}", highlight=False)
    out.print(failure.message, markup=False, highlight=False, soft_wrap=True)
    if tail := "\n".join(failure.log.strip().splitlines()[-_LOG_LINES:]):
        out.print(f"The end of its log:\n{tail}", markup=False, highlight=False, soft_wrap=True)
    if failure.blame is Blame.PROBLEM:
        out.print("If your algo did what the problem asks for, tell its custodian.", highlight=False)
