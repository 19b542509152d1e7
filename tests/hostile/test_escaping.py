"""Cases 26 to 29, 31 and 32: escape and privilege."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.rig import HostileRig

pytestmark = pytest.mark.docker

CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")


def test_26_28_29_a_program_has_no_privilege_and_gets_none(rig: HostileRig) -> None:
    before = CORE_PATTERN.read_text()
    spec = rig.learn(
        train="""
attempt("status", lambda: dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines()))
attempt("groups", os.getgroups)
attempt("mount", call, 165, b"none", b"/tmp", b"tmpfs", 0, 0)
attempt("unshare", call, 272, 0x10000000)
attempt("chroot", os.chroot, "/tmp")
attempt("mknod", os.mknod, "/tmp/disk", 0o666 | stat.S_IFBLK, os.makedev(8, 0))
attempt("keyctl", call, 250, 0, -3, 1)
attempt("bpf", call, 321, 0, 0, 0)
attempt("perf_event_open", call, 298, 0, 0, -1, -1, 0)
attempt("userfaultfd", call, 323, 0)
attempt("open_by_handle_at", call, 304, -100, 0, 0)
attempt("io_uring_setup", call, 425, 8, ctypes.byref((ctypes.c_char * 120)()))
attempt("ptrace", call, 101, 0x4206, 1, 0, 0)
attempt("init", lambda: os.stat("/proc/1").st_uid)
attempt("setuid", os.setuid, 0)
attempt("kexec", call, 246, 0, 0, 0, 0)
attempt("init_module", call, 175, 0, 0, 0)
attempt("core_pattern", lambda: open("/proc/sys/kernel/core_pattern", "w"))
attempt("sysrq", lambda: open("/proc/sysrq-trigger", "w"))
attempt("devices", lambda: sorted(name for name in os.listdir("/dev") if not os.path.islink("/dev/" + name)))
for path in glob.glob("/sys/fs/cgroup/*/release_agent") + ["/sys/fs/cgroup/memory/x", "/sys/kernel/uevent_helper"]:
    attempt("write " + path, lambda: open(path, "w"))
"""
    )
    rig.succeeded(spec)
    found = rig.attempts(spec)
    status = {name: value.strip() for name, value in found.pop("status")["found"].items()}
    assert {status[name] for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert status["Uid"].split() == status["Gid"].split() == ["10001"] * 4
    assert set(found.pop("groups")["found"]) <= {10001}
    # Its own init is a program of the same user: to trace that gains nothing. Which engines' profiles let io_uring
    # through depends on their version.
    assert found.pop("init")["found"] == 10001
    del found["ptrace"], found["io_uring_setup"]
    ordinary = {"core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout"}
    assert set(found.pop("devices")["found"]) <= ordinary | {"tty", "urandom", "zero"}
    for name, attempt in found.items():
        assert attempt["error"] in ("EPERM", "ENOSYS", "EROFS", "EACCES", "ENOENT"), attempt
        assert attempt["error"] != "ENOENT" or name == "sysrq" or name.startswith("write /sys"), attempt
    assert CORE_PATTERN.read_text() == before


def test_27_a_helper_that_is_setuid_root_stays_a_user(rig: HostileRig) -> None:
    algo = rig.algo_of("RUN cp /usr/bin/id /usr/bin/rootid && chmod 6755 /usr/bin/rootid")
    spec = rig.learn(
        algo=algo,
        train="attempt('mode', lambda: os.stat('/usr/bin/rootid').st_mode & 0o7777)\n"
        "attempt('id', lambda: subprocess.run(['/usr/bin/rootid', '-u'], capture_output=True, text=True).stdout)",
    )
    rig.succeeded(spec)
    found = rig.attempts(spec)
    assert found["mode"]["found"] == 0o6755
    assert found["id"]["found"] == "10001\n"


@contextmanager
def _events(rig: HostileRig) -> Iterator[list[dict[str, Any]]]:
    """Record what the engine says that it does."""
    events: list[dict[str, Any]] = []
    began = time.time()
    yield events
    events += rig.engine.events(since=int(began), until=int(time.time()) + 1, decode=True)


def test_16_31_32_of_a_whole_job_the_engine_is_asked_for_nothing_dangerous(rig: HostileRig) -> None:
    """No exec, copy, archive, commit; no terminal; no network; no folder that two containers may write to at once."""
    seen: dict[str, dict[str, Any]] = {}
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            for container in rig.engine.containers():
                if container["Id"] not in seen:
                    seen[container["Id"]] = rig.engine.inspect_container(container["Id"])

    looking = threading.Thread(target=look)
    looking.start()
    with _events(rig) as events:
        for spec in [rig.learn(train="time.sleep(0.5)", perf="time.sleep(0.5)") for _ in range(2)]:
            rig.succeeded(spec)
    over.set()
    looking.join()
    actions = {event["Action"].partition(":")[0] for event in events if event["Type"] == "container"}
    assert actions <= {"create", "attach", "start", "die", "destroy", "kill", "oom"}
    assert not {event["Action"] for event in events if event["Type"] == "network"} - {"connect", "disconnect"}
    assert len(seen) >= 4
    writable: list[str] = []
    for container in seen.values():
        host, config = container["HostConfig"], container["Config"]
        assert (config["Tty"], config["OpenStdin"], host["Privileged"], host["ReadonlyRootfs"]) == (
            False,
            False,
            False,
            True,
        )
        assert (host["NetworkMode"], host["Devices"] or [], host["CapAdd"] or []) == ("none", [], [])
        assert not any("seccomp" in option for option in host["SecurityOpt"])  # the engine's own profile stays on
        assert "/proc/kcore" in host["MaskedPaths"]
        assert "/proc/sys" in host["ReadonlyPaths"]
        writable += [mount["Source"] for mount in container["Mounts"] if mount["RW"]]
    assert len(writable) == len(set(writable))


def test_31_a_device_of_the_image_that_is_a_link_changes_nothing_here(rig: HostileRig) -> None:
    before = CORE_PATTERN.read_text()
    algo = rig.algo_of("RUN rm -f /dev/null /dev/console; ln -s /proc/sys/kernel/core_pattern /dev/null; true")
    for _ in range(5):
        rig.wait(rig.learn(algo=algo, train="open('/dev/null', 'w').write('|/evil')"))
    assert CORE_PATTERN.read_text() == before
