"""What a Celery worker does: shells around `morpheo.runner` and `morpheo.sweeper`."""

from __future__ import annotations

from morpheo.tasks import worker
from morpheo.tasks.jobs import run_job
from morpheo.tasks.publisher import CeleryPublisher, process_resources

__all__ = ["CeleryPublisher", "process_resources", "run_job", "worker"]
