"""Archives that bomb, climb out or pretend: cases 57, 58 and 61 to 67."""

from __future__ import annotations

import gzip
import os
import tarfile
import threading
import zlib
from collections.abc import Iterable
from pathlib import Path
from uuid import UUID

import pytest

from morpheo.errors import BadOutput
from morpheo.models import ArtifactKind, Cause, Job, LearnSpec
from morpheo.runtime.outputs import harvest_files
from tests.hostile import payload
from tests.hostile.rig import HostileRig
from tests.support.tars import END, header, link, longname, member, pax, raw_pax, tar_gz

pytestmark = pytest.mark.docker

DOCKERFILE = member("Dockerfile", f'FROM {payload.BASE}\nENTRYPOINT ["true"]\n'.encode())
GIB = 1 << 30
#: What an archive would write outside of its folder.
ESCAPED = "escaped-from-its-archive"


def algo(rig: HostileRig, content: bytes) -> UUID:
    return rig.upload(ArtifactKind.ALGO, content, name="hostile")


def refuse_all(rig: HostileRig, contents: Iterable[bytes], cause: Cause = Cause.BAD_ARCHIVE) -> list[str]:
    """Order a job for each archive of an algo; each must be refused, with one of these sentences returned."""
    specs = [rig.learn(algo=algo(rig, content)) for content in contents]
    return [message(rig.failed(spec, cause)) for spec in specs]


def message(job: Job) -> str:
    assert job.failure is not None
    return job.failure.message


def escaped(rig: HostileRig) -> list[str]:
    folders = (str(rig.data_dir), "/tmp", "/etc", "/root")
    walked = (entry for folder in folders for entry in os.walk(folder))
    return [f"{at}/{name}" for at, *inside in walked for names in inside for name in names if ESCAPED in name]


