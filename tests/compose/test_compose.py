"""The deployed stack: jobs through it, what untrusted code reaches, and the death of each of its containers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import requests

from morpheo.models import ArtifactKind, AttemptOutcome, JobState
from morpheo.testing import make_archive
from tests.compose.conftest import Deployment
from tests.support.jobs import ALGO, PROBLEM, image_archive, make_order, store_algo
from tests.support.services import wait_until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

PATIENCE_S = 120
SERVICES = {
    "compute-api": 8081,
    "storage-api": 8082,
    "orchestrator-api": 8083,
    "flower": 8085,
    "broker": 6379,
    "database": 5432,
    "s3": 9000,
    "worker": 22,
    "problem-engine": 2375,
    "algo-engine": 2375,
}


def test_learn_and_predict_from_the_command_line(deployment: Deployment, tmp_path: Path) -> None:
    def upload(kind: str, name: str, content: bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content)
        document = json.loads(deployment.cli("upload", kind, str(path), "--json"))
        return str(document["id"] if "id" in document else document["uuid"])

    problem = upload("problem", "problem.tar.gz", image_archive(PROBLEM))
    algo = upload("algo", "algo.tar.gz", image_archive(ALGO))
    train, test = upload("data", "train", b"a:1"), upload("data", "test", b"a:1")
    learned = json.loads(
        deployment.cli("learn", "--workflow", problem, "--algo", algo, "--train", train, "--test", test, "--json")
    )
    assert (learned["state"], learned["scores"]["perf"]) == ("succeeded", 1.0), learned
    model = learned["spec"]["model_end"]
    deployment.cli(
        "predict", "--problem", problem, "--model", model, "--data", test, "--output", str(tmp_path / "prediction")
    )
    assert (tmp_path / "prediction").read_text() == "1"


def test_a_challenge_from_the_command_line(deployment: Deployment, tmp_path: Path) -> None:
    def write(name: str, content: bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content)
        return str(path)

    problem = write("problem.tar.gz", image_archive(PROBLEM))
    algo = write("algo.tar.gz", image_archive(ALGO))
    hidden = write("hidden", b"a:1\n")
    batch = ("--batch-size", "1", "--name", "letters", "--description", "d")
    made = json.loads(deployment.cli("problem", "add", problem, *batch, "--test", hidden, "--json"))
    deployment.cli("data", "add", write("one", b"b:2"), write("two", b"a:1"), "--problem", made["id"])
    deployment.cli("submit", algo, "--problem", made["id"], "--name", "memory", "--wait", "--timeout", "120")
    (entry,) = json.loads(deployment.cli("leaderboard", made["id"], "--json"))["entries"]
    assert (entry["name"], entry["perf"], entry["trainings"], entry["rank"]) == ("memory", 1.0, 2, 1)
    target = tmp_path / "prediction"
    deployment.cli("pred", write("new", b"a"), "--problem", made["id"], "--output", str(target))
    assert target.read_text() == "1"


def test_two_workers_share_the_load(deployment: Deployment) -> None:
    algo = store_algo(deployment.storage, "import time\ntime.sleep(1)\n" + ALGO)
    order = make_order(deployment.storage, algo=algo)
    specs = [replace(order, id=uuid4(), model_end=uuid4()) for _ in range(10)]
    for spec in specs:
        deployment.compute.submit(spec)
    jobs = [deployment.compute.wait(spec.id, timeout_s=PATIENCE_S) for spec in specs]
    assert {job.state for job in jobs} == {JobState.SUCCEEDED}, [job.failure for job in jobs]
    hosts = [str(job.attempts[-1].worker).rsplit("-", 2)[0] for job in jobs]
    assert len(set(hosts)) == 2, hosts
    assert min(hosts.count(host) for host in set(hosts)) >= 2, hosts


def probe(deployment: Deployment) -> str:
    """Return a program that raises what it reaches, and what it may do that it should not."""
    networks = [
        network
        for container in deployment.containers()
        for network in deployment.engine.inspect_container(container)["NetworkSettings"]["Networks"].values()
    ]
    addresses = {network[key] for network in networks for key in ("IPAddress", "Gateway") if network[key]}
    targets = list(SERVICES.items())
    targets += [(address, port) for address in addresses for port in {*SERVICES.values(), *deployment.ports.values()}]
    return f"""
import os, socket
from concurrent.futures import ThreadPoolExecutor
found = []
def reach(family, address):
    try:
        with socket.socket(family) as peer:
            peer.settimeout(2)
            peer.connect(address)
            found.append(address)
    except OSError:
        pass
with ThreadPoolExecutor(32) as pool:  # an address that nobody has takes all of its two seconds
    list(pool.map(reach, [socket.AF_INET] * {len(targets)}, {targets!r}))
