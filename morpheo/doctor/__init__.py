"""
``morpheo doctor``: finds what is wrong with a deployment, and says how to put it right.

One module for each subject; its `checks` gives plain `morpheo.doctor.findings.Check` values, which
`morpheo.doctor.findings.examine` runs. Unlike the services, the doctor speaks to servers with their own clients: an
operator needs the cause that a submitter must not see. It changes nothing, apart from what it removes again, and from
a folder and a bucket that the services would make too.
"""

from __future__ import annotations

from morpheo.config import Settings
from morpheo.doctor import blobs, broker, confinement, database, engine, node
from morpheo.doctor.findings import Check

#: Other names of subjects, after what they are made of.
ALIASES = {
    "redis": "broker",
    "rabbitmq": "broker",
    "sql": "database",
    "sqlite": "database",
    "postgresql": "database",
    "s3": "blobs",
}


def subjects(settings: Settings) -> dict[str, list[Check]]:
    """Return the checks of each subject, in the order in which they depend on each other."""
    url = settings.engine_url
    engines = {"engine": [*engine.checks(url, settings), *confinement.checks(url, settings, sanitizes=True)]}
    if url := settings.algo_docker_host:
        name = "algo-engine"
        engines[name] = [
            *engine.checks(url, settings, name=name, setting="MORPHEO_ALGO_DOCKER_HOST"),
            *confinement.checks(url, settings, name=name, sanitizes=False),
        ]
    return engines | {
        "broker": broker.checks(settings),
        "database": database.checks(settings),
        "blobs": blobs.checks(settings),
        "node": node.checks(settings),
    }
