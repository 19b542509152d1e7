"""
A clinical challenge on the Wisconsin diagnostic breast cancer data.

569 patients with 30 measurements of cell nuclei each and a diagnosis (W. N. Street, W. H. Wolberg and O. L.
Mangasarian, 1993), as scikit-learn's wheel carries them. They are dealt to hospitals: eight train files of 50 patients
and a hidden test set of two.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import numpy as np
from sklearn.datasets import load_breast_cancer

from morpheo.client import ComputeClient, StorageClient
from morpheo.errors import MorpheoError
from morpheo.models import ArtifactKind, Job, JobSpec, JobState, LearnSpec, PredictSpec
from morpheo.packing import pack_folder

ASSETS = Path(__file__).parent / "assets"
ALGOS = ("logistic", "bayes")
TARGET = "malignant"
TRAIN_FILES = 8
PATIENTS_PER_FILE = 50
FILES_PER_RANK = 2
TEST_FILES = 2

#: Called with the algo's name and its job at every look.
OnLook = Callable[[str, Job], None]


@dataclass(frozen=True, kw_only=True)
class Challenge:
    """What was uploaded."""

    workflow: UUID
    algos: dict[str, UUID]
    train_data: tuple[UUID, ...]
    test_data: tuple[UUID, ...]
    #: Patients without a diagnosis, to predict.
    new_patients: UUID

    @property
    def batches(self) -> list[tuple[UUID, ...]]:
        """The train data of each rank."""
        return [
            self.train_data[start : start + FILES_PER_RANK] for start in range(0, len(self.train_data), FILES_PER_RANK)
        ]


def hospitals() -> tuple[list[bytes], list[bytes], bytes]:
    """
    Return the train files, the hidden test files, and a file of patients without a diagnosis.

    Comma-separated, with a header, one patient a line.
    """
    data = load_breast_cancer()
    names = [*(name.replace(" ", "_") for name in data.feature_names), TARGET]
    table = np.column_stack([data.data, 1 - data.target])  # the wheel's 0 is malignant
    table = table[np.random.default_rng(569).permutation(len(table))]
    cut = TRAIN_FILES * PATIENTS_PER_FILE
    train = np.split(table[:cut], TRAIN_FILES)
    test = np.array_split(table[cut:], TEST_FILES)
    return (
        [_to_csv(names, rows) for rows in train],
        [_to_csv(names, rows) for rows in test],
        _to_csv(names[:-1], test[0][:, :-1]),
    )


def _to_csv(names: list[str], rows: np.ndarray) -> bytes:
    text = io.StringIO()
    np.savetxt(text, rows, "%.10g", ",", header=",".join(names), comments="")
    return text.getvalue().encode()


def archive(name: str) -> bytes:
    """Return the ``.tar.gz`` of one of the demo's images."""
    target = io.BytesIO()
    pack_folder(ASSETS / name, target)
    return target.getvalue()


def upload(storage: StorageClient) -> Challenge:
    """Upload the problem, the algos and the data."""
    train, test, new_patients = hospitals()
    problem = storage.upload(
        ArtifactKind.PROBLEM, archive("problem"), name="breast cancer", description="Is a tumour malignant? ROC AUC"
    )
    algos = {name: storage.upload(ArtifactKind.ALGO, archive(name), name=name).id for name in ALGOS}
    return Challenge(
        workflow=problem.id,
        algos=algos,
        train_data=tuple(storage.upload(ArtifactKind.DATA, content).id for content in train),
        test_data=tuple(storage.upload(ArtifactKind.DATA, content).id for content in test),
        new_patients=storage.upload(ArtifactKind.DATA, new_patients).id,
    )


def train_chain(compute: ComputeClient, challenge: Challenge, name: str, on_look: OnLook) -> list[Job]:
    """
    Train one algo on batch after batch, each time from the last model.

    Raises:
        MorpheoError: a job failed.
    """
    jobs: list[Job] = []
    for rank, batch in enumerate(challenge.batches):
        previous = jobs[-1].spec if jobs else None
        spec = LearnSpec(
            id=uuid4(),
            problem=challenge.workflow,
            workflow=challenge.workflow,
            algo=challenge.algos[name],
            train_data=batch,
            test_data=challenge.test_data,
            model_start=previous.model_end if isinstance(previous, LearnSpec) else None,
            model_end=uuid4(),
            rank=rank,
        )
        jobs.append(_run(compute, spec, name, on_look))
    return jobs


def predict(compute: ComputeClient, challenge: Challenge, model: UUID, on_look: OnLook) -> PredictSpec:
    """
    Predict the patients without a diagnosis with a model, and return the order that names the prediction.

    Raises:
        MorpheoError: the job failed.
    """
    spec = PredictSpec(
        id=uuid4(),
        problem=challenge.workflow,
        workflow=challenge.workflow,
        model=model,
        data=challenge.new_patients,
    )
    _run(compute, spec, "prediction", on_look)
    return spec


def _run(compute: ComputeClient, spec: JobSpec, name: str, on_look: OnLook) -> Job:
    job = compute.wait(compute.submit(spec).id, on_look=lambda job: on_look(name, job))
    if job.state is not JobState.SUCCEEDED:
        reason = job.failure.message if job.failure else ""
        raise MorpheoError(f"the {name} job {job.id} is {job.state}: {reason}")
    return job
