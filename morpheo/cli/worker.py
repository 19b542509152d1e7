"""``morpheo worker``: Celery workers with the right queues, names and pools."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

import click

from morpheo.cli.common import err
from morpheo.cli.supervisor import supervise
from morpheo.config import PREFIX, Settings
from morpheo.errors import Unavailable
from morpheo.models import JobKind
from morpheo.queues import GPU_TAG, consumed

_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600}


class DurationType(click.ParamType[float]):
    """A duration on the command line: seconds, or a number with the unit s, m or h."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds, or complain."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", str(value))
        if match is None:
            self.fail(f"{value!r} is not a duration such as 90, 90s, 20m or 2h", param, ctx)
        return float(match[1]) * _UNITS_S[match[2]]


_DURATION = DurationType()


@click.command()
@click.option("--queues", help="Jobs to take, comma-separated: learn, predict, and tags that this machine has.")
@click.option("--learn-parallelism", type=int, help="Learn jobs to run at once; 0 is none ever.")
@click.option("--predict-parallelism", type=int, help="Predict jobs to run at once; 0 is none ever.")
@click.option("--learn-timeout", "learn_timeout_s", type=_DURATION, help="For each container of a learn job.")
@click.option("--predict-timeout", "predict_timeout_s", type=_DURATION, help="For the container of a predict job.")
@click.option("--engine-timeout", "engine_timeout_s", type=_DURATION, help="For one call to the container engine.")
@click.option("--submitter", help="User whose algos alone this worker runs.")
@click.option("--name", help="Name of this worker among all; the host's by default.")
def worker(name: str | None, **options: str | float | None) -> None:
    """Run jobs on this machine: one Celery node for each kind of job.

    Options override settings (`morpheo config`): MORPHEO_QUEUES, MORPHEO_LEARN_PARALLELISM and so on. To join a
    stack, a worker needs four: where its broker, database, blob store (S3) and container engine are.
    """
    os.environ.update({PREFIX + key.upper(): str(value) for key, value in options.items() if value is not None})
    os.environ.setdefault("REMAP_SIGTERM", "SIGQUIT")  # told to stop, a node gives its jobs back
    settings = Settings.from_env()
    commands = node_commands(settings, name or "%h")
    if not commands:
        raise click.UsageError("nothing to do: the parallelism is 0 for every kind of job that the queues name")
    if GPU_TAG in settings.queues and not settings.gpus:
        err.print("[yellow]jobs with the tag gpu are taken, but their containers get none; set MORPHEO_GPUS[/]")
    _check_services()
    if len(commands) > 1:
        sys.exit(supervise(commands))
    (command,) = commands.values()
    os.execv(command[0], command)  # noqa: S606 - signals then reach Celery itself


def node_commands(settings: Settings, name: str) -> dict[str, list[str]]:
    """Return the command of each Celery node of a worker, by the node's name; ``%h`` is the host."""
    parallelism = {JobKind.LEARN: settings.learn_parallelism, JobKind.PREDICT: settings.predict_parallelism}
    # What nodes would tell each other is of no use here, and makes each of them wait at its start and after outages.
    celery = [sys.executable, "-m", "celery", "-A", "morpheo", "worker", "--without-mingle", "--without-gossip"]
    return {
        f"{kind}@{name}": [
            *celery,
            f"--hostname={kind}@{name}",
            f"--queues={','.join(queues)}",
            f"--concurrency={parallelism[kind]}",
        ]
        for kind, queues in consumed(settings.queues, settings.submitter).items()
        if queues and parallelism[kind]
    }


def _check_services() -> None:
    from morpheo.tasks import process_resources  # noqa: PLC0415 - after the options have become settings
    from morpheo.tasks.publisher import connected  # noqa: PLC0415

    resources = process_resources()
    with connected():
        pass
    for check, setting in ((resources.database.check, "DATABASE_URL"), (resources.blobs.check, "S3_ENDPOINT")):
        try:
            check()
        except Unavailable as exc:
            raise type(exc)(f"{exc}; is {PREFIX}{setting} right?") from exc
    for engine in resources.engines:
        engine.check()
