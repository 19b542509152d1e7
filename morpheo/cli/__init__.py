"""The ``morpheo`` command."""

from __future__ import annotations

import importlib
import os
import pwd
import signal
import sys
from pathlib import Path

import click

from morpheo import __version__
from morpheo.actors import acting_as
from morpheo.cli.common import EXIT_INTERRUPTED, report_errors

#: Where each command is; imported when it is asked for, because the servers' libraries take a second.
COMMANDS = {
    "algo": "morpheo.cli.algos:algo",
    "audit": "morpheo.cli.audit:audit",
    "backup": "morpheo.cli.backup:backup",
    "build-proxy": "morpheo.cli.proxy:build_proxy",
    "compute-api": "morpheo.cli.system:compute_api",
    "config": "morpheo.cli.system:config",
    "data": "morpheo.cli.data:data",
    "demo": "morpheo.cli.demo:demo",
    "dev": "morpheo.cli.dev:dev",
    "doctor": "morpheo.cli.doctor:doctor",
    "download": "morpheo.cli.storage:download",
    "fsck": "morpheo.cli.fsck:fsck",
    "jobs": "morpheo.cli.jobs:jobs",
    "leaderboard": "morpheo.cli.leaderboard:leaderboard",
    "learn": "morpheo.cli.jobs:learn",
    "logs": "morpheo.cli.jobs:logs",
    "ls": "morpheo.cli.storage:ls",
    "migrate": "morpheo.cli.system:migrate",
    "orchestrator-api": "morpheo.cli.system:orchestrator_api",
    "pred": "morpheo.cli.predictions:pred",
    "predict": "morpheo.cli.jobs:predict",
    "problem": "morpheo.cli.problems:problem",
    "restore": "morpheo.cli.backup:restore",
    "retry": "morpheo.cli.algos:retry",
    "storage-api": "morpheo.cli.system:storage_api",
    "submit": "morpheo.cli.submit:submit",
    "token": "morpheo.cli.users:token",
    "try": "morpheo.cli.trial:try_algo",
    "upload": "morpheo.cli.storage:upload",
    "user": "morpheo.cli.users:user",
    "worker": "morpheo.cli.worker:worker",
    "workers": "morpheo.cli.workers:workers",
}

#: What an executable file of this name is when it is given no command (`make all-bin`).
EXECUTABLES = {
    "compute-api": "compute-api",
    "compute-worker": "worker",
    "orchestrator-api": "orchestrator-api",
    "storage-api": "storage-api",
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, None if there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)  # noqa: S101 - for the type checker
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
@click.pass_context
def morpheo(context: click.Context) -> None:
    """Run other people's machine-learning code on private data, in isolated containers.

    Settings come from the environment; `morpheo config` lists them.
    """
    context.with_resource(acting_as(f"cli:{_user()}"))


def main() -> None:
    """Run the command line, and end with one line for an expected error."""
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, _end)
    # The leaderboard's products are small: threads cost them more than they give. Read once, when numpy is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with report_errors():
        try:
            status = morpheo.main(_arguments(Path(sys.argv[0]).name, sys.argv[1:]), "morpheo", standalone_mode=False)
        except click.ClickException as exc:
            exc.show()
            sys.exit(exc.exit_code)
        except click.Abort:
            click.echo("Interrupted.", err=True)
            sys.exit(EXIT_INTERRUPTED)
        sys.exit(status)


def _arguments(executable: str, given: list[str]) -> list[str]:
    if executable in EXECUTABLES and (not given or given[0] not in {*COMMANDS, "--version"}):
        return [EXECUTABLES[executable], *given]
    return given


def _user() -> str:
    """Return who started this process; the system knows, and not the environment, which anybody can set."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user need not have a name
        return str(os.getuid())


def _end(number: int, _frame: object) -> None:
    # By an exception, so that whatever was started is stopped and removed.
    sys.exit(128 + number)
