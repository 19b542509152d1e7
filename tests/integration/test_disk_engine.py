"""A real container engine whose own disk, of 200 MB, is full of images of other jobs."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from morpheo.errors import DiskFull
from morpheo.models import Artifact, ArtifactKind
from morpheo.runtime.contract import Engines, Interrupt, Owner
from morpheo.runtime.docker import DockerRuntime
from morpheo.runtime.workspace import Workspace
from morpheo.steps import StepLog
from morpheo.testing import make_archive, make_learn_spec
from tests.conftest import missing
from tests.contract.test_runtimes import PROFILE
from tests.support.filesystems import fill, small_disk
from tests.support.services import child, wait_until
from tests.support.workbench import Workbench, make_workbench

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]

MIB = 1 << 20


@pytest.fixture(scope="module")
def own_engine() -> Iterator[str]:
    """URL of an engine of this test's own, on a small disk."""
    if shutil.which("dockerd") is None or os.getuid():
        missing("dockerd, or the right to start it,")
    with tempfile.TemporaryDirectory(prefix="morpheo-e-") as name, small_disk(Path(name) / "disk", "size=200m") as disk:
        run = Path(name) / "run"
        run.mkdir()
        command = [
            "dockerd", "--data-root", str(disk), "--exec-root", str(run / "exec"), "--pidfile", str(run / "pid"),
            "--host", f"unix://{run / 'sock'}", "--bridge", "none", "--iptables=false", "--ip6tables=false",
            "--ip-forward=false",
        ]  # fmt: skip
        with child(command, Path(name) / "log"):
            wait_until(lambda: _answers(run / "sock"), timeout_s=120, what="the engine")
            yield f"unix://{run / 'sock'}"


def _answers(path: Path) -> bool:
    # docker-py would leave the socket of a failed try open.
    return (
        path.exists()
        and not subprocess.run(
            ["docker", "-H", f"unix://{path}", "version"], check=False, capture_output=True
        ).returncode
    )


@pytest.fixture
def bench(own_engine: str, sqlite_url: str, tmp_path: Path) -> Workbench:
    bench = make_workbench(sqlite_url, tmp_path / "node", base_images=("scratch",))
    engine = DockerRuntime(own_engine, profile=PROFILE, node="node", timeout_s=60)
    vars(bench.resources).update(engines=Engines(problem=engine, algo=engine))
    return bench


def build(bench: Workbench, size: int) -> Artifact:
    """Build the image of an algo that has a file of random bytes, as a job of its own."""
    files: dict[str, bytes | str] = {
        "Dockerfile": 'FROM scratch\nCOPY big /big\nENTRYPOINT ["/big"]\n',
        "big": os.urandom(size),
    }
    artifact = bench.resources.artifacts.get(
        ArtifactKind.ALGO, bench.store(ArtifactKind.ALGO, make_archive(files), name="a")
    )
    spec = make_learn_spec()
    with bench.database.begin() as work:
        work.jobs.add(spec, algo=None)
        job = work.jobs.claim(spec.id, worker="w", lease_s=60, max_attempts=3)
    assert job is not None
    with (
        Workspace(bench.work_dir, job_id=job.id, attempt=1, owner=os.getuid()) as workspace,
        StepLog(bench.database, bench.blobs, job, log_bytes=1 << 20) as steps,
    ):
        bench.resources.images.image_id(
            artifact,
            owner=Owner(job_id=job.id, attempt=1),
            workspace=workspace,
            steps=steps,
            interrupt=Interrupt(),
        )
    return artifact


def test_images_of_other_jobs_make_room_for_the_next_one(bench: Workbench, own_engine: str) -> None:
    # A build takes three times the size of its file for a while, and then once: it fits alone only.
    first = build(bench, 55 * MIB)
    second = build(bench, 55 * MIB)
    assert [bench.resources.images.has(item) for item in (first, second)] == [False, True]
    bench.resources.images.evict(lambda: False)
    assert [bench.resources.images.has(item) for item in (first, second)] == [False, False]


def test_an_engine_that_is_full_of_something_else_is_the_nodes_fault(bench: Workbench, own_engine: str) -> None:
    root = bench.resources.engines.algo.facts().data_root
    assert root is not None
    filler = fill(root, leave=2 * MIB)
    try:
        with pytest.raises(DiskFull, match="container engine is full"):
            build(bench, 10 * MIB)
    finally:
        filler.unlink()
    assert bench.resources.images.has(build(bench, 10 * MIB))
