"""What every container runtime does: the fake one and the real engine."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import pytest
from docker import APIClient

from morpheo.errors import DiskFull, Interrupted, RuntimeUnavailable
from morpheo.models import StepName
from morpheo.runtime.contract import (
    UNCHECKED,
    Bind,
    BuildResult,
    BuildSpec,
    ContainerRuntime,
    ContainerSpec,
    Image,
    Interrupt,
    Owner,
    Profile,
    StepResult,
    unchecked_tag,
)
from morpheo.runtime.docker import DockerRuntime
from morpheo.runtime.log import BoundedLog
from morpheo.runtime.profile import create_arguments
from morpheo.testing import FakeRuntime
from tests.support.images import context, run_fake_payload
from tests.support.proxies import Outage, engine_outage
from tests.support.services import engine_url

PROFILE = Profile(
    user=10001,
    memory_bytes=128 << 20,
    cpus=1.0,
    pids=32,
    tmp_bytes=16 << 20,
    log_bytes=64 << 10,
    file_bytes=8 << 20,
)
#: Nothing here takes longer, whatever the machine.
LONG_S = 60.0


@dataclass
class Bench:
    """A runtime, and an image that does what it is told."""

    runtime: ContainerRuntime
    image_id: str
    owner: Owner = field(default_factory=lambda: Owner(job_id=uuid4(), attempt=1, worker="tests"))
    interrupt: Interrupt = field(default_factory=Interrupt)

    def spec(self, *operations: list[Any], timeout_s: float = LONG_S, binds: tuple[Bind, ...] = ()) -> ContainerSpec:
        return ContainerSpec(
            owner=self.owner,
            step=StepName.TRAIN,
            image_id=self.image_id,
            args=(json.dumps(operations),),
            binds=binds,
            timeout_s=timeout_s,
        )

    def run(self, *operations: list[Any], timeout_s: float = LONG_S, binds: tuple[Bind, ...] = ()) -> StepResult:
        return self.runtime.run(self.spec(*operations, timeout_s=timeout_s, binds=binds), interrupt=self.interrupt)

    def build(self, files: dict[str, str], *, timeout_s: float = LONG_S, log: BoundedLog | None = None) -> BuildResult:
        spec = BuildSpec(owner=self.owner, tag=f"morpheo/test:{uuid4().hex}", timeout_s=timeout_s)
        return self.runtime.build(context(files), spec, interrupt=self.interrupt, log=log)


@pytest.fixture(scope="session")
def docker_runtime(engine: APIClient) -> DockerRuntime:
    return DockerRuntime(engine_url(), profile=PROFILE, node=uuid4().hex, timeout_s=60)


@pytest.fixture(scope="session")
def docker_image(docker_runtime: DockerRuntime) -> Iterator[str]:
    spec = BuildSpec(owner=Owner(job_id=uuid4(), attempt=1), tag=f"morpheo/test:{uuid4().hex}", timeout_s=LONG_S)
    image_id = docker_runtime.build(context(), spec, interrupt=Interrupt()).image_id
    assert image_id is not None
    yield image_id
    docker_runtime.remove_image(image_id)


@pytest.fixture
def docker_bench(docker_runtime: DockerRuntime, docker_image: str) -> Bench:
    return Bench(docker_runtime, docker_image)


def fake_bench() -> Bench:
    runtime = FakeRuntime({"/payload.py": run_fake_payload})
    spec = BuildSpec(owner=Owner(job_id=uuid4(), attempt=1), tag="morpheo/test:payload", timeout_s=LONG_S)
    image_id = runtime.build(context(), spec, interrupt=Interrupt()).image_id
    assert image_id is not None
    return Bench(runtime, image_id)


@pytest.fixture(params=["fake", pytest.param("docker", marks=pytest.mark.docker)])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Each runtime; nothing may be left of the test's attempt."""
    made: Bench = fake_bench() if request.param == "fake" else request.getfixturevalue("docker_bench")
    yield made
    assert made.owner.job_id not in {owner.job_id for owner in made.runtime.owners()}


