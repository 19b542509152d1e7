"""
Which containers a job consists of: pure, so that the contract of ``wire-spec`` 4.4 can be read and tested as data.

A learn job is detarget (problem image) → train (algo image) → perf (problem image); a predict job is predict (algo
image). Nothing untrusted is writable but the output folders; scoring reads copies that no algo could touch, and the
hidden data has a path that cannot be guessed, because a prediction file may contain links (``trust`` 0.1). Where
predictions are HDF5, which can hold links, sanitize (an image of the platform) comes before perf.
"""

from __future__ import annotations

from morpheo.models import StepName
from morpheo.runtime.contract import Folder, Image, Mount, Step


def learn_steps(hidden: str) -> tuple[Step, Step, Step]:
    """
    Return the steps of a learn job: detarget, train, perf.

    Args:
        hidden: Name of the folder, at the root of the problem's containers, where the hidden data is.
    """
    problem_args = ("-i", f"/{hidden}", "-s", "/submission_data")
    return (
        Step(
            name=StepName.DETARGET,
            image=Image.PROBLEM,
            args=("-T", "detarget", *problem_args),
            mounts=(
                Mount(folder=Folder.TEST, target=f"/{hidden}/test"),
                Mount(folder=Folder.DETARGETED, target="/submission_data/test", writable=True),
            ),
        ),
        Step(
            name=StepName.TRAIN,
            image=Image.ALGO,
            args=("-V", "/data", "-T", "train"),
            mounts=(
                Mount(folder=Folder.TRAIN, target="/data/train"),
                Mount(folder=Folder.TRAIN_PRED, target="/data/train/pred", writable=True),
                Mount(folder=Folder.VISIBLE, target="/data/test"),
                Mount(folder=Folder.TEST_PRED, target="/data/test/pred", writable=True),
                Mount(folder=Folder.MODEL, target="/data/model", writable=True),
            ),
        ),
        Step(
            name=StepName.PERF,
            image=Image.PROBLEM,
            args=("-T", "perf", *problem_args),
            mounts=(
                Mount(folder=Folder.TEST, target=f"/{hidden}/test"),
                Mount(folder=Folder.PERF, target=f"/{hidden}/perf", writable=True),
                Mount(folder=Folder.TRAIN, target="/submission_data/train"),
                Mount(folder=Folder.TRAIN_PRED, target="/submission_data/train/pred", harvested=True),
                Mount(folder=Folder.VISIBLE, target="/submission_data/test"),
                Mount(folder=Folder.TEST_PRED, target="/submission_data/test/pred", harvested=True),
            ),
        ),
    )


def sanitize_step(program: str, max_bytes: int) -> Step:
    """
    Return the step that writes HDF5 predictions anew; it sees the harvested predictions and nothing else.

    Args:
        program: Python source that takes the folders to read and to write, and the largest logical size of a file.
        max_bytes: That size.
    """
    return Step(
        name=StepName.SANITIZE,
        image=Image.PLATFORM,
        entrypoint=("python3", "-I", "-B", "-c", program),
        args=("/predictions", "/clean", str(max_bytes)),
        mounts=(
            Mount(folder=Folder.TRAIN_PRED, target="/predictions/train", harvested=True),
            Mount(folder=Folder.TEST_PRED, target="/predictions/test", harvested=True),
            Mount(folder=Folder.TRAIN_CLEAN, target="/clean/train", writable=True),
            Mount(folder=Folder.TEST_CLEAN, target="/clean/test", writable=True),
        ),
    )


def predict_step() -> Step:
    """Return the only step of a predict job."""
    return Step(
        name=StepName.PREDICT,
        image=Image.ALGO,
        args=("-V", "/data", "-T", "predict"),
        mounts=(
            Mount(folder=Folder.TEST, target="/data/test"),
            Mount(folder=Folder.TEST_PRED, target="/data/test/pred", writable=True),
            Mount(folder=Folder.MODEL, target="/data/model"),
        ),
    )
