"""What an algo left, taken over: its predictions and its model, or the end of the job."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from morpheo.errors import BadOutput
from morpheo.failures import failed
from morpheo.models import Blame, Cause, JobFailed, StepName
from morpheo.runtime.contract import Folder
from morpheo.runtime.outputs import OutputLimits, TooMuchOutput, harvest_files, harvest_tree
from morpheo.runtime.workspace import Workspace


def harvest_predictions(
    workspace: Workspace, folder: Folder, data: Iterable[UUID], step: StepName, *, max_bytes: int
) -> None:
    """
    Copy the predictions of a folder, one for each data file.

    Raises:
        JobFailed: one is missing, too large or no regular file, or something else is there.
    """
    expected = {str(data_id) for data_id in data}
    try:
        found = harvest_files(workspace[folder], workspace.harvest(folder), names=expected, max_bytes=max_bytes)
    except BadOutput as exc:
        raise bad_output(exc, Blame.SUBMITTER, step) from exc
    if missing := sorted(expected - found):
        where = "train/pred" if folder is Folder.TRAIN_PRED else "test/pred"
        message = f"{step} wrote no prediction for {', '.join(missing[:5])}; write {where}/<data id> for each file"
        raise failed(Cause.MISSING_OUTPUT, Blame.SUBMITTER, message, step)


def harvest_model(workspace: Workspace, limits: OutputLimits) -> list[str]:
    """
    Copy the model, and return the names of its files.

    Raises:
        JobFailed: there is none, it is too large, or it has something else than regular files and folders.
    """
    try:
        names = harvest_tree(workspace[Folder.MODEL], workspace.harvest(Folder.MODEL), limits)
    except BadOutput as exc:
        raise bad_output(exc, Blame.SUBMITTER, StepName.TRAIN) from exc
    if not names:
        message = "train left no model; write at least one file to /data/model"
        raise failed(Cause.MISSING_OUTPUT, Blame.SUBMITTER, message, StepName.TRAIN)
    return names


def bad_output(error: BadOutput, blame: Blame, step: StepName) -> JobFailed:
    """Return what ends a job because of what a step wrote."""
    cause = Cause.OUTPUT_LIMIT if isinstance(error, TooMuchOutput) else Cause.BAD_OUTPUT
    return failed(cause, blame, f"the output of {step}: {error}", step)