def test_an_image_that_nobody_looked_at_goes_with_its_attempt(bench: Bench) -> None:
    tag = unchecked_tag(bench.owner, Image.ALGO)
    dockerfile = "FROM scratch\nCOPY Dockerfile /\n"
    spec = BuildSpec(owner=bench.owner, tag=tag, timeout_s=LONG_S)
    bench.runtime.build(context({"Dockerfile": dockerfile}), spec, interrupt=bench.interrupt)
    other = replace(bench.owner, attempt=bench.owner.attempt + 1)
    bench.runtime.remove(other)
    assert bench.runtime.find_image(tag) is not None
    assert (bench.owner.job_id, bench.owner.attempt) in [(item.job_id, item.attempt) for item in bench.runtime.owners()]
    bench.runtime.remove(bench.owner)
    assert bench.runtime.find_image(tag) is None


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A folder that containers may write to."""
    folder = tmp_path / "out"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


def test_a_container_that_ends_well_gives_its_log_and_its_duration(bench: Bench) -> None:
    result = bench.run(["print", "hello"])
    assert (result.exit_code, result.log, result.timed_out, result.oom_killed) == (0, b"hello\n", False, False)
    assert 0 < result.seconds < LONG_S


def test_a_failing_container_is_a_result_and_not_an_error(bench: Bench) -> None:
    result = bench.run(["print", "about to fail"], ["exit", 3])
    assert result.exit_code == 3
    assert result.log == b"about to fail\n"


def test_outputs_are_written_and_inputs_are_read(bench: Bench, output: Path, tmp_path: Path) -> None:
    given = tmp_path / "in"
    given.mkdir()
    (given / "a").write_text("from outside")
    binds = (Bind(source=given, target="/in"), Bind(source=output, target="/out", writable=True))
    result = bench.run(["show", "/in/a"], ["write", "/out/b", "from inside"], binds=binds)
    assert result.exit_code == 0, result.log
    assert result.log == b"from outside\n"
    assert (output / "b").read_text() == "from inside"


def test_inputs_cannot_be_changed(bench: Bench, output: Path) -> None:
    result = bench.run(["write", "/in/a", "changed"], binds=(Bind(source=output, target="/in"),))
    assert result.exit_code == 1
    assert b"ead-only file system" in result.log
    assert list(output.iterdir()) == []


def test_a_container_is_killed_at_its_deadline(bench: Bench) -> None:
    began = time.monotonic()
    result = bench.run(["print", "still here"], ["sleep", LONG_S], timeout_s=10.0)
    assert result.timed_out
    assert result.exit_code == 137
    assert result.log == b"still here\n"
    assert time.monotonic() - began < LONG_S


def test_an_interrupt_kills_the_container(bench: Bench) -> None:
    timer = threading.Timer(0.5, bench.interrupt.set, ["cancelled"])
    timer.start()
    began = time.monotonic()
    with pytest.raises(Interrupted, match="cancelled"):
        bench.run(["sleep", LONG_S])
    timer.join()
    assert time.monotonic() - began < LONG_S


def test_nothing_starts_after_an_interrupt(bench: Bench, output: Path) -> None:
    bench.interrupt.set("cancelled")
    with pytest.raises(Interrupted):
        bench.run(["write", "/out/a", "x"], binds=(Bind(source=output, target="/out", writable=True),))
    assert list(output.iterdir()) == []


def test_the_same_step_can_run_again(bench: Bench) -> None:
    assert [bench.run(["exit", code]).exit_code for code in (0, 1, 0)] == [0, 1, 0]


def test_running_containers_are_known_by_their_attempt_and_can_be_removed(bench: Bench) -> None:
    thread = _in_background(bench)
    known = Owner(job_id=bench.owner.job_id, attempt=1)
    _wait_until(lambda: any(owner.job_id == known.job_id for owner in bench.runtime.owners()))
    bench.runtime.remove(Owner(job_id=known.job_id, attempt=2))
    assert known.job_id in {owner.job_id for owner in bench.runtime.owners()}
    bench.interrupt.set("removed by the test")  # a removed container has no result to give
    bench.runtime.remove(known)
    bench.runtime.remove(known)
    thread.join(LONG_S)
    assert not thread.is_alive()


def test_a_built_image_is_found_by_its_tag(bench: Bench) -> None:
    result = bench.build({"Dockerfile": 'FROM morpheo/base:1\nENTRYPOINT ["/payload.py"]\n'})
    assert result.image_id is not None, result.log
    info = bench.runtime.inspect_image(result.image_id)
    assert info.id == result.image_id
    assert info.runs_something
    bench.runtime.remove_image(result.image_id)
    bench.runtime.remove_image(result.image_id)
    assert bench.runtime.find_image("morpheo/test:nowhere") is None


def test_an_image_can_get_another_tag(bench: Bench) -> None:
    result = bench.build({"Dockerfile": 'FROM morpheo/base:1\nENTRYPOINT ["/payload.py"]\n'})
    assert result.image_id is not None
    tag = f"morpheo/test:{uuid4().hex}"
    bench.runtime.retag_image(result.image_id, tag)
    assert bench.runtime.find_image(tag) == result.image_id
    bench.runtime.remove_image(result.image_id)
    assert bench.runtime.find_image(tag) is None


def test_an_image_is_dropped_by_its_tag_and_twice_is_harmless(bench: Bench) -> None:
    spec = BuildSpec(owner=bench.owner, tag=f"morpheo/test:{uuid4().hex}", timeout_s=LONG_S)
    bench.runtime.build(
        context({"Dockerfile": 'FROM morpheo/base:1\nENTRYPOINT ["true"]\n'}), spec, interrupt=Interrupt()
    )
    assert bench.runtime.drop_image(spec.tag)
    assert bench.runtime.find_image(spec.tag) is None
    assert bench.runtime.drop_image(spec.tag)


def test_a_failing_build_is_a_result_with_its_log(bench: Bench) -> None:
    result = bench.build({"Dockerfile": "FROM morpheo/base:1\nRUN false\n"})
    assert result.image_id is None
    assert "non-zero code" in result.error
    assert b"RUN false" in result.log


def test_an_image_whose_program_is_missing_is_a_result(bench: Bench) -> None:
    built = bench.build({"Dockerfile": 'FROM morpheo/base:1\nENTRYPOINT ["/nowhere"]\n'})
    assert built.image_id is not None
    bench.image_id = built.image_id
    result = bench.run()
    assert result.start_error is not None or result.exit_code == 127
    bench.runtime.remove_image(built.image_id)


def _in_background(bench: Bench) -> threading.Thread:
    def run() -> None:
        with pytest.raises(Interrupted):
            bench.run(["sleep", LONG_S])

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 2 * LONG_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _run_with_log(bench: Bench, log: BoundedLog, *operations: list[Any]) -> tuple[threading.Thread, list[StepResult]]:
    results: list[StepResult] = []

    def run() -> None:
        results.append(bench.runtime.run(bench.spec(*operations), interrupt=bench.interrupt, log=log))

    thread = threading.Thread(target=run)
    thread.start()
    return thread, results


def test_what_a_container_writes_can_be_read_while_it_runs(bench: Bench) -> None:
    log = BoundedLog(1 << 20)
    thread, results = _run_with_log(bench, log, ["print", "early"], ["sleep", 5], ["print", "late"])
    _wait_until(lambda: log.text().startswith(b"early\n"))
    assert thread.is_alive()
    thread.join(60)
    assert log.text() == results[0].log == b"early\nlate\n"


def test_what_a_build_says_is_in_its_log(bench: Bench) -> None:
    log = BoundedLog(1 << 20)
    spec = BuildSpec(owner=bench.owner, tag=f"morpheo/test:{uuid4().hex}", timeout_s=LONG_S)
    files = {"Dockerfile": "FROM morpheo/base:1\nRUN false\n"}
    result = bench.runtime.build(context(files), spec, interrupt=bench.interrupt, log=log)
    assert b"RUN false" in log.text()
    assert result.log == log.text()


def test_no_container_is_overdue(bench: Bench) -> None:
    assert bench.runtime.kill_overdue() == 0


# What only a real engine can show.


@pytest.mark.docker
def test_the_profile_holds_inside(docker_bench: Bench) -> None:
    operations: list[list[Any]] = [["status"], ["interfaces"], ["environment"], ["connect", "10.1.2.3", 80]]
    text = docker_bench.run(*operations).log.decode()
    assert "Uid:\t10001\t10001\t10001\t10001" in text
    assert "CapEff:\t0000000000000000" in text
    assert "CapBnd:\t0000000000000000" in text
    assert "NoNewPrivs:\t1" in text
    assert "Seccomp:\t2" in text
    assert "\nlo\n" in text
    assert "refused: Network is unreachable" in text
    environment = json.loads(text[text.index("{") : text.rindex("}") + 1])
    assert set(environment) <= {"HOME", "PATH", "HOSTNAME", "LC_CTYPE"}
    assert environment["HOME"] == "/tmp"
    assert "} /data" in text


@pytest.mark.docker
@pytest.mark.parametrize("path", ["/x", "/etc/x", "/data/x", "/payload.py"])
def test_the_root_file_system_is_read_only(docker_bench: Bench, path: str) -> None:
    assert b"Read-only file system" in docker_bench.run(["write", path, "x"]).log


@pytest.mark.docker
def test_memory_is_limited_and_the_peak_is_known(docker_bench: Bench) -> None:
    result = docker_bench.run(["hog"])
    assert result.oom_killed
    assert result.exit_code == 137
    assert result.peak_memory_bytes == PROFILE.memory_bytes


@pytest.mark.docker
def test_the_peak_memory_of_a_container_that_ends_well_is_sampled(docker_bench: Bench) -> None:
    result = docker_bench.run(["sleep", 3])
    assert result.peak_memory_bytes is not None
    assert 1 << 20 < result.peak_memory_bytes < PROFILE.memory_bytes


@pytest.mark.docker
def test_processes_are_limited(docker_bench: Bench) -> None:
    log = docker_bench.run(["fork"]).log.decode()
    assert 0 < int(log.split()[-1]) < PROFILE.pids


@pytest.mark.docker
def test_the_size_of_a_file_is_limited(docker_bench: Bench, output: Path) -> None:
    result = docker_bench.run(
        ["write", "/out/a", "x" * (100 << 10)],
        ["exit", 0],
        binds=(Bind(source=output, target="/out", writable=True),),
    )
    assert result.exit_code == 0
    built = docker_bench.build(
        {
            "Dockerfile": 'FROM morpheo/base:1\nENTRYPOINT ["dd", "if=/dev/zero", "of=/out/big", "bs=1M", "count=9"]\n',
        }
    )
    assert built.image_id is not None
    docker_bench.image_id = built.image_id
    spec = ContainerSpec(
        owner=docker_bench.owner,
        step=StepName.TRAIN,
        image_id=built.image_id,
        args=(),
        binds=(Bind(source=output, target="/out", writable=True),),
        timeout_s=LONG_S,
    )
    result = docker_bench.runtime.run(spec, interrupt=Interrupt())
    assert result.exit_code in (153, 1)
    assert (output / "big").stat().st_size <= PROFILE.file_bytes
    docker_bench.runtime.remove_image(built.image_id)


@pytest.mark.docker
def test_the_log_is_bounded(docker_bench: Bench) -> None:
    result = docker_bench.run(*[["print", "x" * 10_000] for _ in range(12)])
    assert 0 < len(result.log) <= PROFILE.log_bytes


@pytest.mark.docker
def test_a_log_that_is_longer_than_what_the_engine_keeps_says_so(docker_bench: Bench) -> None:
    log = BoundedLog(1 << 20)
    noise = [["print", "x" * 10_000] for _ in range(11)]  # the engine keeps 64 KiB
    thread, _ = _run_with_log(docker_bench, log, ["print", "first"], ["sleep", 1], *noise, ["print", "last"])
    thread.join(60)
    lines = log.text().decode().splitlines()
    said = [line for line in lines if "missing: the engine" in line or "missing here: the engine" in line]
    kept = [line for line in lines if line not in said]
    whole = ["first", *["x" * 10_000] * len(noise), "last"]
    assert (set(kept) <= set(whole), kept[-1]) == (True, "last")
    # A busy machine may write no faster than it is read, and then nothing is lost.
    assert said or kept == whole


@pytest.mark.docker
def test_long_lines_and_binary_output_survive(docker_bench: Bench) -> None:
    script = "import os, time\nos.write(1, bytes(range(256)) * 150)\ntime.sleep(0.5)\nos.write(2, b'\\0\\xff end')\n"
    dockerfile = 'FROM morpheo/base:1\nCOPY p.py /p.py\nENTRYPOINT ["python3", "-S", "/p.py"]\n'
    built = docker_bench.build({"Dockerfile": dockerfile, "p.py": script})
    assert built.image_id is not None
    docker_bench.image_id = built.image_id
    runtime = DockerRuntime(
        engine_url(), profile=replace(PROFILE, log_bytes=1 << 20), node="tests-binary", timeout_s=60
    )
    result = runtime.run(docker_bench.spec(), interrupt=docker_bench.interrupt)
    # The engine keeps text: what is none has become U+FFFD, in its file already. It reads the two streams apart, so
    # that on a busy machine the one may come before the end of the other.
    assert b"\0\xef\xbf\xbd end" in result.log
    assert result.log.count(b"\0") == 151
    assert result.log.decode().count("ABCDEFGHIJKLMNOPQRSTUVWXYZ") == 150
    docker_bench.runtime.remove_image(built.image_id)
    runtime._client.close()


@pytest.mark.docker
def test_a_container_past_its_deadline_is_killed_whoever_started_it(docker_bench: Bench, engine: APIClient) -> None:
    runtime = docker_bench.runtime
    assert isinstance(runtime, DockerRuntime)
    spec = docker_bench.spec(["sleep", LONG_S], timeout_s=0.1)
    made = engine.create_container(**create_arguments(spec, PROFILE, node=runtime._node))
    engine.start(made["Id"])
    killed = 0
    deadline = time.monotonic() + 30
    while not killed and time.monotonic() < deadline:
        killed = runtime.kill_overdue()
        assert killed or engine.inspect_container(made["Id"])["State"]["Running"]
        time.sleep(0.1)
    assert killed == 1
    assert engine.wait(made["Id"])["StatusCode"] == 137
    assert runtime.kill_overdue() == 0
    runtime.remove(docker_bench.owner)


@pytest.fixture
def outage(docker_bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Bench, Outage]]:
    """A bench whose engine can be out."""
    with tempfile.TemporaryDirectory(prefix="engine-") as folder, engine_outage(Path(folder), engine_url()) as proxy:
        runtime = DockerRuntime(proxy.url, profile=PROFILE, node="tests-outage", timeout_s=60, return_s=20)
        yield replace(docker_bench, runtime=runtime), proxy
        runtime._client.close()


@contextmanager
def out(bench: Bench, engine_is: Outage, *, hangs: bool = False) -> Iterator[None]:
    """Let a bench's engine be out during a block, and the bench be impatient from then on."""
    assert isinstance(bench.runtime, DockerRuntime)
    bench.runtime._client.timeout = 2
    with engine_is.out(hangs=hangs):
        yield


