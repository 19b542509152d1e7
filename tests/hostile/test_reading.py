"""Cases 1 to 7, 9 and 11 to 14: reading or borrowing what is hidden."""

from __future__ import annotations

import hashlib
import re
from uuid import UUID

import pytest

from morpheo.models import ArtifactKind, Cause, JobState, StepName
from tests.hostile.rig import HostileRig, find_canaries

pytestmark = pytest.mark.docker

#: Looks into every file that can be read, and says where a word is.
_SWEEP = """
def sweep(word):
    found = []
    for top, folders, names in os.walk("/"):
        folders[:] = [name for name in folders if os.path.join(top, name) not in ("/proc", "/sys", "/usr")]
        for name in names:
            path = os.path.join(top, name)
            try:
                if stat.S_ISREG(os.stat(path).st_mode):
                    with open(path, "rb") as file:
                        if word in file.read(1 << 20):
                            found.append(path)
            except OSError:
                pass
    return found
"""

#: Writes what is no honest prediction in the place of one: `hdf5` makes a file for `h5py` to follow.
_HDF5 = """
import h5py, numpy
def honest_hdf5(path, value):
    with h5py.File(path, "w") as file:
        file["stages"] = numpy.bytes_(value)
        file["stages"].attrs["unit"] = "s"
        file.create_group("more")["table"] = numpy.arange(1000.0).reshape(10, 100)
"""


def predictions(body: str) -> str:
    """Return an attack that does something with each prediction of the test set; `path` is its place."""
    inner = "\n".join(f"    {line}" for line in body.splitlines())
    return f"{_HDF5}\nfor name in files('/data/test'):\n    path = '/data/test/pred/' + name\n{inner}\n"


def test_01_02_no_file_has_what_is_hidden_and_mounts_are_those_of_the_contract(rig: HostileRig) -> None:
    """The test set without its targets has the same names; words of train files are found, so the sweep works."""
    hidden, train = rig.canaries.hidden, rig.canaries.train
    # The words themselves come in two halves, or the attack would find its own source.
    attack = f"""{_SWEEP}
attempt("hidden", sweep, ("{hidden[:16]}" + "{hidden[16:]}").encode())
attempt("node", sweep, ("{rig.canaries.node[:16]}" + "{rig.canaries.node[16:]}").encode())
attempt("train", sweep, ("{train[:16]}" + "{train[16:]}").encode())
attempt("mounts", lambda: [line.split()[1] for line in open("/proc/mounts")])
attempt("test", lambda: (files("/data/test"), [open("/data/test/" + name).read() for name in files("/data/test")]))
attempt("data", os.listdir, "/data")
"""
    before = {data_id: _sha256(rig, data_id) for data_id in rig.test_data}
    spec = rig.learn(train=attack)
    rig.succeeded(spec)
    found = rig.attempts(spec)
    assert found["hidden"]["found"] == found["node"]["found"] == []
    assert len(found["train"]["found"]) == 3
    ours = {mount for mount in found["mounts"]["found"] if not re.match(r"/(proc|sys|dev)(/|$)|/$", mount)}
    expected = {"/data/train", "/data/train/pred", "/data/test", "/data/test/pred", "/data/model", "/tmp"}
    engines = {"/etc/resolv.conf", "/etc/hostname", "/etc/hosts", "/sbin/docker-init", "/usr/sbin/docker-init"}
    assert expected <= ours <= expected | engines
    names, contents = found["test"]["found"]
    assert sorted(names) == sorted(map(str, rig.test_data))
    assert not find_canaries("".join(contents).encode(), [hidden])
    assert sorted(found["data"]["found"]) == ["model", "test", "train"]
    assert {data_id: _sha256(rig, data_id) for data_id in rig.test_data} == before


def _sha256(rig: HostileRig, data_id: UUID) -> str:
    return hashlib.sha256(rig.storage.read(ArtifactKind.DATA, data_id)).hexdigest()


def test_03_a_prediction_that_is_a_link_is_refused_before_it_is_scored(rig: HostileRig) -> None:
    targets = ("/hidden/test/x", "../../../hidden", "/proc/self/fd/3", "/proc/self/root/etc/passwd", "/data/train")
    attacks = {target: predictions(f"os.unlink(path); os.symlink({target!r}, path)") for target in targets}
    for job in rig.all_failed(attacks, Cause.BAD_OUTPUT).values():
        assert "is a link" in job.failure.message  # type: ignore[union-attr]
        assert StepName.PERF not in {step.name for step in job.attempts[0].steps}


def test_03_the_folder_of_predictions_cannot_be_replaced(rig: HostileRig) -> None:
    spec = rig.learn(
        train="attempt('rename', os.rename, '/data/test/pred', '/data/test/old')\n"
        "attempt('unlink', os.rmdir, '/data/model')\nattempt('symlink', os.symlink, '/etc', '/data/test/pred2')"
    )
    rig.succeeded(spec)
    found = rig.attempts(spec)
    assert set(found) == {"rename", "unlink", "symlink"}
    assert {attempt["error"] for attempt in found.values()} <= {"EBUSY", "EROFS"}


