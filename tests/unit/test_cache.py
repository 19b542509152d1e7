"""The node's cache: each byte is fetched once, what is wrong is not kept, and what is in use is not evicted."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from filelock import FileLock, Timeout

from morpheo.errors import CorruptBlob, Interrupted, NotFound
from morpheo.models import Artifact, ArtifactKind
from morpheo.runtime import cache as cache_module
from morpheo.runtime.cache import NodeCache, detarget_key
from morpheo.runtime.contract import Interrupt
from morpheo.testing import MemoryBlobStore

pytestmark = pytest.mark.timeout(20)


@dataclass
class Node:
    """A cache, the store behind it, and a folder of a job."""

    root: Path
    max_bytes: int = 1000
    store: MemoryBlobStore = field(default_factory=MemoryBlobStore)
    fetched: list[str] = field(default_factory=list)
    #: Called while a blob is being fetched.
    meanwhile: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.cache = NodeCache(self.root / "cache", self.open_blob, max_bytes=self.max_bytes)
        self.blobs = self.root / "cache" / "blobs" / "sha256"
        self.job = self.root / "job"
        self.job.mkdir()

    def open_blob(self, key: str) -> AbstractContextManager[Iterator[bytes]]:
        self.fetched.append(key)
        return self._pieces(key)

    @contextlib.contextmanager
    def _pieces(self, key: str) -> Iterator[Iterator[bytes]]:
        with self.store.get(key) as pieces:
            self.meanwhile()
            yield pieces

    def add(self, content: bytes) -> Artifact:
        artifact = make_artifact(content)
        self.store.put(artifact.blob_key, io.BytesIO(content))
        return artifact

    def link(self, artifact: Artifact, name: str = "", interrupt: Interrupt | None = None) -> Path:
        target = self.job / (name or str(artifact.id))
        self.cache.link(artifact, target, interrupt or Interrupt())
        return target

    def kept(self) -> set[str]:
        return {path.name for path in self.blobs.iterdir()} if self.blobs.exists() else set()


def make_artifact(content: bytes, **changes: str) -> Artifact:
    artifact_id = uuid4()
    return Artifact(
        id=artifact_id,
        kind=ArtifactKind.DATA,
        size_bytes=len(content),
        sha256=changes.get("sha256", hashlib.sha256(content).hexdigest()),
        blob_key=f"data/{artifact_id}/1",
        created_at=datetime.now(UTC),
    )


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a job that waits for a lock look often."""
    monkeypatch.setattr(cache_module, "LOCK_POLL_S", 0.01)


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set as soon as somebody has found a lock taken."""
    event = threading.Event()

    class Noting(FileLock):
        def acquire(self, *args: Any, **kwargs: Any) -> Any:
            try:
                return super().acquire(*args, **kwargs)
            except Timeout:
                event.set()
                raise

    monkeypatch.setattr(cache_module, "FileLock", Noting)
    return event


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node with an empty cache."""
    return Node(tmp_path)


def set_used(path: Path, at: float) -> None:
    os.utime(path, (at, at))


# Blobs


def test_a_blob_is_fetched_once_and_then_linked(node: Node) -> None:
    artifact = node.add(b"content")
    first, second = node.link(artifact, "first"), node.link(artifact, "second")
    assert first.read_bytes() == b"content"
    assert first.stat().st_ino == second.stat().st_ino == (node.blobs / artifact.sha256).stat().st_ino
    assert node.fetched == [artifact.blob_key]


def test_two_artifacts_with_the_same_content_are_one_blob(node: Node) -> None:
    first, second = node.add(b"content"), node.add(b"content")
    assert node.link(first).stat().st_ino == node.link(second).stat().st_ino
    assert node.fetched == [first.blob_key]


def test_a_linked_file_is_read_only(node: Node) -> None:
    assert stat.S_IMODE(node.link(node.add(b"content")).stat().st_mode) == 0o444


