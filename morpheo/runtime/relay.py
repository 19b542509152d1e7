"""
Runs in a container beside a build, whose network the build shares, and brings what it is sent to the build proxy.

That network has no interface but loopback, and nobody in it but this program, which connects to a Unix socket that the
build does not see. Only the standard library of Python 3: an image of the platform runs it as the text that it is.
"""

from __future__ import annotations

import socket
import sys
import threading

PORT = 3128
LISTENING = "listening"
#: Connections at once; others wait.
_MOST = 32
_CHUNK = 65536


def main(path: str, job: str, attempt: str) -> None:
    """
    Serve for ever.

    Args:
        path: Of the proxy's socket.
        job: Id of the job that the build is for.
        attempt: Its number.
    """
    _connect(path).close()  # or end here: without a proxy no build should begin
    server = socket.create_server(("127.0.0.1", PORT), backlog=_MOST)
    sys.stdout.write(LISTENING + "\n")
    sys.stdout.flush()
    hello = f"BUILD {job} {attempt}\r\n".encode()
    slots = threading.Semaphore(_MOST)
    while True:
        slots.acquire()
        client = server.accept()[0]
        threading.Thread(target=_serve, args=(client, path, hello, slots), daemon=True).start()


def _connect(path: str) -> socket.socket:
    proxy = socket.socket(socket.AF_UNIX)
    proxy.connect(path)
    return proxy


def _serve(client: socket.socket, path: str, hello: bytes, slots: threading.Semaphore) -> None:
    try:
        with client, _connect(path) as proxy:
            proxy.sendall(hello)
            sending = threading.Thread(target=_copy, args=(client, proxy), daemon=True)
            sending.start()
            _copy(proxy, client)
            client.shutdown(socket.SHUT_RDWR)
            sending.join()
    except OSError:
        pass  # either side hung up
    finally:
        slots.release()


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while piece := source.recv(_CHUNK):
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


if __name__ == "__main__":
    main(*sys.argv[1:])
