"""A problem and an algo for real containers, small and obedient."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from morpheo.client import StorageClient
from morpheo.models import ArtifactKind, LearnSpec
from morpheo.testing import make_archive

#: Data is ``x:target``, maybe with an end of line; a prediction is a target; the score is the share of right ones.
PROBLEM = """
import argparse, json, os
parser = argparse.ArgumentParser()
parser.add_argument("-T"); parser.add_argument("-i"); parser.add_argument("-s")
args = parser.parse_args()
def files(folder):
    return [name for name in sorted(os.listdir(folder)) if os.path.isfile(os.path.join(folder, name))]
def read(*path):
    with open(os.path.join(*path)) as file:
        return file.read()
def scores(truth, pred):
    return {name: float(read(truth, name).partition(":")[2].rstrip() == read(pred, name)) for name in files(truth)}
if args.T == "detarget":
    for name in files(args.i + "/test"):
        with open(args.s + "/test/" + name, "w") as file:
            file.write(read(args.i, "test", name).partition(":")[0])
else:
    test = scores(args.i + "/test", args.s + "/test/pred")
    train = scores(args.s + "/train", args.s + "/train/pred")
    result = {"perf": sum(test.values()) / len(test), "train_perf": train, "test_perf": test}
    with open(args.i + "/perf/performance.json", "w") as file:
        json.dump(result, file)
"""

ALGO = """
import argparse, json, os
parser = argparse.ArgumentParser()
parser.add_argument("-V"); parser.add_argument("-T")
args = parser.parse_args()
path = args.V + "/model/model_trained.json"
memory = json.load(open(path)) if os.path.exists(path) else {}
def files(folder):
    return [name for name in sorted(os.listdir(folder)) if os.path.isfile(os.path.join(folder, name))]
def predict(folder):
    os.makedirs(folder + "/pred", exist_ok=True)
    for name in files(folder):
        with open(folder + "/pred/" + name, "w") as file:
            file.write(memory.get(open(folder + "/" + name).read().partition(":")[0], "0"))
if args.T == "train":
    for name in files(args.V + "/train"):
        x, _, target = open(args.V + "/train/" + name).read().partition(":")
        memory[x] = target
    predict(args.V + "/train")
predict(args.V + "/test")
if args.T == "train":
    json.dump(memory, open(path, "w"))
print("remembers", len(memory))
"""


def image_archive(program: str, *instructions: str) -> bytes:
    """Return the archive of an image that runs a Python program."""
    lines = ["FROM morpheo/base:1", "COPY program.py /program.py", *instructions]
    lines.append('ENTRYPOINT ["python3", "-S", "/program.py"]')
    return make_archive({"Dockerfile": "\n".join(lines) + "\n", "program.py": program})


def store_algo(storage: StorageClient, program: str = ALGO, *instructions: str) -> UUID:
    """Upload an algo."""
    return storage.upload(ArtifactKind.ALGO, image_archive(program, *instructions), name="algo").id


def make_order(storage: StorageClient, **changes: Any) -> LearnSpec:
    """Upload what a learn job needs, and return the order."""

    def data(*contents: bytes) -> tuple[UUID, ...]:
        return tuple(storage.upload(ArtifactKind.DATA, content).id for content in contents)

    problem = changes.pop("problem_archive", None) or image_archive(PROBLEM)
    workflow = (
        changes.get("workflow")
        or storage.upload(ArtifactKind.PROBLEM, problem, name="problem", description="of the tests").id
    )
    values: dict[str, Any] = {
        "id": uuid4(),
        "problem": workflow,
        "workflow": workflow,
        "algo": changes.get("algo") or store_algo(storage),
        "train_data": changes.get("train_data") or data(b"a:1", b"b:2"),
        "test_data": changes.get("test_data") or data(b"a:1", b"c:3"),
        "model_start": None,
        "model_end": uuid4(),
    }
    return LearnSpec(**{**values, **changes})
