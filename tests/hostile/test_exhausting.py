"""Cases 38, 40 to 43, 45, 46, 48, 50 to 56 and 60: exhaustion. Case 59 is in `test_reading`."""

from __future__ import annotations

import os
import time

import pytest
from sqlalchemy import update

from morpheo.models import Cause, JobState
from morpheo.storage.tables import JobRow
from tests.hostile.rig import LIMIT_S, LOG_BYTES, MIB, OUTPUT_BYTES, PIDS, PREDICTION_BYTES, HostileRig

pytestmark = pytest.mark.docker


def test_38_41_forks_and_spinning_stay_where_they_are(rig: HostileRig) -> None:
    spec = rig.learn(
        train="""
children = []
def forks(work):
    while True:
        pid = os.fork()
        if pid == 0:
            work()
        children.append(pid)
attempt("fork", forks, signal.pause)
attempt("children", lambda: len(children))
for pid in children:
    os.kill(pid, 9)
    os.waitpid(pid, 0)
until = time.monotonic() + 2
for _ in range(4):
    if os.fork() == 0:
        while time.monotonic() < until:
            pass
        os._exit(0)
for _ in range(4):
    os.wait()
"""
    )
    benign = rig.learn()
    rig.succeeded(benign)
    rig.succeeded(spec)
    found = rig.attempts(spec)
    assert found["fork"]["error"] == "EAGAIN"
    assert 0 < found["children"]["found"] < PIDS
    assert rig.compute.job(spec.id).attempt == 1  # its lease was renewed all the time


def test_40_memory_ends_at_the_limit(rig: HostileRig) -> None:
    attacks = {
        "heap": "hog = []\nwhile True: hog.append(bytearray(os.urandom(1 << 16)) * 160)",
        "shared": (
            "for n in range(15): open('/dev/shm/%d' % n, 'wb').write(bytes(4 << 20))\nhog = os.urandom(110 << 20)"
        ),
    }
    rig.all_failed(attacks, Cause.OUT_OF_MEMORY)


_FILL = """
def fill(folder):
    size = 0
    try:
        while True:
            with open(folder + "/fill%d" % size, "wb") as file:
                for _ in range(2):
                    file.write(b"x" * (1 << 20))
                    file.flush()
                    size += 1
    except OSError as exc:
        return size, errno.errorcode[exc.errno]
def flood(folder):
    count = 0
    try:
        while count < 200_000:
            os.close(os.open(folder + "/i%d" % count, os.O_CREAT | os.O_WRONLY))
            count += 1
    except OSError as exc:
        return count, errno.errorcode[exc.errno]
    return count, None
"""


def test_42_43_bytes_and_files_end_at_the_quota(rig: HostileRig) -> None:
    """Each writable place; what is written goes with the job."""
    free = os.statvfs(rig.data_dir)
    spec = rig.learn(
        train=_FILL
        + """
for folder in ("/tmp", "/data/model", "/data/test/pred", "/data/train/pred", "/", "/data", "/var/tmp", "/run"):
    attempt(folder, fill, folder)
    for path in glob.glob(folder + "/fill*"):
        os.unlink(path)
for folder in ("/tmp", "/data/model", "/data/test/pred"):
    attempt("files " + folder, flood, folder)
attempt("full", fill, "/data/model")
sys.exit(1)
"""
    )
    job = rig.failed(spec, Cause.OUTPUT_LIMIT)
    assert "filled its output folders" in job.failure.message  # type: ignore[union-attr]
    found = {name: attempt["found"] for name, attempt in rig.attempts(spec).items()}
    for folder in ("/", "/data", "/var/tmp", "/run"):
        assert found[folder] == [0, "EROFS"], folder
    assert found["/tmp"][1] == "ENOSPC"
    for folder in ("/data/model", "/data/test/pred", "/data/train/pred"):
        size, error = found[folder]
        assert error == "ENOSPC", folder
        assert OUTPUT_BYTES // MIB <= size <= 2 * OUTPUT_BYTES // MIB, folder
    for folder in ("/tmp", "/data/model"):
        count, error = found[f"files {folder}"]
        assert error == "ENOSPC", folder
        assert count < 70_000, folder
    after = os.statvfs(rig.data_dir)
    assert (free.f_bavail - after.f_bavail) * free.f_frsize < 200 * MIB  # others use this disk too


def test_45_46_a_flood_of_output_is_cut(rig: HostileRig) -> None:
    spec = rig.learn(
        train="""
until = time.monotonic() + 4
while time.monotonic() < until:
    os.write(1, b"x" * 65535 + b"\\n")
os.write(1, bytes(range(256)) * 1000)
"""
    )
    job = rig.wait(spec)
    assert job.state is JobState.SUCCEEDED, job.failure
    text = rig.log(spec)
    text.encode("utf-8")
    assert len(text.encode()) < 20 * LOG_BYTES


