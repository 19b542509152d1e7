"""How tight an engine holds containers: its runtime, its seccomp profile, its user namespaces, output folders."""

from __future__ import annotations

import os
from contextlib import closing
from functools import partial
from typing import Any
from uuid import uuid4

from docker import APIClient
from docker.errors import ImageNotFound

from morpheo.config import KIB, MIB, Settings
from morpheo.doctor.findings import Check, Finding, fail, ok, warn
from morpheo.models import StepName
from morpheo.runtime.contract import ContainerSpec, Interrupt, Owner, Profile
from morpheo.runtime.docker import DockerRuntime, read_facts
from morpheo.runtime.volume import why_no_volumes
from morpheo.runtime.workspace import remove_tree

#: How long one call to the engine may take, and a container, in seconds.
CALL_S, PROBE_S = 10.0, 20.0


def checks(url: str, settings: Settings, *, name: str = "engine", sanitizes: bool) -> list[Check]:
    """
    Return the checks of one engine.

    Args:
        url: Its URL.
        settings: What containers may use.
        name: What the engine is called in the findings.
        sanitizes: Whether predictions are written anew there.
    """
    answers = f"{name}.answers"
    found = [
        Check(name=f"{name}.sandbox", run=partial(_check_sandbox, url, settings), needs=(answers,)),
        Check(name=f"{name}.outputs", run=partial(_check_outputs, url, settings), needs=(answers, f"{name}.data")),
    ]
    if sanitizes:
        run = partial(_check_sanitizer, url, settings)
        deadline_s = PROBE_S + 2 * CALL_S
        found.append(Check(name=f"{name}.sanitizer", run=run, needs=(f"{name}.sandbox",), deadline_s=deadline_s))
    return found


def _info(url: str) -> dict[str, Any]:
    with closing(APIClient(base_url=url, version="auto", timeout=int(CALL_S))) as client:
        return dict(client.info())


def _check_sandbox(url: str, settings: Settings) -> Finding:
    info = _info(url)
    known = info.get("Runtimes") or {}
    if settings.sandbox == "runsc" and "runsc" not in known:
        return fail(
            f"MORPHEO_SANDBOX=runsc, and the engine knows only {', '.join(sorted(known))}",
            "`apt-get install runsc`, and in /etc/docker/daemon.json "
            '"runtimes": {"runsc": {"path": "/usr/bin/runsc", "runtimeArgs": ["--network=none"]}}; restart the engine',
        )
    options = info.get("SecurityOptions") or []
    if not any(option.startswith("name=seccomp") and "profile=unconfined" not in option for option in options):
        return warn("the engine filters no system calls (seccomp)", "start it with its default seccomp profile")
    first_id = read_facts(url, info).first_id
    users = f"root is user {first_id} here" if first_id else "no user namespaces"
    return ok(f"{settings.sandbox}, seccomp, {users}")


def _check_outputs(url: str, settings: Settings) -> Finding:
    if not settings.output_volumes:
        return ok("output folders are counted every 2 s (MORPHEO_OUTPUT_VOLUMES=false)")
    folder = settings.data_dir / f"volume-trial-doctor-{os.getpid()}"
    remove_tree(folder)
    why = why_no_volumes(folder, [read_facts(url, _info(url)).pid])
    if why:
        return ok(f"output folders are counted every 2 s: {why}")
    return ok("the output folders of each job have a file system of their own")


def _check_sanitizer(url: str, settings: Settings) -> Finding:
    image = settings.sanitizer_image
    fix = "`scripts/base-image`, or MORPHEO_SANITIZER_IMAGE=an image of that engine with python3 and h5py"
    with closing(APIClient(base_url=url, version="auto", timeout=int(CALL_S))) as client:
        try:
            image_id = client.inspect_image(image)["Id"]
        except ImageNotFound:
            return warn(f"the engine has no image {image}: jobs with HDF5 predictions fail", fix)
    profile = Profile(
        user=settings.container_user,
        memory_bytes=256 * MIB,
        cpus=settings.cpus,
        pids=64,
        tmp_bytes=MIB,
        log_bytes=64 * KIB,
        file_bytes=MIB,
        runtime="" if settings.sandbox == "runc" else settings.sandbox,
    )
    runtime = DockerRuntime(url, profile=profile, node=f"doctor-{uuid4().hex}", timeout_s=CALL_S)
    spec = ContainerSpec(
        owner=Owner(job_id=uuid4(), attempt=1, worker="doctor"),
        step=StepName.SANITIZE,
        image_id=image_id,
        entrypoint=("python3", "-I", "-c", "import h5py; print(h5py.version.hdf5_version)"),
        args=(),
        binds=(),
        timeout_s=PROBE_S,
    )
    result = runtime.run(spec, interrupt=Interrupt())
    said = result.log.decode(errors="replace").strip()[-200:]
    if result.exit_code != 0:
        return warn(f"{image} cannot rewrite HDF5 predictions: {result.start_error or said or 'it said nothing'}", fix)
    return ok(f"{image}, HDF5 {said}")
