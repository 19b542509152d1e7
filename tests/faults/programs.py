"""
A problem and an algo for real containers: their steps last or wait as the data says, their results can be told apart.

Data is JSON: ``hold`` is a list of steps that wait for a folder ``go-<step>`` beside the data, ``seconds`` is how long
training and predicting take at least, ``model_bytes`` how large a model is at least, ``detail`` makes files differ.
Each training draws a number: it is the model, every prediction, and the score, so that what comes from two attempts
does not fit together.
"""

from __future__ import annotations

import uuid

from morpheo.testing import make_archive

_COMMON = """
import argparse, json, os, random, time
def files(folder):
    return [name for name in sorted(os.listdir(folder)) if os.path.isfile(os.path.join(folder, name))]
def read(*path):
    with open(os.path.join(*path)) as file:
        return json.load(file)
def write(value, *path):
    with open(os.path.join(*path), "w") as file:
        json.dump(value, file)
def wait(step, folder):
    wishes = [read(folder, name) for name in files(folder)]
    if any(step in wish.get("hold", ()) for wish in wishes):
        print("held in", step, flush=True)
        while not os.path.isdir(folder + "/go-" + step):
            time.sleep(0.02)
    time.sleep(max(wish.get("seconds", 0) for wish in wishes))
"""

_PROBLEM = """
parser = argparse.ArgumentParser()
parser.add_argument("-T"); parser.add_argument("-i"); parser.add_argument("-s")
args = parser.parse_args()
def scores(truth, pred):
    return {name: read(pred, name) for name in files(truth)}
truth = args.i + "/test"
wait(args.T, truth)
if args.T == "detarget":
    for name in files(truth):
        write(read(truth, name), args.s, "test", name)
else:
    test = scores(truth, args.s + "/test/pred")
    train = scores(args.s + "/train", args.s + "/train/pred")
    perf = sum(test.values()) / len(test)
    write({"perf": perf, "train_perf": train, "test_perf": test}, args.i, "perf", "performance.json")
"""

_ALGO = """
parser = argparse.ArgumentParser()
parser.add_argument("-V"); parser.add_argument("-T")
args = parser.parse_args()
wait(args.T, args.V + ("/train" if args.T == "train" else "/test"))
path = args.V + "/model/model_trained.json"
if args.T == "train":
    write(random.random(), path)
    with open(args.V + "/model/ballast", "wb") as file:
        size = max(read(args.V, "train", name).get("model_bytes", 0) for name in files(args.V + "/train"))
        file.write(random.randbytes(size))
drawn = read(path)
for folder in ("train", "test") if args.T == "train" else ("test",):
    os.makedirs(f"{args.V}/{folder}/pred", exist_ok=True)
    for name in files(f"{args.V}/{folder}"):
        write(drawn, f"{args.V}/{folder}/pred", name)
print("drawn", drawn)
"""

_BASE = "FROM morpheo/base:1"


def problem_archive(*instructions: str) -> bytes:
    """Return the problem's archive, another one each time."""
    return _archive(_COMMON + _PROBLEM, instructions)


def algo_archive(*instructions: str) -> bytes:
    """Return the algo's archive, another one each time; instructions are added to its Dockerfile."""
    return _archive(_COMMON + _ALGO, instructions)


def _archive(program: str, instructions: tuple[str, ...]) -> bytes:
    lines = [_BASE, f"# {uuid.uuid4()}", "COPY program.py /program.py", *instructions]
    lines.append('ENTRYPOINT ["python3", "-S", "/program.py"]')
    return make_archive({"Dockerfile": "\n".join(lines) + "\n", "program.py": program})
