"""``morpheo build-proxy``: the way from image builds to package mirrors."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from morpheo.config import Settings
from morpheo.errors import SettingsError
from morpheo.logs import configure
from morpheo.proxy import serve


@click.command()
@click.option("--socket", type=click.Path(path_type=Path), help="Where to listen; MORPHEO_BUILD_PROXY by default.")
def build_proxy(socket: Path | None) -> None:
    """Carry requests of image builds to package mirrors, and log each with its job.

    Builds reach the hosts of MORPHEO_BUILD_HOSTS, on ports 80 and 443, at public addresses only. Start it where it
    reaches these and nothing that should not be reached, and where its socket's folder is seen by the container engine.
    """
    settings = Settings.from_env()
    path = socket or Path(settings.build_proxy)
    if not path.is_absolute():
        raise SettingsError("set MORPHEO_BUILD_PROXY to the path of a Unix socket, or give --socket one")
    configure(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    asyncio.run(serve(path, settings.build_hosts))