for folder in ("/run", "/var/run", "/run/engine", "/run/problem-engine", "/run/algo-engine"):
    reach(socket.AF_UNIX, folder + "/docker.sock")
    if os.path.exists(folder + "/docker.sock"):
        found.append(folder)
found += [name for _, name in socket.if_nameindex() if name != "lo"]
found += open("/proc/net/route").read().splitlines()[1:]
"""


CAPABILITIES = """
for line in open("/proc/self/status"):
    if line.startswith(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")) and int(line.split()[1], 16):
        found.append(line)
"""

COMPLAIN = """
if found:
    raise SystemExit(f"reached {found}")
"""


def test_untrusted_code_reaches_nothing(deployment: Deployment) -> None:
    checks = probe(deployment) + CAPABILITIES + COMPLAIN
    order = make_order(
        deployment.storage,
        algo=store_algo(deployment.storage, checks + ALGO),
        problem_archive=image_archive(checks + PROBLEM),
    )
    deployment.compute.submit(order)
    job = deployment.compute.wait(order.id, timeout_s=PATIENCE_S)
    assert job.state is JobState.SUCCEEDED, job.failure


def test_builds_reach_nothing(deployment: Deployment) -> None:
    files = {
        "Dockerfile": 'FROM morpheo/base:1\nCOPY probe.py program.py /\nRUN ["python3", "/probe.py"]\n'
        'ENTRYPOINT ["python3", "-S", "/program.py"]\n',
        "probe.py": probe(deployment) + CAPABILITIES + COMPLAIN,
    }
    storage = deployment.storage
    problem = make_archive({**files, "program.py": PROBLEM})
    algo = storage.upload(ArtifactKind.ALGO, make_archive({**files, "program.py": ALGO}), name="probe").id
    order = make_order(storage, algo=algo, problem_archive=problem)
    deployment.compute.submit(order)
    job = deployment.compute.wait(order.id, timeout_s=PATIENCE_S)
    assert job.state is JobState.SUCCEEDED, job.failure


def test_the_probe_finds_what_there_is_to_find(deployment: Deployment) -> None:
    """Else the two tests above would prove nothing."""
    engine = deployment.engine
    made = engine.create_container(
        "morpheo/base:1",
        ["python3", "-c", probe(deployment) + CAPABILITIES + COMPLAIN],
        host_config=engine.create_host_config(network_mode=f"{deployment.project}_inside"),
    )
    try:
        engine.start(made)
        assert engine.wait(made)["StatusCode"] == 1
        found = engine.logs(made).decode()
    finally:
        engine.remove_container(made, force=True)
    for expected in (
        "('broker', 6379)",
        "('database', 5432)",
        "('s3', 9000)",
        "('compute-api', 8081)",
        "CapEff",
        "eth0",
    ):
        assert expected in found


def test_an_image_of_a_problem_is_not_in_the_engine_of_algos(deployment: Deployment) -> None:
    listed = ["docker", "images", "--filter", "dangling=false", "--format", "{{.Repository}}"]
    order = make_order(deployment.storage)
    deployment.compute.submit(order)
    deployment.compute.wait(order.id, timeout_s=PATIENCE_S)
    images = {
        name: set(deployment.compose("exec", "-T", name, *listed).split()) for name in ("problem-engine", "algo-engine")
    }
    assert images == {
        "problem-engine": {"morpheo/base", "morpheo/problem"},
        "algo-engine": {"morpheo/base", "morpheo/algo"},
    }


def test_no_service_is_open_to_those_without_a_password(deployment: Deployment) -> None:
    flower = f"http://127.0.0.1:{deployment.ports['flower']}/api/workers"
    assert requests.get(flower, timeout=10).status_code == 401
    password = deployment.secrets["FLOWER_PASSWORD"]
    assert requests.get(flower, timeout=10, auth=("admin", password)).status_code == 200
    storage = f"http://127.0.0.1:{deployment.ports['storage']}/problem"
    assert requests.get(storage, timeout=10, auth=("u", "p")).status_code == 401
    published = {
        port["PublicPort"]
        for container in deployment.engine.containers(
            filters={"label": f"com.docker.compose.project={deployment.project}"}
        )
        for port in container["Ports"]
        if "PublicPort" in port
    }
    assert published == set(deployment.ports.values())


def test_every_service_runs_with_little(deployment: Deployment) -> None:
    for container in deployment.containers():
        details = deployment.engine.inspect_container(container)
        host, name = details["HostConfig"], details["Config"]["Labels"]["com.docker.compose.service"]
        assert not host["Privileged"], name
        assert host["Memory"], name
        assert host["PidsLimit"], name
        assert "no-new-privileges:true" in host["SecurityOpt"], name
        assert not any("docker.sock" in str(bind) for bind in host["Binds"] or []), name
        knows_password = any(deployment.secrets["MORPHEO_PASSWORD"] in word for word in details["Config"]["Env"])
        assert knows_password is (name == "setup" or name.endswith("-api")), name
        if name.endswith("-engine"):
            assert (host["NetworkMode"], host["ReadonlyRootfs"], host["CgroupnsMode"]) == ("none", True, "private")
            assert sorted(name.removeprefix("CAP_") for name in host["CapAdd"]) == ["NET_ADMIN", "SYS_ADMIN"]


def running_in(deployment: Deployment, engine: str, job_id: UUID) -> list[str]:
    """Return the ids of a job's containers in one of the two engines."""
    command = ["docker", "ps", "--quiet", "--no-trunc", "--filter", f"label=morpheo.job={job_id}"]
    return deployment.compose("exec", "-T", engine, *command).split()


def test_a_killed_inner_daemon_comes_back_and_the_job_ends(deployment: Deployment) -> None:
    algo = store_algo(deployment.storage, "import time\ntime.sleep(8)\n" + ALGO)
    order = make_order(deployment.storage, algo=algo)
    deployment.compute.submit(order)
    wait_until(lambda: bool(running_in(deployment, "algo-engine", order.id)), timeout_s=PATIENCE_S, what="train")
    started = deployment.engine.inspect_container(deployment.container("algo-engine"))["State"]["StartedAt"]
    deployment.compose("exec", "-T", "algo-engine", "sh", "-c", "kill -KILL $(pidof dockerd)")
    job = deployment.compute.wait(order.id, timeout_s=PATIENCE_S)
    assert job.state is JobState.SUCCEEDED, job.failure
    assert deployment.engine.inspect_container(deployment.container("algo-engine"))["State"]["StartedAt"] == started


def test_what_runs_in_an_engine_stays_below_the_engine_s_limits(deployment: Deployment) -> None:
    algo = store_algo(deployment.storage, WAITING_ALGO + ALGO)
    order = make_order(deployment.storage, algo=algo)
    deployment.compute.submit(order)
    wait_until(lambda: bool(running_in(deployment, "algo-engine", order.id)), timeout_s=PATIENCE_S, what="train")
    (nested,) = running_in(deployment, "algo-engine", order.id)
    outer = deployment.container("algo-engine")
    groups = {line for path in Path("/proc").glob("[0-9]*/cgroup") for line in lines_of(path) if nested in line}
    assert groups
    assert all(outer in line.partition(nested)[0] for line in groups), groups
    finish_waiting(deployment, [order.id])


def lines_of(path: Path) -> list[str]:
    """Return the lines of a process's file, none if it has ended meanwhile."""
    try:
        return path.read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return []


#: An algo that runs until it is let go, however slow the machine is; a second signal is as good as one.
WAITING_ALGO = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})
"""
LET_GO = """
for id in $(docker ps --quiet --filter label=morpheo.job); do
  if docker logs "$id" 2>&1 | grep -q ready; then docker kill --signal USR1 "$id"; fi