ELSEWHERE = "'/' + os.environ.get('HIDDEN', 'hidden') + '/test/' + name"


_LEADS_ELSEWHERE = {
    "link": f"with h5py.File(path, 'w') as f: f['stages'] = h5py.ExternalLink({ELSEWHERE}, 'stages')",
    "fd-3": "with h5py.File(path, 'w') as f: f['stages'] = h5py.ExternalLink('/proc/self/fd/3', 'stages')",
    "fd-9": "with h5py.File(path, 'w') as f: f['stages'] = h5py.ExternalLink('/proc/self/fd/9', 'stages')",
    "relative": "with h5py.File(path, 'w') as f: f['stages'] = h5py.ExternalLink('other', 'stages')",
    "soft": "with h5py.File(path, 'w') as f: f['stages'] = h5py.SoftLink('/more')",
    "virtual": (
        "with h5py.File(path, 'w') as f:\n"
        "    layout = h5py.VirtualLayout((8,), 'u1')\n"
        f"    layout[:] = h5py.VirtualSource({ELSEWHERE}, 'stages', (8,))\n"
        "    f.create_virtual_dataset('stages', layout)"
    ),
    "external": (
        f"with h5py.File(path, 'w') as f:\n    f.create_dataset('stages', (8,), 'u1', external=[({ELSEWHERE}, 0, 8)])"
    ),
    "reference": (
        "with h5py.File(path, 'w') as f:\n"
        "    f['a'] = 1\n"
        "    f.create_dataset('stages', data=f['a'].ref, dtype=h5py.ref_dtype)"
    ),
    "userblock": "with h5py.File(path, 'w', userblock_size=512) as f: f['stages'] = h5py.ExternalLink('a', 'b')",
    "damaged": "with open(path, 'wb') as f: f.write(HDF5 + os.urandom(2000))",
    "truncated": ("honest_hdf5(path, '1')\nos.truncate(path, os.path.getsize(path) - 4000)"),
}


def test_04_05_an_hdf5_prediction_that_leads_elsewhere_is_refused(rig: HostileRig) -> None:
    attacks = {name: predictions(body) for name, body in _LEADS_ELSEWHERE.items()}
    for name, job in rig.all_failed(attacks, Cause.BAD_OUTPUT).items():
        assert job.failure is not None
        assert "an HDF5 prediction could not be copied" in job.failure.message, name
        assert job.attempts[0].steps[-1].name is StepName.SANITIZE, name


def test_04_an_honest_hdf5_prediction_is_scored_as_the_same_text(rig: HostileRig) -> None:
    attack = predictions("honest_hdf5(path, read(path))")
    spec = rig.learn(train=attack)
    job = rig.succeeded(spec)
    assert job.scores is not None
    assert job.scores.perf == rig.baseline
    assert StepName.SANITIZE in {step.name for step in job.attempts[0].steps}


def test_07_the_hidden_data_is_elsewhere_in_each_job(rig: HostileRig) -> None:
    """A problem image that knows nothing of it scores all the same."""
    paths = []
    for _ in range(2):
        spec = rig.learn()
        rig.succeeded(spec)
        paths += re.findall(r"^perf (/hidden-[0-9a-f]{32})$", rig.log(spec), re.MULTILINE)
    assert len(set(paths)) == 2


def test_06_the_problems_image_can_reach_nothing_and_change_nothing_but_its_scores(rig: HostileRig) -> None:
    """What opens itself (a pickle) is its own affair: whatever it does, it does without a network and read-only."""
    spec = rig.learn(
        perf=f"port = {rig.sink.port}"
        """
hidden = args.i + "/test/"
for name in files(hidden):
    attempt("write " + name, lambda: open(hidden + name, "a"))
attempt("train", lambda: open("/submission_data/train/x", "w"))
attempt("prediction", lambda: open("/submission_data/test/pred/x", "w"))
attempt("interfaces", os.listdir, "/sys/class/net")
attempt("connect", socket.create_connection, ("127.0.0.1", port), 2)
"""
    )
    rig.succeeded(spec)
    found = rig.attempts(spec)
    assert found.pop("interfaces")["found"] == ["lo"]
    assert found.pop("connect")["error"] == "ECONNREFUSED"  # of its own loopback interface
    assert {attempt["error"] for attempt in found.values()} <= {"EROFS", "EACCES"}
    assert len(found) == 4


