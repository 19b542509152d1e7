"""What every container runtime does: the fake one and the real engine."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from docker import APIClient

from morpheo.errors import Interrupted, RuntimeUnavailable
from morpheo.models import StepName
from morpheo.runtime.contract import (
    Bind,
    BuildResult,
    BuildSpec,
    ContainerRuntime,
    ContainerSpec,
    Interrupt,
    Owner,
    Profile,
    StepResult,
)
from morpheo.runtime.docker import DockerRuntime
from morpheo.testing import FakeRuntime
from tests.support.images import context, run_fake_payload
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

    def build(self, files: dict[str, str], *, timeout_s: float = LONG_S) -> BuildResult:
        spec = BuildSpec(owner=self.owner, tag=f"morpheo/test:{uuid4().hex}", timeout_s=timeout_s)
        return self.runtime.build(context(files), spec, interrupt=self.interrupt)


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
    result = bench.run(["print", "still here"], ["sleep", LONG_S], timeout_s=1.0)
    assert result.timed_out
    assert result.exit_code == 137
    assert result.log == b"still here\n"
    assert time.monotonic() - began < 15


def test_an_interrupt_kills_the_container(bench: Bench) -> None:
    timer = threading.Timer(0.5, bench.interrupt.set, ["cancelled"])
    timer.start()
    began = time.monotonic()
    with pytest.raises(Interrupted, match="cancelled"):
        bench.run(["sleep", LONG_S])
    timer.join()
    assert time.monotonic() - began < 5


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
    thread.join(10)
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
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


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
    result = docker_bench.run(["sleep", 0.5])
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
    assert time.monotonic() - began < 15
    _wait_until(lambda: _containers_and_images(engine) == before)


@pytest.mark.docker
def test_an_interrupt_stops_a_build(docker_bench: Bench, engine: APIClient) -> None:
    before = _containers_and_images(engine)
    timer = threading.Timer(1.0, docker_bench.interrupt.set, ["cancelled"])
    timer.start()
    with pytest.raises(Interrupted):
        docker_bench.build({"Dockerfile": "FROM morpheo/base:1\nENV A=1\nRUN sleep 60\n"})
    timer.join()
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