@pytest.mark.docker
def test_a_container_that_outlives_its_engine_is_waited_for_again(outage: tuple[Bench, Outage]) -> None:
    bench, engine_is = outage
    log = BoundedLog(1 << 20)
    thread, results = _run_with_log(bench, log, ["print", "early"], ["sleep", 6.5], ["print", "late"], ["exit", 7])
    _wait_until(lambda: log.text().startswith(b"early\n"))
    with out(bench, engine_is):
        time.sleep(0.5)  # long enough for questions to fail
    thread.join(60)
    assert (results[0].exit_code, results[0].log) == (7, b"early\nlate\n")
    assert 6 <= results[0].seconds < LONG_S


@pytest.mark.docker
def test_a_container_that_ends_while_its_engine_is_out_has_its_result(
    outage: tuple[Bench, Outage], engine: APIClient
) -> None:
    bench, engine_is = outage
    log = BoundedLog(1 << 20)
    thread, results = _run_with_log(bench, log, ["print", "early"], ["sleep", 5.5], ["print", "late"])
    _wait_until(lambda: log.text().startswith(b"early\n"))
    with out(bench, engine_is):
        _wait_until(lambda: not engine.inspect_container(bench.spec().name)["State"]["Running"])
        ended = time.monotonic()
        _wait_until(lambda: time.monotonic() > ended + 1)
    thread.join(60)
    assert (results[0].exit_code, results[0].log, results[0].timed_out) == (0, b"early\nlate\n", False)
    assert 5 <= results[0].seconds < LONG_S