def test_09_jobs_at_the_same_time_see_nothing_of_each_other(rig: HostileRig) -> None:
    attack = """
attempt("above", lambda: (os.listdir("/data"), os.listdir("/data/..")))
attempt("mine", lambda: open("/data/model/mine", "w").write(args.V))
time.sleep(1)
attempt("model", os.listdir, "/data/model")
attempt("processes", lambda: [open(path, "rb").read().decode() for path in glob.glob("/proc/[0-9]*/cmdline")])
"""
    specs = [rig.learn(train=attack), rig.learn(train=attack)]
    for spec in specs:
        rig.succeeded(spec)
        found = rig.attempts(spec)
        inside, root = found["above"]["found"]
        assert sorted(inside) == ["model", "test", "train"]
        assert not {str(other.id) for other in specs} & set(root)
        assert sorted(found["model"]["found"]) == ["mine", "model_trained.json"]
        assert sum("program.py" in line for line in found["processes"]["found"]) <= 2  # itself, and its init


def test_11_to_14_there_is_nothing_to_borrow_in_a_container(rig: HostileRig) -> None:
    """No credential, socket, shared memory, key or kernel file."""
    spec = rig.learn(
        train="""
attempt("environment", lambda: dict(os.environ))
attempt("environments", lambda: [open(path, "rb").read().decode() for path in glob.glob("/proc/[0-9]*/environ")])
attempt("resolver", lambda: open("/etc/resolv.conf").read())
attempt("hosts", lambda: open("/etc/hosts").read() if os.path.exists("/etc/hosts") else "")
attempt("hostname", socket.gethostname)
def sockets():
    found = []
    for top, folders, names in os.walk("/"):
        folders[:] = [name for name in folders if os.path.join(top, name) not in ("/proc", "/sys")]
        found += [os.path.join(top, name) for name in names if stat.S_ISSOCK(os.lstat(os.path.join(top, name)).st_mode)]
    return found
attempt("sockets", sockets)
attempt("unix", lambda: open("/proc/net/unix").read().splitlines()[1:])
for name in ("shm", "sem", "msg"):
    attempt("sysv " + name, lambda: open("/proc/sysvipc/" + name).read().splitlines()[1:])
attempt("shm", os.listdir, "/dev/shm")
attempt("mqueue", os.listdir, "/dev/mqueue")
attempt("keys", lambda: open("/proc/keys").read())
attempt("keyctl", call, 250, 0, -3, 1)
open("/dev/shm/left", "w").write("x")
for path in ("/proc/kcore", "/proc/timer_list", "/proc/sched_debug", "/proc/kmsg", "/dev/kmsg", "/dev/mem"):
    attempt(path, lambda: len(open(path, "rb").read(100)))
attempt("firmware", os.listdir, "/sys/firmware")
attempt("dmesg", call, 103, 3, 0, 0)
"""
    )
    rig.succeeded(spec)
    found = rig.attempts(spec)
    text = rig.log(spec)
    for word in ("AWS_", "DATABASE_", "REDIS", "MORPHEO_", "S3_", rig.canaries.node):
        assert word not in text, word
    assert set(found["environment"]["found"]) <= {"PATH", "HOME", "HOSTNAME", "LANG", "LC_CTYPE", "PYTHON_VERSION"} | {
        name for name in found["environment"]["found"] if name.startswith(("PYTHON", "GPG_KEY"))
    }
    assert set(re.findall(r"nameserver (\S+)", found["resolver"]["found"] or "")) <= {"127.0.0.1"}
    assert set(re.findall(r"^([\d.]+)", found["hosts"]["found"], re.MULTILINE)) <= {"127.0.0.1"}
    assert found["hostname"]["found"] == "job"
    for name in ("sockets", "unix", "sysv shm", "sysv sem", "sysv msg", "shm", "mqueue"):
        assert found[name]["found"] == [], name
    assert not found["keys"]["found"]
    assert found["keyctl"]["error"] == "EPERM"
    for name in ("/proc/kcore", "/proc/timer_list", "/proc/sched_debug", "/proc/kmsg", "/dev/kmsg", "/dev/mem"):
        assert found[name]["error"] in ("ENOENT", "EACCES", "EPERM") or found[name]["found"] == 0, found[name]
    assert found["firmware"]["found"] == []
    assert found["dmesg"]["error"] == "EPERM"
    again = rig.learn(train="attempt('shm', os.listdir, '/dev/shm')")
    rig.succeeded(again)
    assert rig.attempts(again)["shm"]["found"] == []


def test_59_an_hdf5_file_that_declares_more_than_it_has_is_refused(rig: HostileRig) -> None:
    body = (
        "with h5py.File(path, 'w') as f: f.create_dataset('stages', (1 << 37,), 'u1', chunks=(1 << 20,), "
        "compression='gzip')"
    )
    job = rig.failed(rig.learn(train=predictions(body)), Cause.OUTPUT_LIMIT)
    assert job.state is JobState.FAILED
    assert "more bytes than are allowed" in job.failure.message  # type: ignore[union-attr]
