"""Cases that apply, once more where containers are held in another way: user namespaces and counting, and gVisor."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker import APIClient

from morpheo.models import Cause, StepName
from tests.conftest import missing
from tests.hostile.conftest import running
from tests.hostile.rig import MIB, Case, HostileEngine, HostileRig
from tests.hostile.test_reading import _LEADS_ELSEWHERE, predictions

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def remapped(engine: APIClient) -> Iterator[HostileRig]:
    """A stack whose engine has user namespaces, and where output folders are counted."""
    if not HostileEngine.can_be_made():
        missing("root or dockerd")
    with running(engine={"userns-remap": "default"}, settings={"OUTPUT_VOLUMES": "false"}) as rig:
        yield rig


@pytest.fixture
def counting(remapped: HostileRig) -> Iterator[HostileRig]:
    """The same as a case finds it. Afterwards P1 to P6 must hold."""
    case = Case(remapped)
    yield remapped
    case.check()


@pytest.fixture(scope="module")
def gvisor(engine: APIClient) -> Iterator[HostileRig]:
    """A stack whose containers run under gVisor."""
    program = shutil.which("runsc")
    if program is None:
        missing("runsc")
    if not HostileEngine.can_be_made():
        missing("root or dockerd")
    runtimes = {"runsc": {"path": program, "runtimeArgs": ["--network=none", "--platform=ptrace"]}}
    # gVisor's own threads and memory count too.
    settings = {"SANDBOX": "runsc", "MEMORY_BYTES": 512 * MIB, "PIDS": 256, "LEARN_TIMEOUT_S": 60}
    with running(engine={"runtimes": runtimes}, settings=settings) as rig:
        yield rig


@pytest.fixture
def sandboxed(gvisor: HostileRig) -> Iterator[HostileRig]:
    """The same as a case finds it. Afterwards P1 to P6 must hold."""
    case = Case(gvisor)
    yield gvisor
    case.check()


def test_31_root_of_a_container_is_nobody_here(counting: HostileRig) -> None:
    """What containers write belongs to ids of their own, and is harvested all the same."""
    spec = counting.learn(train="attempt('map', lambda: open('/proc/self/uid_map').read().split())")
    job = counting.succeeded(spec)
    inside, outside, _ = counting.attempts(spec)["map"]["found"]
    assert (inside, int(outside) > 0) == ("0", True)
    assert job.scores is not None
    assert job.scores.perf == counting.baseline


def test_42_43_what_is_written_is_counted_and_the_program_killed(counting: HostileRig) -> None:
    attacks = {
        "bytes": "for n in range(40): open('/data/model/%d' % n, 'wb').write(os.urandom(1 << 20))\ntime.sleep(30)",
        "files": "for n in range(5000): open('/data/test/pred/%d' % n, 'w').close()\ntime.sleep(30)",
    }
    for job in counting.all_failed(attacks, Cause.OUTPUT_LIMIT).values():
        assert "filled its output folders" in job.failure.message  # type: ignore[union-attr]
        (train,) = (step for step in job.attempts[0].steps if step.name is StepName.TRAIN)
        assert (train.seconds or 0) < 30


def test_42_a_folder_that_cannot_be_counted_hides_nothing(counting: HostileRig) -> None:
    """The worker is root here, and counts it."""
    attack = (
        "os.mkdir('/data/model/x')\nfor n in range(40): open('/data/model/x/%d' % n, 'wb').write(os.urandom(1 << 20))\n"
        "os.chmod('/data/model/x', 0)\ntime.sleep(30)"
    )
    counting.failed(counting.learn(train=attack), Cause.OUTPUT_LIMIT)


def test_gvisor_01_to_29_nothing_is_read_reached_or_gained(sandboxed: HostileRig) -> None:
    core_pattern = Path("/proc/sys/kernel/core_pattern").read_text()
    spec = sandboxed.learn(
        train=f"""
attempt("version", lambda: open("/proc/version").read())
attempt("status", lambda: dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines()))
attempt("environment", lambda: dict(os.environ))
attempt("data", os.listdir, "/data")
attempt("interfaces", os.listdir, "/sys/class/net")
for address in {sandboxed.sink.addresses!r} + ["169.254.169.254"]:
    attempt("tcp " + address, socket.create_connection, (address, {sandboxed.sink.port}), 2)
attempt("write root", lambda: open("/x", "w"))
attempt("write train", lambda: open("/data/train/x", "w"))
attempt("write core_pattern", lambda: open("/proc/sys/kernel/core_pattern", "w").write("|/evil"))
attempt("mount", call, 165, b"none", b"/tmp", b"tmpfs", 0, 0)
attempt("chroot", os.chroot, "/tmp")
def device():
    os.mknod("/tmp/disk", 0o666 | stat.S_IFBLK, os.makedev(8, 0))  # gVisor lets it be made
    return open("/tmp/disk", "rb").read(1)
attempt("device", device)
attempt("setuid", os.setuid, 0)
attempt("bpf", call, 321, 0, 0, 0)
"""
    )
    sandboxed.succeeded(spec)
    found = sandboxed.attempts(spec)
    assert found.pop("version")["found"].startswith("Linux version 4.4.0 ")  # what gVisor says that it is
    status = {name: value.strip() for name, value in found.pop("status")["found"].items()}
    assert {status[name] for name in ("CapEff", "CapBnd")} == {"0" * 16}
    assert status["Uid"].split() == ["10001"] * 4
    assert not [name for name in found.pop("environment")["found"] if name.startswith(("AWS_", "MORPHEO_"))]
    assert sorted(found.pop("data")["found"]) == ["model", "test", "train"]
    assert set(found.pop("interfaces")["found"] or ()) <= {"lo"}
    for name, attempt in found.items():
        assert attempt["error"], (name, attempt)
    assert Path("/proc/sys/kernel/core_pattern").read_text() == core_pattern


def test_gvisor_04_42_48_what_is_written_and_how_long_it_runs_ends_as_without_it(sandboxed: HostileRig) -> None:
    links = {name: predictions(_LEADS_ELSEWHERE[name]) for name in ("link", "virtual", "external")}
    sandboxed.all_failed(links, Cause.BAD_OUTPUT)
    full = "for n in range(40): open('/data/model/%d' % n, 'wb').write(os.urandom(1 << 20))"
    sandboxed.failed(sandboxed.learn(train=full), Cause.OUTPUT_LIMIT)
    honest = sandboxed.learn(train=predictions("honest_hdf5(path, read(path))"))
    job = sandboxed.succeeded(honest)
    assert job.scores is not None
    assert job.scores.perf == sandboxed.baseline
