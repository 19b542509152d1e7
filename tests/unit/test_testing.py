"""The stand-ins that are shipped: a fake that is trusted is a fake that is tested."""

from __future__ import annotations

import dataclasses
import io
import tarfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from morpheo.errors import BrokerUnavailable, Interrupted, InvalidInput, NotFound, RuntimeUnavailable
from morpheo.models import StepName
from morpheo.runtime.archive import ArchiveLimits, repack_context
from morpheo.runtime.contract import Bind, BuildResult, BuildSpec, ContainerSpec, Interrupt, Owner
from morpheo.testing import (
    BrokenSource,
    FakeContainer,
    FakeRuntime,
    MemoryBlobStore,
    Program,
    RecordingPublisher,
    make_archive,
    make_learn_spec,
    make_predict_spec,
)

pytestmark = pytest.mark.timeout(20)

OWNER = Owner(job_id=uuid4(), attempt=1, worker="w")


def context(dockerfile: str) -> io.BytesIO:
    target = io.BytesIO()
    repack_context(
        io.BytesIO(make_archive({"Dockerfile": dockerfile, "a": "1"})),
        target,
        ArchiveLimits(max_bytes=1 << 20, max_entries=10),
    )
    target.seek(0)
    return target


def build(runtime: FakeRuntime, dockerfile: str, tag: str = "morpheo/algo:1") -> BuildResult:
    return runtime.build(context(dockerfile), BuildSpec(owner=OWNER, tag=tag, timeout_s=5), interrupt=Interrupt())


def ready(program: Program, **changes: Any) -> tuple[FakeRuntime, ContainerSpec]:
    """Return a runtime that has an image with this program, and a container of it."""
    runtime = FakeRuntime({"program": program})
    image_id = build(runtime, 'FROM scratch\nENTRYPOINT ["run", "program"]').image_id
    assert image_id is not None
    values: dict[str, Any] = {
        "owner": OWNER,
        "step": StepName.TRAIN,
        "image_id": image_id,
        "args": ("-T", "train"),
        "binds": (),
        "timeout_s": 5.0,
    }
    return runtime, ContainerSpec(**{**values, **changes})


# Containers


def test_a_program_is_called_with_its_arguments_and_its_result_is_the_exit_code() -> None:
    seen: list[tuple[str, ...]] = []

    def program(container: FakeContainer) -> int:
        seen.append(container.args)
        container.print("hello")
        return 3

    runtime, spec = ready(program)
    result = runtime.run(spec, interrupt=Interrupt())
    assert (result.exit_code, result.log, result.timed_out, result.oom_killed) == (3, b"hello\n", False, False)
    assert seen == [("-T", "train")]
    assert runtime.history == ["morpheo/algo:1", spec.name]


def test_a_program_that_raises_ends_with_1_and_its_error_in_the_log() -> None:
    def program(container: FakeContainer) -> int:
        container.print("before")
        raise ValueError("no such column")

    runtime, spec = ready(program)
    result = runtime.run(spec, interrupt=Interrupt())
    assert (result.exit_code, result.log) == (1, b"before\nValueError: no such column\n")


def test_a_program_sees_the_innermost_mount(tmp_path: Path) -> None:
    outer, inner = tmp_path / "outer", tmp_path / "inner"
    for folder in (outer, inner):
        folder.mkdir()
    (outer / "a").write_bytes(b"1")

    def program(container: FakeContainer) -> int:
        assert container.path("/data").joinpath("a").read_bytes() == b"1"
        container.write("/data/pred/sub/a", b"2")
        return 0

    binds = (Bind(source=outer, target="/data"), Bind(source=inner, target="/data/pred", writable=True))
    runtime, spec = ready(program, binds=binds)
    assert runtime.run(spec, interrupt=Interrupt()).exit_code == 0
    assert (inner / "sub" / "a").read_bytes() == b"2"
    assert [path.name for path in outer.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("/data/x", "PermissionError: read-only file system: /data/x"),
        ("/datax", "FileNotFoundError: /datax"),
        ("/etc/passwd", "FileNotFoundError: /etc/passwd"),
    ],
)
def test_a_program_cannot_write_elsewhere(tmp_path: Path, target: str, error: str) -> None:
    def program(container: FakeContainer) -> int:
        container.write(target, b"x")
        return 0

    runtime, spec = ready(program, binds=(Bind(source=tmp_path, target="/data"),))
    result = runtime.run(spec, interrupt=Interrupt())
    assert (result.exit_code, result.log.decode().strip()) == (1, error)
    assert not list(tmp_path.iterdir())


def test_a_program_that_sleeps_too_long_is_killed() -> None:
    def program(container: FakeContainer) -> int:
        container.sleep(60)
        return 0

    runtime, spec = ready(program, timeout_s=0.02)
    result = runtime.run(spec, interrupt=Interrupt())
    assert (result.exit_code, result.timed_out) == (137, True)
    assert runtime.owners() == []


@pytest.mark.parametrize("stop", ["interrupt", "remove"])
def test_a_sleeping_program_is_woken_by_an_interrupt_and_by_removal(stop: str) -> None:
    began = threading.Event()

    def program(container: FakeContainer) -> int:
        began.set()
        container.sleep(60)
        return 0

    runtime, spec = ready(program, timeout_s=60.0)
    interrupt = Interrupt()
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(runtime.run(spec, interrupt=interrupt).exit_code)
        except Interrupted as exc:
            outcome.append(str(exc))

    thread = threading.Thread(target=run)
    thread.start()
    assert began.wait(10)
    assert runtime.owners() == [OWNER]
    if stop == "interrupt":
        interrupt.set("cancelled")
    else:
        runtime.remove(Owner(job_id=OWNER.job_id, attempt=2))  # another attempt: nothing happens
        assert runtime.owners() == [OWNER]
        runtime.remove(Owner(job_id=OWNER.job_id, attempt=1))
    thread.join(10)
    assert outcome == (["cancelled"] if stop == "interrupt" else [137])
    assert runtime.owners() == []


