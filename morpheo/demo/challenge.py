"""
A clinical challenge on the Wisconsin diagnostic breast cancer data.

569 patients with 30 measurements of cell nuclei each and a diagnosis (W. N. Street, W. H. Wolberg and O. L.
Mangasarian, 1993), as scikit-learn's wheel carries them. They are dealt to hospitals: eight train files, two more that
come later, and a hidden test set of eight.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import numpy as np
from sklearn.datasets import load_breast_cancer

from morpheo.client import ComputeClient, OrchestratorClient, StorageClient
from morpheo.errors import MorpheoError
from morpheo.models import ArtifactKind, Job, JobState
from morpheo.packing import pack_folder

ASSETS = Path(__file__).parent / "assets"
ALGOS = ("logistic", "bayes")
TARGET = "malignant"
TRAIN_FILES = 8
LATER_FILES = 2
PATIENTS_PER_FILE = 40
FILES_PER_RANK = 2
TEST_FILES = 8
#: How often to look at what becomes of a chain, in seconds.
LOOK_S = 0.2

#: Called with the algo's name and its job at every look.
OnLook = Callable[[str, Job], None]


@dataclass(frozen=True, kw_only=True)
class Clients:
    """The three services."""

    storage: StorageClient
    compute: ComputeClient
    orchestrator: OrchestratorClient


@dataclass(frozen=True, kw_only=True)
class Challenge:
    """What was registered."""

    problem: UUID
    algos: dict[str, UUID]
    #: Train data that comes later, stored but not registered.
    later: tuple[UUID, ...]
    #: Patients without a diagnosis, to predict.
    new_patients: UUID


def hospitals() -> tuple[list[bytes], list[bytes], bytes]:
    """
    Return the train files, the hidden test files, and a file of patients without a diagnosis.

    Comma-separated, with a header, one patient a line.
    """
    data = load_breast_cancer()
    names = [*(name.replace(" ", "_") for name in data.feature_names), TARGET]
    table = np.column_stack([data.data, 1 - data.target])  # the wheel's 0 is malignant
    table = table[np.random.default_rng(569).permutation(len(table))]
    cut = (TRAIN_FILES + LATER_FILES) * PATIENTS_PER_FILE
    train = np.split(table[:cut], TRAIN_FILES + LATER_FILES)
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


def register(clients: Clients) -> Challenge:
    """Upload and register the problem, the algos and the data; training follows from it."""
    storage, orchestrator = clients.storage, clients.orchestrator
    train, test, new_patients = hospitals()
    workflow = storage.upload(
        ArtifactKind.PROBLEM, archive("problem"), name="breast cancer", description="Is a tumour malignant? ROC AUC"
    )
    test_data = [storage.upload(ArtifactKind.DATA, content).id for content in test]
    problem = orchestrator.add_problem(uuid4(), workflow=workflow.id, test_data=test_data, batch_size=FILES_PER_RANK)
    algos = {name: storage.upload(ArtifactKind.ALGO, archive(name), name=name).id for name in ALGOS}
    for name, algo in algos.items():
        orchestrator.add_algo(algo, name=name, problem=problem.id)
    data = [storage.upload(ArtifactKind.DATA, content).id for content in train]
    orchestrator.add_data(data[:TRAIN_FILES], problems=[problem.id])
    return Challenge(
        problem=problem.id,
        algos=algos,
        later=tuple(data[TRAIN_FILES:]),
        new_patients=storage.upload(ArtifactKind.DATA, new_patients).id,
    )


def follow(clients: Clients, challenge: Challenge, on_look: OnLook) -> dict[str, list[float]]:
    """
    Wait until every rank of both chains has ended; return the scores of each algo's ranks.

    Raises:
        MorpheoError: a rank failed.
    """
    names = {algo: name for name, algo in challenge.algos.items()}
    while True:
        uplets = clients.orchestrator.learnuplets(problem=challenge.problem)
        for uplet in uplets:
            if uplet.status == "pending":
                on_look(names[uplet.algo], clients.compute.job(uplet.uuid))
            elif uplet.status == "failed":
                job = clients.compute.job(uplet.uuid)
                raise MorpheoError(f"job {job.id} failed: {job.failure.message if job.failure else ''}")
        if all(uplet.status == "done" for uplet in uplets):
            break
        time.sleep(LOOK_S)
    ranks = sorted(uplets, key=lambda uplet: uplet.rank)
    return {name: [uplet.perf or 0.0 for uplet in ranks if uplet.algo == algo] for algo, name in names.items()}


def predict(clients: Clients, challenge: Challenge, on_look: OnLook) -> tuple[UUID, list[str]]:
    """
    Predict the patients without a diagnosis with the best model; return that model and the prediction's lines.

    Raises:
        MorpheoError: the job failed.
    """
    uplet = clients.orchestrator.predict(challenge.new_patients, problem=challenge.problem)
    job = clients.compute.wait(uplet.uuid, on_look=lambda job: on_look("prediction", job))
    if job.state is not JobState.SUCCEEDED:
        raise MorpheoError(f"the prediction {job.id} is {job.state}: {job.failure.message if job.failure else ''}")
    done = clients.orchestrator.preduplet(uplet.uuid)
    if done.prediction_storage_uuid is None:
        raise MorpheoError(f"the prediction {job.id} has no file")
    return uplet.model, clients.storage.read(ArtifactKind.PREDICTION, done.prediction_storage_uuid).decode().split()
