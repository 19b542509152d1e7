"""
The images of hostile cases: a problem that scores, and an algo that is honest first and then does what its data says.

Data is a JSON object: ``x``, ``target``, ``canary``, and in ``attack`` Python source for each step of the algo, which
runs when the honest work is done. So one image serves all cases, and an attack costs no build.
"""

from __future__ import annotations

from morpheo.testing import make_archive

BASE = "morpheo/base:1-hdf5"

#: What an attack finds in its namespace, besides `data` (of the files), `args` and the honest functions.
_COMMON = """
import argparse, base64, ctypes, errno, glob, json, os, re, resource, signal, socket, stat, struct, subprocess, sys
import threading, time
HDF5 = b"\\x89HDF\\r\\n\\x1a\\n"
def files(folder):
    return [name for name in sorted(os.listdir(folder)) if os.path.isfile(os.path.join(folder, name))]
def read(*path):
    with open(os.path.join(*path)) as file:
        return json.load(file)
def write(value, *path):
    with open(os.path.join(*path), "w") as file:
        json.dump(value, file)
def attempt(name, action, *values):
    "Try something and print what came of it, as one line of JSON."
    try:
        found, error = action(*values), None
    except OSError as exc:
        found, error = None, errno.errorcode.get(exc.errno, str(exc))
    except Exception as exc:
        found, error = None, repr(exc)
    print(json.dumps({"name": name, "found": found, "error": error}, default=repr), flush=True)
    return found
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *values):
    "Make a system call by its number."
    if (result := libc.syscall(number, *values)) < 0:
        raise OSError(ctypes.get_errno(), "")
    return result
"""

_PROBLEM = f"""{_COMMON}
parser = argparse.ArgumentParser()
parser.add_argument("-T"); parser.add_argument("-i"); parser.add_argument("-s")
args = parser.parse_args()
def predicted(path):
    with open(path, "rb") as file:
        start = file.read(8)
    if start != HDF5:
        return read(path)
    import h5py
    with h5py.File(path, "r") as file:
        value = file["stages"][()]
    return bytes(value.tobytes()).rstrip(b"\\0").decode("utf-8", "replace")
def right(truth, prediction, name):
    return float(read(truth, name)["target"] == predicted(os.path.join(prediction, name)))
def scores(truth, prediction):
    return {{name: right(truth, prediction, name) for name in files(truth)}}
if args.T == "detarget":
    for name in files(args.i + "/test"):
        value = read(args.i, "test", name)
        write({{"x": value["x"]}}, args.s, "test", name)
else:
    test = scores(args.i + "/test", args.s + "/test/pred")
    train = scores(args.s + "/train", args.s + "/train/pred")
    write({{"perf": sum(test.values()) / len(test), "train_perf": train, "test_perf": test}},
          args.i, "perf", "performance.json")
print(args.T, args.i)
for name in files(args.s + "/train") if args.T == "perf" else ():
    exec(read(args.s, "train", name).get("attack", {{}}).get("perf", ""), globals())
"""

_ALGO = f"""{_COMMON}
parser = argparse.ArgumentParser()
parser.add_argument("-V"); parser.add_argument("-T")
args = parser.parse_args()
path = args.V + "/model/model_trained.json"
memory = read(path) if os.path.exists(path) else {{}}
def predict(folder):
    for name in files(folder):
        write(memory.get(read(folder, name)["x"], "0"), folder, "pred", name)
folder = args.V + ("/train" if args.T == "train" else "/test")
data = [read(folder, name) for name in files(folder)]
if args.T == "train":
    for value in data:
        memory[value["x"]] = value["target"]
    predict(args.V + "/train")
predict(args.V + "/test")
if args.T == "train":
    write(memory, path)
for value in data:
    exec(value.get("attack", {{}}).get(args.T, ""), globals())
"""


def problem_archive(*instructions: str) -> bytes:
    """Return the problem's archive; instructions are added to its Dockerfile."""
    return _archive(_PROBLEM, instructions)


def algo_archive(*instructions: str) -> bytes:
    """Return the algo's archive; instructions are added to its Dockerfile."""
    return _archive(_ALGO, instructions)


def _archive(program: str, instructions: tuple[str, ...]) -> bytes:
    lines = [f"FROM {BASE}", "COPY program.py /program.py", *instructions]
    lines.append('ENTRYPOINT ["python3", "/program.py"]')
    return make_archive({"Dockerfile": "\n".join(lines) + "\n", "program.py": program})