def zeros(length: int) -> bytes:
    """Return a raw deflate stream of zeros that does not end, 1000 times smaller; made at once."""
    step = 64 << 20
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    piece = packer.compress(bytes(step)) + packer.flush(zlib.Z_FULL_FLUSH)
    return piece * (length // step)


def test_57_gzip_bombs(rig: HostileRig) -> None:
    huge = header("zeros", size=10 * GIB)
    head = gzip.compress(huge)
    start = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    one = start + packer.compress(huge) + packer.flush(zlib.Z_FULL_FLUSH) + zeros(10 * GIB)
    many = head + gzip.compress(bytes(64 << 20)) * 160
    empty = gzip.compress(b"", mtime=0) * 100_000
    nested = tar_gz(DOCKERFILE, member("inner.tar.gz", gzip.compress(bytes(64 << 20))))
    said = refuse_all(rig, [one, many, empty, tar_gz(DOCKERFILE) + b"garbage", tar_gz(DOCKERFILE) + many])
    assert [text for text in said[:2] if "more than 200 times its size" not in text] == []
    assert "damaged" in said[3]
    # A bomb inside an archive is a file like any other: nobody unpacks it.
    rig.failed(rig.learn(algo=algo(rig, nested)), Cause.MISSING_OUTPUT)


def test_58_tar_bombs(rig: HostileRig) -> None:
    many = [header(f"f{number:06}") for number in range(20_000)]
    archives = [
        tar_gz(DOCKERFILE, *many),
        tar_gz(DOCKERFILE, *[header("./", kind=tarfile.DIRTYPE)] * 100_000),
        tar_gz(DOCKERFILE, *[raw_pax(b"", tarfile.XGLTYPE)] * 100_000),
        tar_gz(DOCKERFILE, pax(size=str(1 << 60).encode()), header("a")),
        tar_gz(DOCKERFILE, header("a", size=1 << 60)),
        tar_gz(DOCKERFILE, header("././@LongLink", size=2 * GIB, kind=tarfile.GNUTYPE_LONGNAME)),
        tar_gz(DOCKERFILE, header("pax", size=2 * GIB, kind=tarfile.XHDTYPE)),
        tar_gz(DOCKERFILE, header("a", size=-1024)),  # CVE-2025-8194: back, again and again
        tar_gz(DOCKERFILE, header("pax", size=-512, kind=tarfile.XHDTYPE)),
        tar_gz(DOCKERFILE, pax(GNU__sparse__major=b"1", GNU__sparse__realsize=str(1 << 50).encode()), member("a")),
        tar_gz(DOCKERFILE, header("a", kind=tarfile.GNUTYPE_SPARSE, size=1 << 40)),
        gzip.compress(DOCKERFILE + header("a", size=4096)),
        gzip.compress(DOCKERFILE[:700]),
    ]
    refuse_all(rig, archives)


NAMES: dict[str, bytes] = {
    "up": b"../" + ESCAPED.encode(),
    "absolute": b"/tmp/" + ESCAPED.encode(),
    "down-and-up": b"a/../../" + ESCAPED.encode(),
    "drive": b"C:\\" + ESCAPED.encode(),
    "backslash": b"..\\" + ESCAPED.encode(),
    "zero": b"a\0" + ESCAPED.encode(),
    "line-end": b"a\n" + ESCAPED.encode(),
    "256-bytes": b"n" * 256,
    "not-utf8": b"\xff\xfe",
    "dot": b".",
    "deep": b"/".join([b"d"] * 100),
}
TWICE = {
    "twice": [member("a"), member("a")],
    "twice-in-other-words": [member("a"), member("./a")],
    "file-then-folder": [member("a"), member("a/b")],
    "folder-then-file": [member("a/b"), member("a")],
}


def test_61_names(rig: HostileRig) -> None:
    archives = [tar_gz(DOCKERFILE, pax(path=name), member("x")) for name in NAMES.values()]
    archives += [tar_gz(DOCKERFILE, longname(name), member("x")) for name in (NAMES["up"], NAMES["absolute"])]
    archives += [tar_gz(DOCKERFILE, *parts) for parts in TWICE.values()]
    refuse_all(rig, archives)
    # What is odd only is a name like any other.
    odd = [member(name, b"x") for name in ("-rf", "*", "$(id)", "\u202egnp.exe", "A", "a", " ")]
    program = member("program.py", b"")
    copied = member("Dockerfile", f'FROM {payload.BASE}\nCOPY . /x/\nENTRYPOINT ["sh", "-c", "ls -N /x"]\n'.encode())
    spec = rig.learn(algo=algo(rig, tar_gz(copied, program, *odd)))
    rig.failed(spec, Cause.MISSING_OUTPUT)
    assert {"-rf", "*", "$(id)", "A", "a"} <= set(rig.log(spec).splitlines())
    assert escaped(rig) == []


def through(target: str) -> list[bytes]:
    return [link("l", target), member(f"l/{ESCAPED}", b"x")]


LINKS = {
    "write-through": through("."),
    "write-through-to-the-root": through("/"),
    "write-through-upwards": through(".."),
    "absolute": [link("l", "/etc/shadow")],
    "upwards": [link("a/l", "../../x")],
    "through-another": [link("a/b/s", "../.."), link("t", "a/b/s/../x")],
    "hard-to-outside": [header("h", kind=tarfile.LNKTYPE, link="/etc/shadow")],
    "hard-to-inside": [member("a"), header("h", kind=tarfile.LNKTYPE, link="a")],
    # CVE-2025-4517: a chain whose resolved path is longer than PATH_MAX.
    "chain": [
        *[
            part
            for number in range(15)
            for part in (pax(linkpath=b"d" * 200), link("/".join([*"abcdefghijklmno"[:number], "l"]), "x"))
        ],
        link("out", "/".join(["l"] * 16) + "/" + "../" * 16),
        member(f"out/{ESCAPED}", b"x"),
    ],
}


def test_62_links(rig: HostileRig) -> None:
    refuse_all(rig, [tar_gz(DOCKERFILE, *parts) for parts in LINKS.values()])
    assert escaped(rig) == []


def test_63_devices_and_modes(rig: HostileRig) -> None:
    kinds = (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"V")
    refuse_all(rig, [tar_gz(DOCKERFILE, header("x", kind=kind)) for kind in kinds])
    text = f'FROM {payload.BASE}\nCOPY x /x\nENTRYPOINT ["sh", "-c", "stat -c mode-%a-%u /x"]\n'.encode()
    spec = rig.learn(algo=algo(rig, tar_gz(member("Dockerfile", text), header("x", mode=0o7777))))
    rig.failed(spec, Cause.MISSING_OUTPUT)
    assert "mode-755-0" in rig.log(spec)


def dockerfile(content: bytes) -> bytes:
    return tar_gz(member("Dockerfile", content))


GOOD = f'FROM {payload.BASE}\nENTRYPOINT ["true"]\n'.encode()


def test_64_what_a_dockerfile_may_be(rig: HostileRig) -> None:
    archives = {
        tar_gz(link("Dockerfile", "/etc/shadow")): "leads out",
        tar_gz(link("Dockerfile", "x"), member("x", GOOD)): "must be a file",
        tar_gz(header("Dockerfile/", kind=tarfile.DIRTYPE)): "must be a file",
        tar_gz(member("x", GOOD)): "no Dockerfile at the root of the archive; pack the files",
        tar_gz(member("x/Dockerfile", GOOD)): "no Dockerfile at the root of the archive; pack the files",
        tar_gz(member("dockerfile", GOOD)): "no Dockerfile at the root of the archive; pack the files",
        dockerfile(b"\xef\xbb\xbf" + GOOD): "save it without",
        dockerfile(GOOD.decode().encode("utf-16")): "save it as such",
        dockerfile(b"#" * (10 << 20)): "longer than 65536 bytes; COPY a script",
        dockerfile(GOOD.replace(b"\n", b"\r")): "white space other than",
    }
    for said, sentence in zip(refuse_all(rig, archives), archives.values(), strict=True):
        assert sentence in said
    # Line ends of Windows are fine.
    rig.failed(rig.learn(algo=algo(rig, dockerfile(GOOD.replace(b"\n", b"\r\n")))), Cause.MISSING_OUTPUT)


def test_65_what_dockerignore_does(rig: HostileRig) -> None:
    many = b"".join(b"p%d\n" % number for number in range(1_000_000))
    refuse_all(
        rig,
        [
            tar_gz(DOCKERFILE, member(".dockerignore", many)),
            tar_gz(DOCKERFILE, link(".dockerignore", "big"), member("big", b"a\n" * 100_000)),
        ],
    )
    stars = (b"**/" * 5000 + b"x\n") * 4
    for content in (b"Dockerfile\n.dockerignore\n", b"*\n", stars, b"[\n", b"!\n"):
        spec = rig.learn(algo=algo(rig, tar_gz(DOCKERFILE, member(".dockerignore", content), member("a"))))
        # Some patterns are none: the engine says so, and nothing else happens.
        rig.failed(spec, Cause.MISSING_OUTPUT, Cause.BUILD_FAILED)


FLIP = """
import multiprocessing
def flip(path):
    os.setsid()
    while True:
        try:
            os.unlink(path)
            os.symlink({target!r}, path)
            os.unlink(path)
            with open(path, "w") as file:
                json.dump("1", file)
        except OSError:
            pass
for name in files(args.V + "/test"):
    if os.fork() == 0:
        flip(args.V + "/test/pred/" + name)
time.sleep(0.2)
"""


def test_66_a_prediction_that_is_a_file_or_a_link(rig: HostileRig) -> None:
    for _ in range(3):
        spec = rig.learn(train=FLIP.format(target=str(rig.data_dir / "canary")))
        job = rig.wait(spec)
        # Its writer is killed at any moment: what is there then may be a link, nothing, or a file that is still empty.
        ends = (Cause.BAD_OUTPUT, Cause.MISSING_OUTPUT, Cause.EXIT_CODE)
        assert job.failure is None or job.failure.cause in ends, job.failure


def test_66_what_flips_while_it_is_harvested_leaks_nothing(tmp_path: Path) -> None:
    """200 times, without the container that has ended by then: even a race would be lost."""
    secret, folder, beside = tmp_path / "secret", tmp_path / "pred", tmp_path / "beside"
    secret.write_text("secret")
    folder.mkdir()
    beside.mkdir()
    ended = threading.Event()

    def flip() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            made = beside / "made"
            if number % 2:
                made.symlink_to(secret)
            else:
                made.write_text("honest")
            made.rename(folder / "one")

    flipping = threading.Thread(target=flip)
    flipping.start()
    contents = set()
    try:
        for number in range(200):
            target = tmp_path / str(number)
            target.mkdir()
            try:
                harvest_files(folder, target, names={"one"}, max_bytes=100)
            except BadOutput:
                continue
            contents |= {path.read_text() for path in target.iterdir()}
    finally:
        ended.set()
        flipping.join()
    assert contents <= {"honest"}
    assert not any(path.is_symlink() for path in tmp_path.glob("[0-9]*/one"))


def next_rank(rig: HostileRig, content: bytes) -> LearnSpec:
    """Order the next rank of a chain whose model is this archive."""
    model = rig.upload(ArtifactKind.MODEL, content, algo=rig.algo)
    return rig.learn(rank=1, model_start=model)


def test_67_a_model_that_attacks_the_next_rank(rig: HostileRig) -> None:
    good = member("model_trained.json", b"{}")
    parts = [[pax(path=name), member("x")] for name in NAMES.values()]
    parts += [*TWICE.values(), *LINKS.values(), [link("l", "x")]]
    parts += [[header("x", kind=kind)] for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)]
    specs = [next_rank(rig, tar_gz(good, *part)) for part in parts]
    for spec in specs:
        assert "the archive of model" in message(rig.failed(spec, Cause.BAD_ARCHIVE))
    assert escaped(rig) == []
    # One with odd modes is a model like any other.
    odd = tar_gz(header("d/", kind=tarfile.DIRTYPE, mode=0o7777), good, header("d/x", mode=0o6777), end=END)
    model = rig.upload(ArtifactKind.MODEL, odd, algo=rig.algo)
    look = "attempt('mode', lambda: [oct(os.stat(args.V + '/model/' + name).st_mode) for name in ('d', 'd/x')])"
    spec = rig.learn(rank=1, model_start=model, train=look)
    rig.succeeded(spec)
    assert rig.attempts(spec)["mode"]["found"] == ["0o40755", "0o100644"]
