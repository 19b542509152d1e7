"""
What the containers of the runtime's tests run: a list of operations in the last argument, as JSON.

In a real container this file is the entry point; for the fake runtime `run_fake` does the same.
"""

import json
import os
import socket
import sys
import time


def main(operations):  # type: ignore[no-untyped-def]
    """Do the operations, in a real container."""
    for name, *values in operations:
        if name == "print":
            print(*values, flush=True)
        elif name == "write":
            with open(values[0], "w") as file:
                file.write(values[1])
        elif name == "show":
            with open(values[0]) as file:
                print(file.read(), flush=True)
        elif name == "sleep":
            time.sleep(values[0])
        elif name == "hog":
            hog = []
            while True:
                hog.append(bytearray(os.urandom(1 << 16)) * 160)
        elif name == "status":
            with open("/proc/self/status") as file:
                wanted = ("Uid", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp")
                print(*(line.strip() for line in file if line.startswith(wanted)), sep="\n", flush=True)
        elif name == "interfaces":
            print(*sorted(os.listdir("/sys/class/net")), flush=True)
        elif name == "connect":
            try:
                socket.create_connection(tuple(values), timeout=2)
                print("connected", flush=True)
            except OSError as exc:
                print("refused:", exc.strerror, flush=True)
        elif name == "environment":
            print(json.dumps(dict(os.environ)), os.getcwd(), flush=True)
        elif name == "fork":
            children = 0
            try:
                while True:
                    if os.fork() == 0:
                        time.sleep(60)
                    children += 1
            except OSError:
                print("children:", children, flush=True)
                os._exit(0)
        elif name == "exit":
            sys.exit(values[0])


if __name__ == "__main__":
    main(json.loads(sys.argv[-1]))
