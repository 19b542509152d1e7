"""Archives are read in a process that ends at its limits, whatever is in them."""

from __future__ import annotations

import errno
import gzip
import threading
from pathlib import Path

import pytest

from morpheo.errors import BadArchive, Interrupted, Unavailable
from morpheo.runtime import confined
from morpheo.runtime.archive import ArchiveLimits
from morpheo.runtime.confined import repack_confined, unpack_confined
from morpheo.runtime.contract import Interrupt
from morpheo.testing import make_archive

LIMITS = ArchiveLimits(max_bytes=1 << 20, max_entries=100)
DOCKERFILE = "FROM morpheo/base:1\n"
#: Takes seconds to read, and gives nothing.
EMPTY_MEMBERS = gzip.compress(b"", mtime=0) * 1_000_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "folder"
    made.mkdir()
    return made


def packed(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "packed.tar.gz"
    path.write_bytes(content)
    return path


def test_an_archive_is_unpacked(tmp_path: Path, folder: Path) -> None:
    archive = packed(tmp_path, make_archive({"a": "1", "naïve/b": "2"}))
    assert unpack_confined(archive, folder, LIMITS, Interrupt()) == ["a", "naïve/b"]
    assert (folder / "naïve/b").read_text() == "2"


def test_a_context_is_repacked(tmp_path: Path) -> None:
    archive = packed(tmp_path, make_archive({"Dockerfile": DOCKERFILE, "a": "1"}))
    assert repack_confined(archive, tmp_path / "context.tar", LIMITS) == DOCKERFILE
    assert b"a\0" in (tmp_path / "context.tar").read_bytes()


def test_a_refusal_is_the_reader_s_own_sentence(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(BadArchive, match=r"'\.\./x' leads out of the archive"):
        unpack_confined(packed(tmp_path, make_archive({"../x": "1"})), folder, LIMITS)
    with pytest.raises(BadArchive, match="no Dockerfile at the root"):
        repack_confined(packed(tmp_path, make_archive({"x": "1"})), tmp_path / "context.tar", LIMITS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["context.tar", "folder", "packed.tar.gz"]


def test_an_error_of_the_disk_is_no_fault_of_the_archive(tmp_path: Path) -> None:
    archive = packed(tmp_path, make_archive({"Dockerfile": DOCKERFILE}))
    with pytest.raises(OSError, match="No space left") as caught:
        repack_confined(archive, Path("/dev/full"), LIMITS)
    assert caught.value.errno == errno.ENOSPC


def test_an_archive_that_needs_too_much_memory_is_refused(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confined, "MEMORY_BYTES", 1 << 20)
    with pytest.raises(BadArchive, match="more time or memory"):
        unpack_confined(packed(tmp_path, make_archive({"a": "1"})), folder, LIMITS)


def test_an_archive_that_needs_too_much_time_is_refused(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confined, "LEAST_CPU_S", 1)
    monkeypatch.setattr(confined, "PATIENCE", 600)
    with pytest.raises(BadArchive, match="more time or memory"):
        unpack_confined(packed(tmp_path, EMPTY_MEMBERS), folder, LIMITS)


def test_a_machine_that_is_too_slow_is_no_fault_of_the_archive(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confined, "PATIENCE", 0.01)
    with pytest.raises(Unavailable, match="took longer than"):
        unpack_confined(packed(tmp_path, EMPTY_MEMBERS), folder, LIMITS)


def test_reading_ends_with_an_interrupt(tmp_path: Path, folder: Path) -> None:
    interrupt = Interrupt()
    timer = threading.Timer(0.2, interrupt.set, ["cancelled"])
    timer.start()
    with pytest.raises(Interrupted, match="cancelled"):
        unpack_confined(packed(tmp_path, EMPTY_MEMBERS), folder, LIMITS, interrupt)
    timer.join()


def test_the_process_has_no_environment_and_few_files(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "morpheo_probe.py"
    program.write_text(
        "import json, os\n"
        "names = set(os.environ) - {'LC_CTYPE'}\n"  # which Python sets itself
        "print(json.dumps({'done': [*names, *sorted(os.listdir('/proc/self/fd'))]}))\n"
    )
    monkeypatch.setenv("MORPHEO_S3_SECRET_KEY", "a secret")
    monkeypatch.setattr(confined, "__name__", "morpheo_probe")
    monkeypatch.setattr(confined, "_ROOT", tmp_path)
    assert unpack_confined(packed(tmp_path, b""), folder, LIMITS) == ["PYTHONPATH", "0", "1", "2", "3"]
