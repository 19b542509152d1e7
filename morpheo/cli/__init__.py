"""The ``morpheo`` command."""

from __future__ import annotations

import click

from morpheo import __version__
from morpheo.cli.common import report_errors
from morpheo.cli.demo import demo
from morpheo.cli.dev import dev
from morpheo.cli.jobs import jobs, learn, predict
from morpheo.cli.storage import download, ls, upload
from morpheo.cli.system import compute_api, config, migrate, storage_api


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def morpheo() -> None:
    """Run other people's machine-learning code on private data, in isolated containers.

    Settings come from the environment; `morpheo config` lists them.
    """


for _command in (
    dev,
    demo,
    upload,
    download,
    ls,
    learn,
    predict,
    jobs,
    config,
    migrate,
    compute_api,
    storage_api,
):
    morpheo.add_command(_command)


def main() -> None:
    """Run the command line, and end with one line for an expected error."""
    with report_errors():
        morpheo()
