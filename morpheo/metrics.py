"""
What Prometheus is told: jobs and steps from the database, bytes and requests from the processes, the disk.

What the database knows is read when it is asked for: exact, the same from every process, not lost by a restart.
What only processes know they count themselves, into files that the processes of one service share.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, values
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from morpheo import __version__
from morpheo.errors import MorpheoError
from morpheo.models import CANCELLED, Cause, JobKind, JobState, StepName
from morpheo.storage.blobs import BlobStore, Source
from morpheo.storage.database import Database
from morpheo.storage.statistics import Statistics

#: How long the database may take to answer, in seconds; Prometheus waits for 10 by default.
DEADLINE_S = 5
#: For how long an answer of the database is good, in seconds: anybody may ask, and often.
FRESH_S = 5
#: The same, as a multiple of the time that the answer took.
FRESH_FACTOR = 20
#: The variable with which the library finds the files that processes share.
_SHARED = "PROMETHEUS_MULTIPROC_DIR"

_counted = CollectorRegistry()
_blob_bytes = Counter(
    "morpheo_blob_bytes",
    "Bytes put into (in) and read from (out) the blob store",
    ("direction", "kind"),
    registry=_counted,
)
request_seconds = Histogram(
    "morpheo_http_request_duration_seconds",
    "Time from the head of a request to the head of its answer",
    ("method", "route", "status"),
    registry=_counted,
)


def share_between_processes() -> None:
    """
    Count, in this process and in those that it starts, into files of a new folder, which goes when this process ends.

    What a process has counted stays counted when it ends, as a counter must.
    """
    folder = tempfile.mkdtemp(prefix="morpheo-metrics-")
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # not in a forked child that ends
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    os.environ[_SHARED] = folder
    values.ValueClass = values.MultiProcessValue()  # type: ignore[no-untyped-call]  # else chosen by the first import


def make_registry(database: Database, data_dir: Path, marks: Mapping[str, Callable[[int], int]]) -> CollectorRegistry:
    """
    Return all metrics of a service, as its processes see them.

    Args:
        database: Of the jobs.
        data_dir: Of this machine.
        marks: Watermarks of its disk by name, as the bytes that stay free of so many.
    """
    registry = CollectorRegistry()
    registry.register(MultiProcessCollector(None) if _SHARED in os.environ else _counted)  # type: ignore[no-untyped-call]
    registry.register(DatabaseCollector(database))
    registry.register(_MachineCollector(data_dir, marks))
    return registry


class DatabaseCollector(Collector):
    """
    Tells what the database knows; if it does not answer, only that.

    Asks from a thread, and never twice at once: a database that hangs costs a scrape its deadline and nothing else.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._answer: Future[Statistics] | None = None
        self._fresh_until = 0.0

    def collect(self) -> Iterator[Metric]:
        """Return the metrics of now, or of a few seconds ago."""
        try:
            statistics = self._read()
        except (MorpheoError, TimeoutError):
            statistics = None
        up = GaugeMetricFamily("morpheo_up", "Whether what this process depends on answers", labels=["check"])
        up.add_metric(["database"], 0 if statistics is None else 1)
        yield up
        if statistics is not None:
            yield from _job_metrics(statistics)
            yield from _queue_metrics(statistics)
            yield from _step_metrics(statistics)
            yield from _report_metrics(statistics)

    def _read(self) -> Statistics:
        with self._lock:
            if self._answer is None or (self._answer.done() and time.monotonic() >= self._fresh_until):
                self._answer = Future()
                threading.Thread(target=self._ask, args=(self._answer,), name="statistics", daemon=True).start()
            answer = self._answer
        return answer.result(DEADLINE_S)

    def _ask(self, answer: Future[Statistics]) -> None:
        began = time.monotonic()
        try:
            with self._database.read() as work:
                statistics = work.statistics.read()
        except Exception as exc:  # noqa: BLE001 - raised where the answer is read
            answer.set_exception(exc)
        else:
            now = time.monotonic()
            self._fresh_until = now + max(FRESH_S, FRESH_FACTOR * (now - began))
            answer.set_result(statistics)


# Every series is there from the start, at 0: Prometheus does not see the first increase of one that appears.


