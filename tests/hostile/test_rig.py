"""The rig itself: a check that finds nothing must be able to find something."""

from __future__ import annotations

import base64
import socket

import pytest

from morpheo.models import Cause
from tests.hostile.rig import Case, HostileRig, disguises, find_canaries
from tests.support.services import wait_until

pytestmark = pytest.mark.docker


def test_a_canary_is_found_in_each_disguise() -> None:
    word = "0123456789abcdef0123456789abcdef"
    for found in (word, word[::-1], word.encode().hex()):
        assert find_canaries(b"before" + found.encode() + b"after", [word]) == {word}
    for before in (b"", b"x", b"xy", b"xyz"):
        assert find_canaries(base64.b64encode(before + word.encode() + b"tail"), [word]) == {word}
    assert find_canaries(b"nothing" * 100, [word]) == set()
    assert all(len(form) >= 16 for form in disguises(word))


def test_the_sink_counts_what_arrives(hostile: HostileRig) -> None:
    before = len(hostile.sink.hits)
    socket.create_connection(("127.0.0.1", hostile.sink.port), timeout=5).close()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.sendto(b"canary", ("127.0.0.1", hostile.sink.port))
    wait_until(lambda: len(hostile.sink.hits) == before + 2)


def test_what_is_left_is_found(hostile: HostileRig) -> None:
    case = Case(hostile)
    volume = hostile.engine.create_volume()["Name"]
    left = hostile.engine.create_container("morpheo/base:1", ["true"])["Id"]
    (hostile.data_dir / "work" / "left").mkdir(parents=True)
    try:
        found = hostile.snapshot().more_than(case._snapshot)
        assert found == [f"containers: {left}", f"volumes: {volume}", "workspaces: left"]
    finally:
        hostile.engine.remove_container(left)
        hostile.engine.remove_volume(volume)
        (hostile.data_dir / "work" / "left").rmdir()
    case.check()


def test_an_attack_runs_where_its_data_says(rig: HostileRig) -> None:
    spec = rig.learn(train="attempt('one', lambda: 1); attempt('two', os.listdir, '/nowhere')", perf="print('scored')")
    rig.succeeded(spec)
    assert rig.attempts(spec) == {
        "one": {"name": "one", "found": 1, "error": None},
        "two": {"name": "two", "found": None, "error": "ENOENT"},
    }
    assert "scored" in rig.log(spec)
    rig.failed(rig.learn(train="sys.exit(3)"), Cause.EXIT_CODE)
