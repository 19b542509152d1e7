"""A container engine of the rig's own, which may be killed, stopped and started again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import psutil
from docker import APIClient

from tests.support.servers import PATIENCE_S, Server, wait_until


class Engine(Server):
    """
    A Docker engine without a network, on which containers live on while its daemon is away.

    Args:
        folder: For its images, containers and socket; with a short path.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.socket = folder / "docker.sock"
        self.url = f"unix://{self.socket}"
        self._exec_root = folder / "exec"
        settings = {
            "data-root": str(folder / "data"),
            "exec-root": str(self._exec_root),
            "pidfile": str(folder / "docker.pid"),
            "hosts": [self.url],
            "bridge": "none",
            "iptables": False,
            "ip6tables": False,
            "ip-forward": False,
            "live-restore": True,
            "log-driver": "json-file",
            "shutdown-timeout": 5,
        }
        (folder / "daemon.json").write_text(json.dumps(settings))
        command = ["dockerd", "--config-file", str(folder / "daemon.json")]
        super().__init__("dockerd", command, folder, self._answers)

    @staticmethod
    def can_be_made() -> bool:
        """Return whether this machine lets us run one."""
        return os.geteuid() == 0 and shutil.which("dockerd") is not None

    def client(self) -> APIClient:
        """Return a client without a proxy."""
        return APIClient(base_url=self.url, version="auto", timeout=60)

    def load(self, source: APIClient, tag: str) -> None:
        """Copy an image from another engine."""
        with contextlib.closing(self.client()) as client:
            for _ in client.load_image(source.get_image(tag), quiet=True):
                pass

    def start(self, **options: object) -> None:
        """Start it; what a killed one left must not keep it from that."""
        if not self.is_running:
            self._end_daemons()
            (self.folder / "docker.pid").unlink(missing_ok=True)
            (self._exec_root / "containerd" / "containerd.pid").unlink(missing_ok=True)
        super().start(**options)  # type: ignore[arg-type]

    def pids(self) -> list[int]:
        """Return the ids of the daemon and of its containerd."""
        return [process.pid for process in self._daemons()]

    def kill(self) -> None:
        """Kill the daemon and its containerd; the containers live on."""
        self._end_daemons()
        super().kill()

    def power_off(self) -> None:
        """Kill all that there is, the containers too."""
        self.kill()
        for shim in self._shims():
            for process in (*shim.children(recursive=True), shim):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        wait_until(lambda: not self._shims(), timeout_s=PATIENCE_S, what="the end of all containers")

    def remove(self) -> None:
        """End it for good, with its containers; its folder can then be removed."""
        self.resume()
        self.power_off()
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for mount in sorted((path for path in mounts if path.startswith(f"{self.folder}/")), reverse=True):
            subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)

    def _answers(self) -> bool:
        # Not by docker-py, which leaves the socket of a failed try open.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(5)
            peer.connect(str(self.socket))
            peer.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in peer.recv(64)
        return False

    def _signal_group(self, number: signal.Signals) -> None:
        for process in self._daemons():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _daemons(self) -> list[psutil.Process]:
        return self._processes("dockerd", str(self.folder / "daemon.json")) + self._processes(
            "containerd", str(self._exec_root / "containerd" / "containerd.toml")
        )

    def _shims(self) -> list[psutil.Process]:
        return self._processes("containerd-shim", str(self._exec_root / "containerd" / "containerd.sock"))

    def _processes(self, name: str, argument: str) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            line = process.info["cmdline"] or [""]
            alive = process.info["status"] != psutil.STATUS_ZOMBIE
            if alive and Path(line[0]).name.startswith(name) and any(argument in word for word in line):
                found.append(process)
        return found

    def _end_daemons(self) -> None:
        for process in self._daemons():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        wait_until(lambda: not self._daemons(), timeout_s=PATIENCE_S, what="the end of the daemons")
