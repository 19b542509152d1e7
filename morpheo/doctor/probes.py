"""Programs that the doctor runs in containers, for the Python of the base image; each prints what it got."""

from __future__ import annotations

from morpheo.config import MIB

#: What a probing container may have, and what it tries to get.
MEMORY_LIMIT, MEMORY_WANTED = 64 * MIB, 256 * MIB
PIDS_LIMIT, PIDS_WANTED = 32, 128

#: Prints the number of bytes that it got.
MEMORY = f"print(len(b'x' * {MEMORY_WANTED}))"
#: Prints the number of threads that it got.
PIDS = f"""
import os, threading
count, event = 1, threading.Event()
try:
    while count < {PIDS_WANTED}:
        threading.Thread(target=event.wait, daemon=True).start()
        count += 1
except RuntimeError:
    pass
print(count, flush=True)
os._exit(0)
"""
#: Prints a JSON list of what it reaches; its argument is a port on the loopback of the doctor's machine.
NETWORK = """
import fcntl, json, socket, struct, sys
def is_up(name):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        return struct.unpack_from("H", fcntl.ioctl(any_socket, 0x8913, name.encode().ljust(40, b"\\0")), 16)[0] & 1
def reaches(family, kind, address):
    with socket.socket(family, kind) as peer:
        peer.settimeout(3)
        return peer.connect_ex(address) == 0
found = ["interface " + name for _, name in socket.if_nameindex() if name != "lo" and is_up(name)]
if reaches(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", int(sys.argv[1]))):
    found.append("the loopback of the engine's machine")
for family, address in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
    try:
        if reaches(family, socket.SOCK_DGRAM, (address, 9)):
            found.append("a route to " + address)
    except OSError:
        pass
print(json.dumps(found))
"""
#: Prints a file of the data folder, and makes another.
FOLDER = """
print(open("/data/doctor/canary").read())
try:
    open("/data/doctor/reply", "w").close()
except OSError as exc:
    print(exc.strerror)
"""