def test_two_jobs_that_need_the_same_blob_fetch_it_once(node: Node) -> None:
    artifact = node.add(b"content")
    both_there = threading.Barrier(2)
    threads = []

    def link(name: str) -> None:
        both_there.wait()
        node.link(artifact, name)

    for name in ("first", "second"):
        threads.append(threading.Thread(target=link, args=(name,)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert node.fetched == [artifact.blob_key]
    assert (node.job / "first").stat().st_ino == (node.job / "second").stat().st_ino


def test_a_job_that_waited_for_anothers_fetch_links_its_result(node: Node, waited: threading.Event) -> None:
    artifact = node.add(b"content")
    fetching = threading.Event()

    def meanwhile() -> None:
        fetching.set()
        assert waited.wait(60)

    node.meanwhile = meanwhile
    first = threading.Thread(target=node.link, args=(artifact, "first"))
    first.start()
    assert fetching.wait(60)
    second = threading.Thread(target=node.link, args=(artifact, "second"))
    second.start()
    first.join()
    second.join()
    assert waited.is_set()
    assert (node.job / "second").read_bytes() == b"content"
    assert node.fetched == [artifact.blob_key]


def test_a_corrupt_blob_is_refused_and_nothing_is_left(node: Node) -> None:
    artifact = make_artifact(b"what was stored")
    node.store.put(artifact.blob_key, io.BytesIO(b"what is there now"))
    with pytest.raises(CorruptBlob, match=f"data {artifact.id} has changed"):
        node.link(artifact)
    assert node.kept() == set()
    assert not list(node.job.iterdir())


def test_a_corrupt_blob_is_fetched_again_by_the_next_job(node: Node) -> None:
    artifact = make_artifact(b"content")
    node.store.put(artifact.blob_key, io.BytesIO(b"cont"))
    with pytest.raises(CorruptBlob):
        node.link(artifact)
    node.store.put(artifact.blob_key, io.BytesIO(b"content"))
    assert node.link(artifact).read_bytes() == b"content"


def test_a_blob_that_is_not_there_is_not_found_and_nothing_is_left(node: Node) -> None:
    with pytest.raises(NotFound):
        node.link(make_artifact(b"never stored"))
    assert node.kept() == set()


@pytest.mark.parametrize("error", [ConnectionError, KeyboardInterrupt])
def test_a_fetch_that_breaks_off_leaves_nothing(node: Node, error: type[BaseException]) -> None:
    def fail() -> None:
        raise error

    node.meanwhile = fail
    with pytest.raises(error):
        node.link(node.add(b"content"))
    assert node.kept() == set()


def test_a_fetch_ends_when_the_attempt_is_interrupted(node: Node) -> None:
    interrupt = Interrupt()
    node.meanwhile = lambda: interrupt.set("cancelled")
    with pytest.raises(Interrupted, match="cancelled"):
        node.link(node.add(b"content"), interrupt=interrupt)
    assert node.kept() == set()


def test_a_folder_that_was_removed_meanwhile_is_an_error_and_no_endless_loop(node: Node) -> None:
    artifact = node.add(b"content")
    with pytest.raises(FileNotFoundError):
        node.cache.link(artifact, node.root / "gone" / "a", Interrupt())
    assert len(node.fetched) == 1
    node.link(artifact)
    with pytest.raises(FileNotFoundError):
        node.cache.link(artifact, node.root / "gone" / "a", Interrupt())


# Eviction


def test_the_least_recently_used_blobs_go_first(node: Node) -> None:
    artifacts = [node.add(bytes([number]) * 400) for number in range(3)]
    for age, artifact in enumerate(artifacts[:2]):
        node.link(artifact).unlink()
        set_used(node.blobs / artifact.sha256, 1000 + age)
    node.link(artifacts[2])
    assert node.kept() == {artifacts[1].sha256, artifacts[2].sha256}


def test_a_blob_that_was_linked_again_is_recently_used(node: Node) -> None:
    old, new, third = (node.add(bytes([number]) * 400) for number in range(3))
    for age, artifact in enumerate((old, new)):
        node.link(artifact).unlink()
        set_used(node.blobs / artifact.sha256, 1000 + age)
    node.link(old, "again").unlink()
    node.link(third)
    assert node.kept() == {old.sha256, third.sha256}


def test_nothing_is_evicted_below_the_limit(node: Node) -> None:
    artifacts = [node.add(bytes([number]) * 500) for number in range(2)]
    for artifact in artifacts:
        node.link(artifact).unlink()
    assert node.kept() == {artifact.sha256 for artifact in artifacts}


def test_what_a_job_has_linked_is_never_evicted(node: Node) -> None:
    held = node.add(b"h" * 900)
    node.link(held)
    set_used(node.blobs / held.sha256, 1)
    unused = node.add(b"u" * 50)
    node.link(unused).unlink()
    newest = node.add(b"n" * 900)
    node.link(newest)
    assert node.kept() == {held.sha256, newest.sha256}


def test_a_blob_larger_than_the_cache_is_fetched_once_and_linked(node: Node) -> None:
    huge = node.add(b"x" * 5000)
    assert node.link(huge).stat().st_size == 5000
    assert node.fetched == [huge.blob_key]


def test_a_cache_full_of_blobs_in_use_still_gives_another_one(node: Node) -> None:
    for number in range(3):
        node.link(node.add(bytes([number]) * 900))
    assert len(node.fetched) == 3
    assert len(node.kept()) == 3


def test_what_another_job_is_fetching_is_not_evicted(node: Node) -> None:
    slow, fast = node.add(b"s" * 100), node.add(b"f" * 5000)

    def meanwhile() -> None:
        node.meanwhile = lambda: None
        for path in node.blobs.iterdir():
            path.write_bytes(b"half of it")
        node.link(fast)

    node.meanwhile = meanwhile
    assert node.link(slow).read_bytes() == b"s" * 100


def test_what_a_dead_process_left_half_fetched_is_evicted_when_room_is_needed(node: Node) -> None:
    node.blobs.mkdir(parents=True)
    left = node.blobs / "fetch-abc"
    left.write_bytes(b"x" * 900)
    set_used(left, 1)
    artifact = node.add(b"y" * 500)
    node.link(artifact)
    assert node.kept() == {artifact.sha256}


def test_what_is_being_fetched_stays_and_what_a_dead_process_left_goes(node: Node) -> None:
    slow, counts = node.add(b"s" * 100), list[int]()
    node.meanwhile = lambda: counts.append(node.cache.drop_abandoned())
    assert node.link(slow).read_bytes() == b"s" * 100
    assert counts == [0]
    left = node.blobs / f"fetch-{slow.sha256}"
    left.write_bytes(b"half of it")
    left.chmod(0o444)
    assert node.cache.drop_abandoned() == 1
    assert node.kept() == {slow.sha256}


def test_what_a_dead_process_left_half_fetched_is_no_hindrance(node: Node) -> None:
    node.blobs.mkdir(parents=True)
    artifact = node.add(b"y" * 500)
    left = node.blobs / f"fetch-{artifact.sha256}"
    left.write_bytes(b"x" * 900)
    left.chmod(0o444)
    assert node.link(artifact).read_bytes() == b"y" * 500
    assert node.kept() == {artifact.sha256}


def test_a_file_that_a_power_cut_left_short_is_fetched_again(node: Node) -> None:
    artifact = node.add(b"y" * 500)
    node.link(artifact)
    short = node.blobs / artifact.sha256
    short.unlink()
    short.write_bytes(b"")
    again = node.link(artifact, "again")
    assert again.read_bytes() == b"y" * 500
    assert short.read_bytes() == b"y" * 500


# Locks


def test_a_lock_is_held_by_one_at_a_time_and_released_after_an_error(node: Node) -> None:
    with pytest.raises(ValueError, match="oops"), node.cache.lock("a", Interrupt()):
        raise ValueError("oops")
    interrupt = Interrupt()
    with node.cache.lock("a", Interrupt()), node.cache.lock("b", Interrupt()):
        interrupt.set("cancelled")
        with pytest.raises(Interrupted), node.cache.lock("a", interrupt):
            pytest.fail("the lock was given twice")
    with node.cache.lock("a", Interrupt()):
        pass


def test_an_interrupt_ends_the_wait_for_a_lock(node: Node, waited: threading.Event) -> None:
    interrupt = Interrupt()
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            with node.cache.lock("a", interrupt):
                pass
        except Interrupted as exc:
            errors.append(exc)

    with node.cache.lock("a", Interrupt()):
        thread = threading.Thread(target=wait)
        thread.start()
        assert waited.wait(60)
        interrupt.set("lease lost")
        thread.join(60)
        assert not thread.is_alive()
    assert [str(error) for error in errors] == ["lease lost"]


def test_a_waiting_job_gets_the_lock_when_it_is_free(node: Node) -> None:
    got = threading.Event()

    def wait() -> None:
        with node.cache.lock("a", Interrupt()):
            got.set()

    with node.cache.lock("a", Interrupt()):
        thread = threading.Thread(target=wait)
        thread.start()
        assert not got.wait(0.03)
    thread.join(10)
    assert got.is_set()


# Test sets without their targets


def make_files(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).write_text(name)
    return folder


def test_a_detargeted_test_set_is_kept_and_linked(node: Node) -> None:
    visible = make_files(node.root / "visible", "a", "b")
    (visible / "pred").mkdir()
    node.cache.keep_detargeted("key", visible)
    other = make_files(node.root / "other")
    assert node.cache.link_detargeted("key", other, {"a", "b"})
    assert {path.name: path.read_text() for path in other.iterdir()} == {"a": "a", "b": "b"}
    assert (other / "a").stat().st_ino == (visible / "a").stat().st_ino


def test_an_unknown_test_set_is_not_linked(node: Node) -> None:
    target = make_files(node.root / "visible")
    assert not node.cache.link_detargeted("key", target, {"a"})
    assert not list(target.iterdir())


def test_the_first_of_two_detargeted_test_sets_stays_and_nothing_else_is_left(node: Node) -> None:
    node.cache.keep_detargeted("key", make_files(node.root / "first", "a"))
    node.cache.keep_detargeted("key", make_files(node.root / "second", "b"))
    target = make_files(node.root / "target")
    node.cache.link_detargeted("key", target, {"a"})
    assert [path.name for path in target.iterdir()] == ["a"]
    assert [path.name for path in (node.root / "cache" / "detarget").iterdir()] == ["key"]


def test_a_test_set_that_cannot_be_kept_leaves_nothing(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    visible = make_files(node.root / "visible", "a", "b")

    def fail(*_args: object) -> None:
        raise OSError(31, "Too many links")

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(OSError, match="Too many links"):
        node.cache.keep_detargeted("key", visible)
    assert not list((node.root / "cache" / "detarget").iterdir())


def test_a_test_set_that_lacks_files_is_none_and_is_made_anew(node: Node) -> None:
    node.cache.keep_detargeted("key", make_files(node.root / "visible", "a", "b"))
    (node.root / "cache" / "detarget" / "key" / "b").unlink()  # as a power cut may
    target = make_files(node.root / "target")
    (target / "pred").mkdir()
    assert not node.cache.link_detargeted("key", target, {"a", "b"})
    assert [path.name for path in target.iterdir()] == ["pred"]
    node.cache.keep_detargeted("key", make_files(node.root / "again", "a", "b"))
    assert node.cache.link_detargeted("key", target, {"a", "b"})


def test_a_test_set_goes_as_a_whole(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever evicts may be killed meanwhile: nobody takes the rest for the whole, and the next sweep removes it."""
    node.cache.keep_detargeted("key", make_files(node.root / "visible", "a", "b"))

    def killed(_path: object, **_options: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(SystemExit):
            node.cache.evict(lambda: False)
    assert not node.cache.link_detargeted("key", make_files(node.root / "target"), {"a", "b"})
    assert node.cache.drop_abandoned() == 1
    assert not list((node.root / "cache" / "detarget").iterdir())


def test_a_test_set_that_is_being_kept_is_not_evicted_and_goes_if_its_worker_was_killed(node: Node) -> None:
    made = node.root / "cache" / "detarget" / "make-key"
    made.mkdir(parents=True)
    with node.cache.lock("detarget-key", Interrupt()):
        node.cache.evict(lambda: False)
        assert node.cache.drop_abandoned() == 0
        assert made.exists()
    assert node.cache.drop_abandoned() == 1
    assert not made.exists()


def test_a_kept_test_set_outlives_the_job_that_made_it(node: Node) -> None:
    visible = make_files(node.root / "visible", "a")
    node.cache.keep_detargeted("key", visible)
    (visible / "a").unlink()
    target = make_files(node.root / "target")
    assert node.cache.link_detargeted("key", target, {"a"})
    assert (target / "a").read_text() == "a"


def test_the_key_of_a_test_set_depends_on_the_problem_and_each_file_but_not_on_their_order() -> None:
    problem, other = make_artifact(b"problem"), make_artifact(b"other problem")
    first, second, same_content = make_artifact(b"1"), make_artifact(b"2"), make_artifact(b"1")
    key = detarget_key(problem, [first, second])
    assert key == detarget_key(problem, [second, first])
    different = [
        detarget_key(other, [first, second]),
        detarget_key(problem, [first]),
        detarget_key(problem, [same_content, second]),
    ]
    assert len({key, *different}) == 4


def test_detargeted_sets_that_were_not_used_for_long_go_first(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path / "cache", MemoryBlobStore().get, max_bytes=25)
    for number, key in enumerate(("old", "used", "new")):
        made = tmp_path / key
        made.mkdir()
        (made / "a").write_bytes(b"x" * 10)
        if key == "new":
            again = tmp_path / "again"
            again.mkdir()
            assert cache.link_detargeted("used", again, {"a"})
            os.utime(tmp_path / "cache" / "detarget" / "old", (1, 1))
        cache.keep_detargeted(key, made)
        os.utime(tmp_path / "cache" / "detarget" / key, (10 + number,) * 2)
    found = {key: cache.link_detargeted(key, _fresh(tmp_path, key), {"a"}) for key in ("old", "used", "new")}
    assert found == {"old": False, "used": True, "new": True}
    assert (tmp_path / "again" / "a").read_bytes() == b"x" * 10


def _fresh(tmp_path: Path, key: str) -> Path:
    folder = tmp_path / f"fresh-{key}"
    folder.mkdir()
    return folder