@pytest.mark.docker
def test_a_container_that_was_ended_with_its_engine_is_not_blamed(
    outage: tuple[Bench, Outage], engine: APIClient
) -> None:
    bench, engine_is = outage
    log = BoundedLog(1 << 20)
    with pytest.raises(RuntimeUnavailable, match="ended with it"):  # noqa: SIM117
        with _interfering(log, lambda: _kill_while_out(bench, engine_is, engine)):
            bench.runtime.run(bench.spec(["print", "early"], ["sleep", LONG_S]), interrupt=Interrupt(), log=log)


def _kill_while_out(bench: Bench, engine_is: Outage, engine: APIClient) -> None:
    with out(bench, engine_is):
        engine.kill(bench.spec().name)


@contextmanager
def _interfering(log: BoundedLog, action: Callable[[], None]) -> Iterator[None]:
    """Do something as soon as a container has written."""

    def act() -> None:
        _wait_until(lambda: log.total > 0)
        action()

    thread = threading.Thread(target=act)
    thread.start()
    yield
    thread.join(60)


@pytest.mark.docker
@pytest.mark.parametrize("hangs", [False, True])
def test_an_engine_that_stays_away_is_given_up_and_the_deadline_holds_when_it_is_back(
    outage: tuple[Bench, Outage], engine: APIClient, hangs: bool
) -> None:
    bench, engine_is = outage
    bench.runtime = DockerRuntime(engine_is.url, profile=PROFILE, node="tests-outage", timeout_s=60, return_s=0.5)
    log = BoundedLog(1 << 20)
    spec = bench.spec(["print", "early"], ["sleep", LONG_S], timeout_s=12)
    stack = ExitStack()
    began = time.monotonic()
    with pytest.raises(RuntimeUnavailable, match="no container engine answers"):  # noqa: SIM117
        with _interfering(log, lambda: stack.enter_context(out(bench, engine_is, hangs=hangs))):
            bench.runtime.run(spec, interrupt=Interrupt(), log=log)
    assert time.monotonic() - began < LONG_S
    stack.close()
    # An engine that hung does all that it was asked meanwhile; one that was not there was asked for nothing.
    assert hangs or engine.containers(filters={"name": spec.name})
    bench.runtime._client.close()
    # The impatience was for the outage: an engine that has come back may need longer for an answer.
    bench.runtime = DockerRuntime(engine_is.url, profile=PROFILE, node="tests-outage", timeout_s=60)
    _wait_until(lambda: bench.runtime.kill_overdue() == 1 or not engine.containers(filters={"name": spec.name}))
    bench.runtime.remove(bench.owner)
    bench.runtime._client.close()


