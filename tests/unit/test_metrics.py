"""What Prometheus is told, as its own parser reads it."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from morpheo import metrics
from morpheo.errors import DatabaseUnavailable, InvalidInput
from morpheo.metrics import DatabaseCollector, MeteredBlobStore, make_registry
from morpheo.models import Cause, JobKind, JobState, StepName
from morpheo.storage.database import Database
from morpheo.storage.statistics import JobCount, QueueCount, Statistics, StepTotal
from morpheo.testing import BrokenSource, MemoryBlobStore
from tests.support.prometheus import parse

STATISTICS = Statistics(
    jobs=(
        JobCount(kind=JobKind.LEARN, state=JobState.SUCCEEDED, cause=None, step=None, count=5),
        JobCount(kind=JobKind.LEARN, state=JobState.RUNNING, cause=None, step=None, count=1),
        JobCount(kind=JobKind.LEARN, state=JobState.FAILED, cause=Cause.EXIT_CODE, step=StepName.TRAIN, count=2),
        JobCount(kind=JobKind.LEARN, state=JobState.FAILED, cause=Cause.EXIT_CODE, step=StepName.PERF, count=3),
        JobCount(kind=JobKind.PREDICT, state=JobState.FAILED, cause=Cause.WORKER_LOST, step=None, count=4),
        JobCount(kind=JobKind.PREDICT, state=JobState.CANCELLED, cause=Cause.CANCELLED, step=None, count=6),
    ),
    queues=(QueueCount(kind=JobKind.PREDICT, depth=7, oldest_s=1.5),),
    steps=(StepTotal(name=StepName.TRAIN, count=8, seconds=9.5),),
    reports=10,
    oldest_report_s=11.5,
)


def fake_database(read: Callable[[], Statistics]) -> Database:
    @contextmanager
    def unit_of_work() -> Iterator[Any]:
        yield SimpleNamespace(statistics=SimpleNamespace(read=read))

    return cast(Database, SimpleNamespace(read=unit_of_work))


def shown(collector: DatabaseCollector) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(collector)
    return parse(generate_latest(registry).decode())


def test_jobs_are_shown_by_state_cause_and_kind() -> None:
    seen = shown(DatabaseCollector(fake_database(lambda: STATISTICS)))
    assert seen["morpheo_up{check=database}"] == 1
    assert seen["morpheo_jobs{kind=learn,state=failed}"] == 5
    assert seen["morpheo_jobs{kind=learn,state=running}"] == 1
    assert seen["morpheo_jobs{kind=predict,state=waiting}"] == 0
    assert seen["morpheo_job_ends_total{cause=,kind=learn,state=succeeded}"] == 5
    assert seen["morpheo_job_ends_total{cause=EXIT_CODE,kind=learn,state=failed}"] == 5
    assert seen["morpheo_job_ends_total{cause=WORKER_LOST,kind=predict,state=failed}"] == 4
    assert seen["morpheo_job_ends_total{cause=CANCELLED,kind=predict,state=cancelled}"] == 6
    assert seen["morpheo_step_failures_total{step=train}"] == 2
    assert seen["morpheo_queue_depth{kind=predict}"] == 7
    assert seen["morpheo_queue_oldest_seconds{kind=predict}"] == 1.5
    assert seen["morpheo_queue_depth{kind=learn}"] == 0
    assert seen["morpheo_step_seconds_sum{step=train}"] == 9.5
    assert seen["morpheo_step_seconds_count{step=train}"] == 8
    assert seen["morpheo_reports_pending"] == 10
    assert seen["morpheo_reports_oldest_seconds"] == 11.5


def test_every_series_is_there_before_anything_has_happened() -> None:
    empty = shown(DatabaseCollector(fake_database(Statistics)))
    assert empty.keys() == shown(DatabaseCollector(fake_database(lambda: STATISTICS))).keys()
    assert {value for name, value in empty.items() if not name.startswith("morpheo_up")} == {0}
    assert sum(name.startswith("morpheo_job_ends_total") for name in empty) == 2 * (1 + len(Cause))


def test_a_database_that_is_down_is_said_to_be() -> None:
    def read() -> Statistics:
        raise DatabaseUnavailable

    assert shown(DatabaseCollector(fake_database(read))) == {"morpheo_up{check=database}": 0}


def test_a_database_that_hangs_is_asked_once_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "DEADLINE_S", 0.05)
    go, asked = threading.Event(), []

    def read() -> Statistics:
        asked.append(1)
        go.wait(20)
        return STATISTICS

    collector = DatabaseCollector(fake_database(read))
    for _ in range(3):
        assert shown(collector) == {"morpheo_up{check=database}": 0}
    assert len(asked) == 1
    monkeypatch.setattr(metrics, "DEADLINE_S", 20)
    go.set()
    assert shown(collector)["morpheo_up{check=database}"] == 1


def test_many_scrapes_are_one_query(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def read() -> Statistics:
        asked.append(1)
        return STATISTICS

    collector = DatabaseCollector(fake_database(read))
    for _ in range(5):
        shown(collector)
    assert len(asked) == 1
    monkeypatch.setattr(collector, "_fresh_until", 0.0)
    shown(collector)
    assert len(asked) == 2


def test_the_disk_and_the_version_are_shown_whatever_the_database_does(tmp_path: Path) -> None:
    def read() -> Statistics:
        raise DatabaseUnavailable

    seen = parse(
        generate_latest(make_registry(fake_database(read), tmp_path, {"high": lambda total: total // 10})).decode()
    )
    assert 0 < seen["morpheo_disk_free_bytes{folder=data}"] <= seen["morpheo_disk_total_bytes{folder=data}"]
    total = seen["morpheo_disk_total_bytes{folder=data}"]
    assert seen["morpheo_disk_mark_bytes{folder=data,mark=high}"] == total // 10
    assert any(name.startswith("morpheo_build_info{version=") for name in seen)
    without = parse(generate_latest(make_registry(fake_database(read), tmp_path / "nothing", {})).decode())
    assert not any(name.startswith("morpheo_disk") for name in without)
    assert without["morpheo_up{check=database}"] == 0


def moved(direction: str, kind: str) -> float:
    registry = make_registry(fake_database(Statistics), Path("/"), {})
    return registry.get_sample_value("morpheo_blob_bytes_total", {"direction": direction, "kind": kind}) or 0


def test_bytes_are_counted_on_their_way_in_and_out() -> None:
    blobs = MeteredBlobStore(MemoryBlobStore())
    stored, read = moved("in", "model"), moved("out", "model")
    assert blobs.put("model/1/a", io.BytesIO(b"x" * 1000), length=1000) == 1000
    with blobs.get("model/1/a", offset=900) as pieces:
        assert b"".join(pieces) == b"x" * 100
    assert (moved("in", "model") - stored, moved("out", "model") - read) == (1000, 100)
    assert blobs.stat("model/1/a").size_bytes == 1000


def test_a_metered_upload_that_breaks_breaks() -> None:
    blobs = MeteredBlobStore(MemoryBlobStore())
    with pytest.raises(InvalidInput):
        blobs.put("model/1/b", BrokenSource(b"x" * 10, InvalidInput("cut")))
    assert list(blobs.list()) == []


#: A service of three processes, each of which counts; the last is replaced, as one that was killed is.
SERVICE = """
import io, multiprocessing, sys
from pathlib import Path
from prometheus_client import generate_latest
from morpheo import metrics
from morpheo.storage.database import Database
from morpheo.testing import MemoryBlobStore