done
true
"""


def finish_waiting(deployment: Deployment, jobs: list[UUID]) -> None:
    """Let all algos that wait go on, and wait until these jobs have ended."""

    def all_ended() -> bool:
        deployment.compose("exec", "-T", "algo-engine", "sh", "-c", LET_GO)
        return all(deployment.compute.job(job).state.is_final for job in jobs)

    wait_until(all_ended, timeout_s=2 * PATIENCE_S, what="the end of all jobs")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("service", SERVICES)
def test_every_job_ends_once_when_a_container_is_killed(deployment: Deployment, service: str) -> None:
    algo = store_algo(deployment.storage, WAITING_ALGO + ALGO)
    order = make_order(deployment.storage, algo=algo)
    specs = [replace(order, id=uuid4(), model_end=uuid4()) for _ in range(10)]
    for spec in specs:
        deployment.compute.submit(spec)
    running = lambda: [job for job in map(deployment.compute.job, ids(specs)) if job.state is JobState.RUNNING]  # noqa: E731
    wait_until(lambda: len(running()) == 10, timeout_s=2 * PATIENCE_S, what="ten running jobs")
    deployment.engine.kill(deployment.container(service))
    deployment.compose("up", "--detach", "--wait", "--no-recreate", "--no-build", "--scale", "worker=2")
    finish_waiting(deployment, ids(specs))
    jobs = [deployment.compute.job(spec.id) for spec in specs]
    assert {job.state for job in jobs} == {JobState.SUCCEEDED}, [job.failure for job in jobs]
    for job in jobs:
        ends = [attempt.outcome for attempt in job.attempts].count(AttemptOutcome.SUCCEEDED)
        assert ends == 1, job.attempts
    models = {model.id for model in deployment.storage.list(ArtifactKind.MODEL)}
    assert {spec.model_end for spec in specs} <= models


def ids(specs: list) -> list[UUID]:  # type: ignore[type-arg]
    return [spec.id for spec in specs]
