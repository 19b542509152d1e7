"""
Reads submitted archives in a process of its own, which may do little: ``trust`` 5.6.

`morpheo.runtime.archive` refuses what it should by itself, within its limits. This is for what it does not know of: the
process has no environment, little memory, files and processor time, and a deadline, and is killed at each of them.
What it is asked for is on its command line, the archive is its standard input, and one line of JSON is its answer.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morpheo.errors import BadArchive, Unavailable
from morpheo.runtime.archive import ArchiveLimits, repack_context, unpack

if TYPE_CHECKING:  # the process that reads an archive imports as little as it can
    from morpheo.runtime.contract import Interrupt

#: Address space of the process, in bytes.
MEMORY_BYTES = 256 << 20
#: What it may take in any case, in seconds of processor time, and how many bytes it must read in each one after that.
LEAST_CPU_S = 30
BYTES_PER_CPU_S = 8 << 20
#: Its deadline is so many times its processor time: others work too.
PATIENCE = 4
_FILES = 32
#: What names and their folders may add to a plain tar.
_TAR_OVERHEAD = 4096
_ROOT = Path(__file__).parents[2]
_RAN_OUT = "reading it takes more time or memory than an archive may; pack fewer or smaller files"


def unpack_confined(packed: Path, folder: Path, limits: ArchiveLimits, interrupt: Interrupt | None = None) -> list[str]:
    """
    Unpack an archive into an empty folder, and return the names of its files.

    Raises:
        BadArchive: it breaks a limit or a rule; the folder then holds what came before.
        OSError: the files cannot be written.
        Unavailable: this machine is too slow to read it, or out of memory.
        Interrupted: the interrupt was set.
    """
    names = _in_process("unpack", packed, folder, limits, interrupt)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadArchive(_RAN_OUT)
    return names


def repack_confined(packed: Path, context: Path, limits: ArchiveLimits, interrupt: Interrupt | None = None) -> str:
    """
    Copy a build context, checked, into a plain tar; return the text of its Dockerfile.

    Raises:
        BadArchive: the archive breaks a limit or a rule, or has no usable Dockerfile at its root.
        OSError: the tar cannot be written.
        Unavailable: this machine is too slow to read it, or out of memory.
        Interrupted: the interrupt was set.
    """
    dockerfile = _in_process("repack", packed, context, limits, interrupt)
    if not isinstance(dockerfile, str):
        raise BadArchive(_RAN_OUT)
    return dockerfile


def _in_process(what: str, packed: Path, target: Path, limits: ArchiveLimits, interrupt: Interrupt | None) -> object:
    cpu_s = LEAST_CPU_S + limits.max_bytes // BYTES_PER_CPU_S
    command = [sys.executable, "-S", "-P", "-B", "-X", "utf8", "-m", __name__]
    command += [what, str(target), str(cpu_s), str(MEMORY_BYTES), json.dumps(asdict(limits))]
    deadline_s = PATIENCE * cpu_s
    with (
        packed.open("rb") as source,
        subprocess.Popen(
            command,
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PYTHONPATH": str(_ROOT)},
            cwd="/",
            start_new_session=True,
        ) as process,
        nullcontext() if interrupt is None else interrupt.calling(process.kill),
    ):
        try:
            answer, errors = process.communicate(timeout=deadline_s)
        except subprocess.TimeoutExpired:
            raise Unavailable(f"reading an archive took longer than {deadline_s} s; is this disk slow?") from None
        finally:
            process.kill()
    if interrupt is not None:
        interrupt.check()
    return _answer(process.returncode, answer, errors)


def _answer(returncode: int, answer: bytes, errors: bytes) -> object:
    if returncode == -signal.SIGKILL:
        raise Unavailable("the process that read an archive was killed; is this machine out of memory?")
    if returncode < 0:  # by its limits, or by what it read
        raise BadArchive(_RAN_OUT)
    if returncode:
        raise RuntimeError(f"the process that read an archive failed: {errors[-2000:].decode(errors='replace')}")
    said: dict[str, Any] = json.loads(answer)
    if "refused" in said:
        raise BadArchive(said["refused"])
    if "errno" in said:
        raise OSError(said["errno"], said["error"])
    return said["done"]


def _confine(limits: ArchiveLimits, *, cpu_s: int, memory_bytes: int) -> None:
    for kind, wanted in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, limits.max_bytes + _TAR_OVERHEAD * (limits.max_entries + 1)),
        (resource.RLIMIT_NOFILE, _FILES),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        most = resource.getrlimit(kind)[1]
        limit = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        # At the soft limit of processor time the signal is one of its own, at the hard one it is that of a kill.
        resource.setrlimit(kind, (limit, most if kind == resource.RLIMIT_CPU else limit))


def _main(what: str, target: Path, limits: ArchiveLimits) -> None:
    said: dict[str, object]
    try:
        if what == "unpack":
            said = {"done": unpack(sys.stdin.buffer, target, limits)}
        else:
            with target.open("wb") as file:
                said = {"done": repack_context(sys.stdin.buffer, file, limits)}
    except BadArchive as exc:
        said = {"refused": str(exc)}
    except (MemoryError, RecursionError):
        said = {"refused": _RAN_OUT}
    except OSError as exc:
        said = {"errno": exc.errno, "error": os.strerror(exc.errno or 0)}
    sys.stdout.write(json.dumps(said))


if __name__ == "__main__":
    _given = ArchiveLimits(**json.loads(sys.argv[5]))
    _confine(_given, cpu_s=int(sys.argv[3]), memory_bytes=int(sys.argv[4]))
    _main(sys.argv[1], Path(sys.argv[2]), _given)
