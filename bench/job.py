"""
A warm no-op learn job, from order to end, against three bare containers of the same profile through docker-py.

Both sides take turns; printed are the medians and their ratio. The job does what three containers cannot: it fetches,
harvests, scores, archives and stores. Its detarget container is not skipped: each turn has a new hidden test set.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from uuid import UUID, uuid4

from docker import APIClient

from morpheo.cli.demo import throwaway_stack
from morpheo.client import ComputeClient, StorageClient
from morpheo.config import Settings
from morpheo.models import ArtifactKind, JobState, LearnSpec, StepName
from morpheo.runtime.contract import ContainerSpec, Owner, Profile
from morpheo.runtime.docker import DockerRuntime
from morpheo.runtime.profile import create_arguments
from morpheo.testing import make_archive
from tests.support.services import engine_url

TURNS = 15

#: The contract of problem and algo in shell: next to no work, so that what is measured is the platform.
PROBLEM = """#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in -T) task=$2 ;; -i) hidden=$2 ;; -s) submission=$2 ;; esac
    shift 2
done
if [ $task = detarget ]; then
    cp $hidden/test/* $submission/test/
    exit
fi
for file in $hidden/test/*; do test=${file##*/}; done
for file in $submission/train/*-*; do train=${file##*/}; done
cat > $hidden/perf/performance.json <<END
{"perf": 1, "train_perf": {"$train": 1}, "test_perf": {"$test": 1}}
END
"""
ALGO = """#!/bin/sh
echo model > /data/model/model_trained.json
for folder in train test; do
    for file in /data/$folder/*-*; do echo 1 > /data/$folder/pred/${file##*/}; done
done
"""


def archive(program: str) -> bytes:
    """Return the archive of an image that runs a shell script."""
    dockerfile = 'FROM morpheo/base:1\nCOPY run.sh /run.sh\nENTRYPOINT ["/bin/sh", "/run.sh"]\n'
    return make_archive({"Dockerfile": dockerfile, "run.sh": program})


def bare_containers(client: APIClient, image_id: str, profile: Profile) -> float:
    """Return the seconds that three containers of the jobs' profile take."""
    began = time.monotonic()
    for step in (StepName.DETARGET, StepName.TRAIN, StepName.PERF):
        spec = ContainerSpec(
            owner=Owner(job_id=uuid4(), attempt=1),
            step=step,
            image_id=image_id,
            args=("-c", "true"),
            binds=(),
            timeout_s=60,
        )
        arguments = create_arguments(spec, profile, node="bench")
        container = client.create_container(**{**arguments, "entrypoint": ["/bin/sh"]})["Id"]
        client.start(container)
        assert client.wait(container)["StatusCode"] == 0
        client.logs(container)
        client.remove_container(container, force=True, v=True)
    return time.monotonic() - began


def learn(storage: StorageClient, compute: ComputeClient, workflow: UUID, algo: UUID, train: UUID) -> float:
    """Return the seconds that one job takes, from order to end."""
    test = storage.upload(ArtifactKind.DATA, uuid4().bytes).id
    spec = LearnSpec(
        id=uuid4(),
        problem=workflow,
        workflow=workflow,
        algo=algo,
        train_data=(train,),
        test_data=(test,),
        model_start=None,
        model_end=uuid4(),
    )
    began = time.monotonic()
    compute.submit(spec)
    while not (job := compute.job(spec.id)).state.is_final:
        time.sleep(0.01)
    seconds = time.monotonic() - began
    assert job.state is JobState.SUCCEEDED, job.failure
    return seconds


def main() -> None:
    """Measure and print."""
    settings = Settings()
    client = APIClient(base_url=engine_url(), version="auto", timeout=60)
    profile = Profile(
        user=settings.container_user,
        memory_bytes=settings.memory_bytes,
        cpus=settings.cpus,
        pids=settings.pids,
        tmp_bytes=settings.tmp_bytes,
        log_bytes=settings.log_bytes,
        file_bytes=settings.model_bytes,
    )
    with tempfile.TemporaryDirectory() as folder, throwaway_stack(Path(folder)) as urls:
        storage = StorageClient(urls["storage"], user="u", password="p")
        compute = ComputeClient(urls["compute"], user="u", password="p")
        workflow = storage.upload(ArtifactKind.PROBLEM, archive(PROBLEM), name="no-op", description="no-op").id
        algo = storage.upload(ArtifactKind.ALGO, archive(ALGO), name="no-op").id
        train = storage.upload(ArtifactKind.DATA, b"train").id
        image_id = DockerRuntime(engine_url(), profile=profile, node="bench", timeout_s=60).find_image("morpheo/base:1")
        assert image_id is not None
        learn(storage, compute, workflow, algo, train)  # builds the images
        jobs, bare = [], []
        for _ in range(TURNS):
            bare.append(bare_containers(client, image_id, profile))
            jobs.append(learn(storage, compute, workflow, algo, train))
    job, three = statistics.median(jobs), statistics.median(bare)
    print(
        f"no-op learn job: {job:.2f} s (from {min(jobs):.2f} to {max(jobs):.2f}), three bare containers: {three:.2f} s "
        f"(from {min(bare):.2f} to {max(bare):.2f}), ratio {job / three:.2f} (at most 2.0 wanted)"
    )


if __name__ == "__main__":
    main()