def test_48_a_program_that_hangs_is_killed_at_its_limit(rig: HostileRig) -> None:
    attacks = {
        "deaf": "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(600)",
        "stopped": "os.kill(os.getpid(), signal.SIGSTOP)",
    }
    for job in rig.all_failed(attacks, Cause.TIME_LIMIT).values():
        (train,) = (step for step in job.attempts[0].steps if step.name == "train")
        assert LIMIT_S <= (train.seconds or 0) < LIMIT_S + 10


def test_50_a_daemon_does_not_outlive_its_program(rig: HostileRig) -> None:
    spec = rig.learn(
        train="""
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True:
            open("/data/model/model_trained.json", "w").write(os.urandom(8).hex())
    os._exit(0)
"""
    )
    rig.wait(spec)
    assert rig.engine.containers() == []


_LEFT: dict[Cause, dict[str, str]] = {
    Cause.OUTPUT_LIMIT: {
        "51 deep": "os.chdir('/data/model')\nfor _ in range(3000):\n    os.mkdir('d')\n    os.chdir('d')",
        "52 wide": "[os.mkdir('/data/model/%d' % n) for n in range(150)]",
        "53 sparse": "[open('/data/model/%d' % n, 'wb').truncate(3 << 20) for n in range(2)]",
        "56 prediction": (f"open('/data/test/pred/' + files('/data/test')[0], 'wb').truncate({PREDICTION_BYTES + 1})"),
    },
    Cause.BAD_OUTPUT: {
        "53 link": "os.link('/data/model/model_trained.json', '/data/model/x')",
        "54 pipe": "os.mkfifo('/data/model/x')",
        "54 pipe for a prediction": (
            "path = '/data/test/pred/' + files('/data/test')[0]\nos.unlink(path)\nos.mkfifo(path)"
        ),
        "54 socket": "socket.socket(socket.AF_UNIX).bind('/data/model/x')",
        "61 name": "open('/data/model/new\\nline', 'w').close()",
    },
    Cause.MISSING_OUTPUT: {"70 no model": "os.unlink('/data/model/model_trained.json')"},
}


def test_51_to_56_what_is_left_behind_is_refused(rig: HostileRig) -> None:
    began = time.monotonic()
    for cause, attacks in _LEFT.items():
        rig.all_failed(attacks, cause)
    assert time.monotonic() - began < 120


def test_53_55_what_is_strange_and_harmless_is_taken(rig: HostileRig) -> None:
    attacks = (
        "open('/data/model/x', 'wb').truncate(3 << 20)",
        "attempt('size', lambda: open('/data/model/x', 'wb').truncate(1 << 40))\nos.unlink('/data/model/x')",
        "os.mkdir('/data/model/x')\nopen('/data/model/x/y', 'w').write('1')\nos.chmod('/data/model/x', 0)",
        "attempt('x', os.setxattr, '/data/model/model_trained.json', 'user.x', b'y' * 1000)",
    )
    specs = [rig.learn(train=attack) for attack in attacks]
    for spec in specs:
        rig.succeeded(spec)
    assert rig.attempts(specs[1])["size"]["error"] == "EFBIG"


def test_66_a_prediction_that_changes_into_a_link_is_taken_as_it_is_at_the_end(rig: HostileRig) -> None:
    """A process flips a file and a link until it is killed with its container; only then is anything read."""
    spec = rig.learn(
        train="""
path = "/data/test/pred/" + files("/data/test")[0]
if os.fork() == 0:
    while True:
        os.symlink("/proc/self/root/etc/passwd", "/data/test/pred/new")
        os.replace("/data/test/pred/new", path)
        open("/data/test/pred/new", "w").write('"1"')
        os.replace("/data/test/pred/new", path)
time.sleep(0.5)
"""
    )
    job = rig.wait(spec)
    assert job.state is JobState.SUCCEEDED or job.failure.cause is Cause.BAD_OUTPUT  # type: ignore[union-attr]


def test_60_who_orders_much_keeps_nobody_waiting_for_longer_than_a_job(rig: HostileRig) -> None:
    many = [rig.learn(train="time.sleep(2)") for _ in range(6)]
    with rig.database.engine.begin() as connection:
        connection.execute(update(JobRow).where(JobRow.id.in_([spec.id for spec in many])).values(owner="mallory"))
    honest = rig.succeeded(rig.learn())
    jobs = [rig.succeeded(spec) for spec in many]
    assert honest.started_at is not None
    later = [job for job in jobs if job.started_at is not None and job.started_at > honest.started_at]
    assert len(later) >= len(many) - 3  # two ran when it was ordered, and one more may have begun meanwhile