def work(size):
    metrics.MeteredBlobStore(MemoryBlobStore()).put("data/1/a", io.BytesIO(b"x" * size))

if __name__ == "__main__":
    metrics.share_between_processes()
    for method, size in (("spawn", 10), ("fork", 200), ("spawn", 3000)):
        process = multiprocessing.get_context(method).Process(target=work, args=(size,))
        process.start()
        process.join()
    work(40000)
    registry = metrics.make_registry(Database("sqlite://"), Path("/"), {})
    print(generate_latest(registry).decode())
    print("# folder", __import__("os").environ["PROMETHEUS_MULTIPROC_DIR"])
"""


def test_what_all_processes_of_a_service_counted_is_shown_also_of_those_that_ended(tmp_path: Path) -> None:
    script = tmp_path / "service.py"
    script.write_text(SERVICE)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert parse(done.stdout)["morpheo_blob_bytes_total{direction=in,kind=data}"] == 43210
    folder = Path(done.stdout.split("# folder ")[1].strip())
    assert not folder.exists()


def test_a_folder_that_somebody_removed_costs_no_blob(tmp_path: Path) -> None:
    script = tmp_path / "service.py"
    lines = ["    import os, shutil", '    shutil.rmtree(os.environ["PROMETHEUS_MULTIPROC_DIR"])', "    work(1)"]
    script.write_text(SERVICE.partition("    for method")[0] + "\n".join(lines) + '\n    print("stored")\n')
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert done.stdout == "stored\n"