@pytest.mark.docker
def test_a_mount_whose_folder_is_missing_is_refused(docker_bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailable) as refused:
        docker_bench.run(binds=(Bind(source=tmp_path / "nowhere", target="/in"),))
    assert str(tmp_path) not in str(refused.value)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.docker
def test_the_engine_is_asked_for_gpus_and_what_it_lacks_is_said(docker_bench: Bench) -> None:
    # No machine that tests this has a GPU: the engine's refusal shows that it was asked.
    runtime = DockerRuntime(engine_url(), profile=replace(PROFILE, gpus="all"), node="tests-gpu", timeout_s=60)
    spec = docker_bench.spec(["print", "x"])
    with pytest.raises(RuntimeUnavailable, match="no driver for GPUs; install the NVIDIA container toolkit"):
        runtime.run(replace(spec, gpu=True), interrupt=docker_bench.interrupt)
    assert runtime.run(spec, interrupt=docker_bench.interrupt).exit_code == 0
    assert runtime.owners() == []
    runtime._client.close()


@pytest.mark.docker
def test_builds_have_no_network(docker_bench: Bench) -> None:
    script = "import socket; socket.create_connection(('10.1.2.3', 80), 2)"
    result = docker_bench.build({"Dockerfile": f'FROM morpheo/base:1\nRUN python3 -c "{script}"\n'})
    assert result.image_id is None
    assert b"Network is unreachable" in result.log