def test_nothing_runs_after_an_interrupt() -> None:
    runtime, spec = ready(lambda _container: pytest.fail("it ran"))
    interrupt = Interrupt()
    interrupt.set("lease lost")
    with pytest.raises(Interrupted, match="lease lost"):
        runtime.run(spec, interrupt=interrupt)
    with pytest.raises(Interrupted):
        runtime.build(context("FROM scratch"), BuildSpec(owner=OWNER, tag="t", timeout_s=1), interrupt=interrupt)


def test_an_image_whose_program_is_unknown_does_not_start() -> None:
    runtime = FakeRuntime({})
    image_id = build(runtime, 'FROM scratch\nENTRYPOINT ["nothing"]').image_id
    _, spec = ready(lambda _container: 0)
    result = runtime.run(dataclasses.replace(spec, image_id=image_id or ""), interrupt=Interrupt())
    assert (result.exit_code, result.start_error) == (None, "executable file not found")


# Images


def test_an_image_is_found_by_its_tag_until_it_is_removed() -> None:
    runtime = FakeRuntime({})
    assert runtime.find_image("morpheo/algo:1") is None
    image_id = build(runtime, 'FROM scratch\nENTRYPOINT ["a"]').image_id
    assert image_id is not None
    assert runtime.find_image("morpheo/algo:1") == image_id
    assert runtime.inspect_image(image_id).runs_something
    runtime.remove_image(image_id)
    runtime.remove_image(image_id)
    assert runtime.find_image("morpheo/algo:1") is None


def test_an_image_without_an_entrypoint_runs_nothing() -> None:
    runtime = FakeRuntime({})
    image_id = build(runtime, "FROM scratch").image_id
    assert image_id is not None
    assert not runtime.inspect_image(image_id).runs_something


def test_a_build_that_fails_leaves_no_image() -> None:
    runtime = FakeRuntime({})
    result = build(runtime, "FROM scratch\nRUN false")
    assert result.image_id is None
    assert "non-zero" in result.error
    assert b"RUN false" in result.log
    assert runtime.find_image("morpheo/algo:1") is None


Call = Callable[[FakeRuntime, ContainerSpec], object]
CALLS: Mapping[str, Call] = {
    "check": lambda runtime, _spec: runtime.check(),
    "find_image": lambda runtime, _spec: runtime.find_image("a"),
    "inspect_image": lambda runtime, spec: runtime.inspect_image(spec.image_id),
    "remove_image": lambda runtime, spec: runtime.remove_image(spec.image_id),
    "build": lambda runtime, _spec: build(runtime, "FROM scratch"),
    "run": lambda runtime, spec: runtime.run(spec, interrupt=Interrupt()),
    "owners": lambda runtime, _spec: runtime.owners(),
    "remove": lambda runtime, _spec: runtime.remove(OWNER),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_without_an_engine_every_method_says_so(call: Call) -> None:
    runtime, spec = ready(lambda _container: 0)
    runtime.down = True
    with pytest.raises(RuntimeUnavailable):
        call(runtime, spec)


# Blobs, messages and test data


def test_a_blob_store_in_memory_keeps_nothing_of_a_broken_upload() -> None:
    store = MemoryBlobStore()
    with pytest.raises(InvalidInput, match="ended before its end"):
        store.put("data/1", BrokenSource(b"half"))
    with pytest.raises(InvalidInput):
        store.put("data/1", io.BytesIO(b"half"), length=10)
    with pytest.raises(NotFound, match="data/1"):
        store.stat("data/1")


def test_a_blob_store_in_memory_gives_what_it_was_given_when_it_was_opened() -> None:
    store = MemoryBlobStore()
    store.put("data/1", io.BytesIO(b"old"))
    with store.get("data/1") as pieces:
        store.put("data/1", io.BytesIO(b"new"))
        assert b"".join(pieces) == b"old"


def test_a_broken_source_gives_its_bytes_and_then_its_error() -> None:
    source = BrokenSource(b"abc", ConnectionError("gone"))
    assert source.read(2) == b"ab"
    assert source.read() == b"c"
    with pytest.raises(ConnectionError, match="gone"):
        source.read()


def test_a_publisher_remembers_unless_it_is_down() -> None:
    publisher = RecordingPublisher()
    spec = make_learn_spec()
    publisher.publish(spec)
    assert (publisher.published, publisher.backlog("learn")) == ([spec.id], 0)
    publisher.down = True
    with pytest.raises(BrokerUnavailable):
        publisher.publish(make_learn_spec())
    with pytest.raises(BrokerUnavailable):
        publisher.backlog("learn")
    assert publisher.published == [spec.id]


def test_an_archive_has_the_files_it_was_made_of() -> None:
    content = make_archive({"a": "text", "b/c": b"\0bytes"})
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
        assert {info.name: file.read() for info in tar if (file := tar.extractfile(info))} == {
            "a": b"text",
            "b/c": b"\0bytes",
        }


def test_orders_are_different_each_time_and_take_changes() -> None:
    assert make_learn_spec() != make_learn_spec()
    assert make_predict_spec() != make_predict_spec()
    assert make_learn_spec(rank=2).rank == 2
    model = uuid4()
    assert make_predict_spec(model=model).model == model
