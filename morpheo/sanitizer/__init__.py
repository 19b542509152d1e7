"""
Predictions that may lead elsewhere, before the problem's image opens them where the hidden data is.

HDF5 predictions are written anew by a program (`morpheo.sanitizer.rewrite_hdf5`) in a container of the platform; no
worker's process ever parses them. Other formats stay the bytes that they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from morpheo.errors import BadOutput
from morpheo.failures import failed, last_lines
from morpheo.harvest import bad_output
from morpheo.models import Blame, Cause, JobFailed, StepName
from morpheo.runtime.contract import Folder, StepResult
from morpheo.runtime.outputs import harvest_files
from morpheo.runtime.workspace import Workspace
from morpheo.sanitizer.rewrite_hdf5 import NO_H5PY, TOO_LARGE, is_hdf5

#: What the container runs.
PROGRAM = (Path(__file__).parent / "rewrite_hdf5.py").read_text()
#: Where what the algo wrote is found anew.
CLEAN = {Folder.TRAIN_PRED: Folder.TRAIN_CLEAN, Folder.TEST_PRED: Folder.TEST_CLEAN}

Suspects = Mapping[Folder, set[str]]


def find_suspects(workspace: Workspace) -> Suspects:
    """Return the names of the harvested predictions that are HDF5, by folder; nothing if there are none."""
    found = {
        folder: {path.name for path in workspace.harvest(folder).iterdir() if path.is_file() and is_hdf5(path)}
        for folder in CLEAN
    }
    return found if any(found.values()) else {}


def no_sanitizer(image: str) -> JobFailed:
    """Return what ends a job whose predictions cannot be looked at."""
    message = (
        f"predictions are HDF5, and the container engine has no image {image} (MORPHEO_SANITIZER_IMAGE) with python3 "
        "and h5py to rewrite them; `scripts/base-image` makes one; then order the job again"
    )
    return failed(Cause.RUNTIME_UNAVAILABLE, Blame.INFRASTRUCTURE, message, StepName.SANITIZE)


def check_sanitized(result: StepResult, image: str) -> None:
    """
    Do nothing if all predictions were written anew.

    Raises:
        JobFailed: one was refused, or the program cannot run in that image.
    """
    if result.exit_code == 0 and not result.timed_out and not result.over_quota:
        return
    if result.exit_code in (NO_H5PY, None, 126, 127):
        raise no_sanitizer(image)
    too_large = result.exit_code == TOO_LARGE or result.oom_killed or result.timed_out or result.over_quota
    cause = Cause.OUTPUT_LIMIT if too_large else Cause.BAD_OUTPUT
    message = (
        "an HDF5 prediction could not be copied value by value; write groups and datasets of numbers and texts, "
        "without links, virtual datasets, external storage and filters of your own" + last_lines(result.log)
    )
    raise failed(cause, Blame.SUBMITTER, message, StepName.SANITIZE)


def replace_suspects(workspace: Workspace, suspects: Suspects, *, max_bytes: int) -> None:
    """
    Put the files that were written anew in the place of the harvested ones.

    Raises:
        JobFailed: they are not there, or something else is.
    """
    for folder, names in suspects.items():
        target = workspace.harvest(folder)
        for name in names:
            (target / name).unlink()
        try:
            found = harvest_files(workspace[CLEAN[folder]], target, names=names, max_bytes=max_bytes)
        except BadOutput as exc:
            raise bad_output(exc, Blame.SUBMITTER, StepName.SANITIZE) from exc
        if found != names:
            message = f"the predictions {', '.join(sorted(names - found)[:5])} could not be read as HDF5"
            raise failed(Cause.BAD_OUTPUT, Blame.SUBMITTER, message, StepName.SANITIZE)