@pytest.mark.docker
def test_a_build_that_hangs_is_stopped_and_leaves_nothing(docker_bench: Bench, engine: APIClient) -> None:
    before = _containers_and_images(engine)
    began = time.monotonic()
    result = docker_bench.build(
        {"Dockerfile": "FROM morpheo/base:1\nENV A=1\nRUN while true; do echo .; sleep 0.2; done\n"}, timeout_s=2
    )
    assert result.timed_out
    assert result.image_id is None
    assert time.monotonic() - began < LONG_S
    _wait_until(lambda: _containers_and_images(engine) == before)


@pytest.mark.docker
def test_an_interrupt_stops_a_build(docker_bench: Bench, engine: APIClient) -> None:
    before = _containers_and_images(engine)
    log = BoundedLog(1 << 20)

    def interrupt() -> None:
        _wait_until(lambda: log.text().count(b"Running in") == 2)
        docker_bench.interrupt.set("cancelled")

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Interrupted):
        docker_bench.build({"Dockerfile": "FROM morpheo/base:1\nENV A=1\nRUN sleep 60\n"}, log=log)
    thread.join()
    _wait_until(lambda: _containers_and_images(engine) == before)


class _InterruptingLog(BoundedLog):
    """Stops a build as soon as a line came so many times."""

    def __init__(self, interrupt: Interrupt, line: bytes, *, at: int) -> None:
        super().__init__(1 << 20)
        self._interrupt, self._line, self._at = interrupt, line, at

    def write(self, content: bytes) -> None:
        super().write(content)
        if self.text().count(self._line) >= self._at:
            self._interrupt.set("cancelled")