def _job_metrics(statistics: Statistics) -> Iterator[Metric]:
    states = Tally({(state, kind): 0 for state in JobState for kind in JobKind})
    ends = Tally({(state, cause, kind): 0 for state, cause in _ENDS for kind in JobKind})
    failures = Tally(dict.fromkeys(StepName, 0))
    for job in statistics.jobs:
        states[job.state, job.kind] += job.count
        if job.state.is_final:
            ends[job.state, job.cause or "", job.kind] += job.count
        if job.step is not None:
            failures[job.step] += job.count
    jobs = GaugeMetricFamily("morpheo_jobs", "Jobs by the state that they are in", labels=["state", "kind"])
    for (state, kind), count in states.items():
        jobs.add_metric([state, kind], count)
    yield jobs
    ended = CounterMetricFamily("morpheo_job_ends", "Jobs that ended, by cause", labels=["state", "cause", "kind"])
    for (state, cause, kind), count in ends.items():
        ended.add_metric([state, cause, kind], count)
    yield ended
    failed = CounterMetricFamily("morpheo_step_failures", "Jobs that failed, by the step", labels=["step"])
    for step, count in failures.items():
        failed.add_metric([step], count)
    yield failed


_ENDS = (
    (JobState.SUCCEEDED, ""),
    (JobState.CANCELLED, CANCELLED.cause),
    *((JobState.FAILED, cause) for cause in Cause if cause is not CANCELLED.cause),
)


def _queue_metrics(statistics: Statistics) -> Iterator[Metric]:
    queues = {queue.kind: queue for queue in statistics.queues}
    depth = GaugeMetricFamily("morpheo_queue_depth", "Jobs that a worker could take now", labels=["kind"])
    oldest = GaugeMetricFamily(
        "morpheo_queue_oldest_seconds", "For how long the first of them has waited; 0 if there is none", labels=["kind"]
    )
    for kind in JobKind:
        depth.add_metric([kind], queues[kind].depth if kind in queues else 0)
        oldest.add_metric([kind], queues[kind].oldest_s if kind in queues else 0)
    yield depth
    yield oldest


def _step_metrics(statistics: Statistics) -> Iterator[Metric]:
    totals = {total.name: total for total in statistics.steps}
    seconds = SummaryMetricFamily("morpheo_step_seconds", "How long steps took that have ended", labels=["step"])
    for step in StepName:
        total = totals.get(step)
        seconds.add_metric([step], total.count if total else 0, total.seconds if total else 0)
    yield seconds


def _report_metrics(statistics: Statistics) -> Iterator[Metric]:
    meaning = "Reports that an outside orchestrator has not answered"
    yield GaugeMetricFamily("morpheo_reports_pending", meaning, statistics.reports)
    meaning = "Age of the oldest of them; 0 if there is none"
    yield GaugeMetricFamily("morpheo_reports_oldest_seconds", meaning, statistics.oldest_report_s)


class _MachineCollector(Collector):
    def __init__(self, data_dir: Path, marks: Mapping[str, Callable[[int], int]]) -> None:
        self._data_dir = data_dir
        self._marks = marks

    def collect(self) -> Iterator[Metric]:
        build = GaugeMetricFamily("morpheo_build_info", "1, with the version as a label", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        with suppress(OSError):  # an API may have no such folder
            usage = shutil.disk_usage(self._data_dir)
            for name, meaning, count in (
                ("morpheo_disk_free_bytes", "Bytes that can still be written where the folder is", usage.free),
                ("morpheo_disk_total_bytes", "Size of the file system that the folder is on", usage.total),
            ):
                disk = GaugeMetricFamily(name, meaning, labels=["folder"])
                disk.add_metric(["data"], count)
                yield disk
            meaning = "Bytes that stay free: no job starts that could cross high, caches go to low"
            mark = GaugeMetricFamily("morpheo_disk_mark_bytes", meaning, labels=["folder", "mark"])
            for name, free in self._marks.items():
                mark.add_metric(["data", name], free(usage.total))
            yield mark


class MeteredBlobStore:
    """A `morpheo.storage.blobs.BlobStore` that counts the bytes that go through it, piece by piece."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self.stat = blobs.stat
        self.delete = blobs.delete
        self.list = blobs.list
        self.sweep = blobs.sweep
        self.check = blobs.check

    def put(self, key: str, source: Source, *, length: int | None = None) -> int:
        """Store all that the source gives."""
        return self._blobs.put(key, _MeteredSource(source, key), length=length)

    @contextmanager
    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> Iterator[Iterator[bytes]]:
        """Open a blob, or a range of it."""
        with self._blobs.get(key, offset=offset, length=length) as pieces:
            yield _metered(pieces, key)


class _MeteredSource:
    def __init__(self, source: Source, key: str) -> None:
        self._source = source
        self._key = key

    def read(self, size: int = -1, /) -> bytes:
        piece = self._source.read(size)
        _count("in", self._key, len(piece))
        return piece


def _metered(pieces: Iterator[bytes], key: str) -> Iterator[bytes]:
    for piece in pieces:
        _count("out", key, len(piece))
        yield piece


def _count(direction: str, key: str, count: int) -> None:
    with suppress(OSError):  # somebody removed the folder: no reason to lose a blob
        _blob_bytes.labels(direction, key.partition("/")[0]).inc(count)