@pytest.mark.docker
@pytest.mark.parametrize("line", [b"Running in", b"--->"])
def test_a_build_that_is_stopped_leaves_no_image_that_was_just_being_made(
    docker_bench: Bench, engine: APIClient, line: bytes
) -> None:
    before = _containers_and_images(engine)
    for count in range(1, 6):
        docker_bench.interrupt = Interrupt()
        log = _InterruptingLog(docker_bench.interrupt, line, at=count * 4)
        steps = "".join(f"ENV A{number}=1\n" for number in range(40))
        with pytest.raises(Interrupted):
            docker_bench.build({"Dockerfile": f"FROM morpheo/base:1\n{steps}"}, log=log)
        assert log.text().count(b"Step ") < 41
        _wait_until(lambda: _containers_and_images(engine) == before)


@pytest.mark.docker
def test_a_build_that_prints_what_the_engine_says_is_stopped(docker_bench: Bench, engine: APIClient) -> None:
    """Each line would be an image to look for, one after the other, long after the end of the build."""
    before = _containers_and_images(engine)
    script = "for number in range(10**9): print(f' ---> {number:012x}', flush=True)"
    began = time.monotonic()
    result = docker_bench.build({"Dockerfile": f'FROM morpheo/base:1\nENV A=1\nRUN python3 -S -c "{script}"\n'})
    assert (result.image_id, result.timed_out) == (None, False)
    assert "what only the engine says" in result.error
    assert time.monotonic() - began < 60
    _wait_until(lambda: _containers_and_images(engine) == before)


@pytest.mark.docker
def test_a_failed_build_leaves_no_image_without_a_tag(docker_bench: Bench, engine: APIClient) -> None:
    before = _containers_and_images(engine)
    docker_bench.build({"Dockerfile": "FROM morpheo/base:1\nRUN echo > /a\nRUN echo > /b\nRUN exit 5\n"})
    _wait_until(lambda: _containers_and_images(engine) == before)
    assert engine.inspect_image("morpheo/base:1")["RepoTags"] == ["morpheo/base:1"]


@pytest.mark.docker
def test_a_build_of_several_stages_leaves_only_its_image(docker_bench: Bench, engine: APIClient) -> None:
    before = _containers_and_images(engine)
    dockerfile = (
        "FROM morpheo/base:1 AS first\nRUN echo 1 > /a\nFROM morpheo/base:1\nCOPY --from=first /a /a\n"
        'ENTRYPOINT ["/a"]\n'
    )
    result = docker_bench.build({"Dockerfile": dockerfile})
    assert result.image_id is not None
    assert _containers_and_images(engine) == (before[0], before[1] | {result.image_id})
    docker_bench.runtime.remove_image(result.image_id)


@pytest.mark.docker
def test_a_container_left_by_a_worker_that_died_does_not_block_its_attempt(
    docker_bench: Bench, engine: APIClient
) -> None:
    spec = docker_bench.spec(["exit", 0])
    engine.create_container(docker_bench.image_id, name=spec.name)
    assert docker_bench.runtime.run(spec, interrupt=Interrupt()).exit_code == 0


@pytest.mark.docker
def test_containers_of_other_nodes_are_not_seen(docker_bench: Bench, docker_image: str, engine: APIClient) -> None:
    other = DockerRuntime(engine_url(), profile=PROFILE, node="another", timeout_s=60)
    bench = Bench(other, docker_image)
    thread = _in_background(bench)
    _wait_until(lambda: len(other.owners()) == 1)
    assert bench.owner.job_id not in {owner.job_id for owner in docker_bench.runtime.owners()}
    bench.interrupt.set("over")
    thread.join(20)


def _containers_and_images(engine: APIClient) -> tuple[set[str], set[str]]:
    containers = {container["Id"] for container in engine.containers(all=True)}
    return containers, {image["Id"] for image in engine.images()}


def test_an_image_that_a_container_uses_is_not_dropped(docker_bench: Bench, engine: APIClient) -> None:
    spec = BuildSpec(owner=docker_bench.owner, tag=f"morpheo/test:{uuid4().hex}", timeout_s=LONG_S)
    files = {"Dockerfile": 'FROM morpheo/base:1\nENTRYPOINT ["true"]\n'}
    docker_bench.runtime.build(context(files), spec, interrupt=Interrupt())
    container = engine.create_container(spec.tag)["Id"]
    try:
        assert not docker_bench.runtime.drop_image(spec.tag)
        assert docker_bench.runtime.find_image(spec.tag)
    finally:
        engine.remove_container(container)
    assert docker_bench.runtime.drop_image(spec.tag)


def test_images_that_dead_builds_left_are_dropped_when_they_are_old(docker_bench: Bench, engine: APIClient) -> None:
    tag = f"{UNCHECKED}:{uuid4()}-1-algo"
    manifest = [{"Config": "config.json", "RepoTags": [tag], "Layers": []}]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "created": "2001-01-01T00:00:00Z",
        "config": {"Labels": {"test": tag}},
        "rootfs": {"type": "layers", "diff_ids": []},
    }
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for name, document in (("manifest.json", manifest), ("config.json", config)):
            content = json.dumps(document).encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    list(engine.load_image(target.getvalue()))
    assert docker_bench.runtime.find_image(tag)
    age_s = time.time() - datetime(2001, 1, 1, tzinfo=UTC).timestamp()
    docker_bench.runtime.drop_unchecked(older_than_s=age_s + 3600)
    assert docker_bench.runtime.find_image(tag)
    assert docker_bench.runtime.drop_unchecked(older_than_s=age_s - 3600) == 1
    assert docker_bench.runtime.find_image(tag) is None


class _Client:
    """A client of an engine that is not asked anything."""

    hooks: ClassVar[dict[str, object]] = {}

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("said", "full"),
    [
        ("write /var/lib/docker/tmp/docker-builder1/x: no space left on device", True),
        ("Error processing tar file(exit status 1): write /big: no space left on device", True),
        ("failed to create task for container: mkdir /run/x: no space left on device: unknown", True),
        ("The command '/bin/sh -c echo no space left on device' returned a non-zero code: 1", False),
        ("COPY failed: stat no space left on device: file does not exist", False),
    ],
)
def test_an_engine_that_says_that_its_disk_is_full_is_believed_and_no_name_is(
    monkeypatch: pytest.MonkeyPatch, said: str, full: bool
) -> None:
    result = BuildResult(image_id=None, log=b"", seconds=0.0, error=said)
    monkeypatch.setattr(DockerRuntime, "_connect", lambda _self: _Client())
    monkeypatch.setattr("morpheo.runtime.docker.ImageBuild.run", lambda _self, _context: result)
    runtime = DockerRuntime("unix:///nowhere", profile=PROFILE, node="node", timeout_s=1)
    spec = BuildSpec(owner=Owner(job_id=uuid4(), attempt=1), tag="morpheo/test:x", timeout_s=1)
    if full:
        with pytest.raises(DiskFull):
            runtime.build(io.BytesIO(), spec, interrupt=Interrupt())
    else:
        assert runtime.build(io.BytesIO(), spec, interrupt=Interrupt()) == result
