"""
What a container may do: one pure function turns a `ContainerSpec` into the engine's create arguments.

The list follows ``trust`` 5.2. An image's own USER, ENTRYPOINT arguments apart, decides nothing here: its WORKDIR,
HEALTHCHECK, STOPSIGNAL and VOLUME are overridden or refused. What is not named here stays as the engine has it: the
default seccomp profile, and the masked and read-only paths of ``/proc`` and ``/sys``.
"""

from __future__ import annotations

from typing import Any

from docker.types import DeviceRequest, HostConfig, LogConfig, Mount, Ulimit

from morpheo.runtime.contract import ContainerSpec, Owner, Profile

LABEL_JOB = "morpheo.job"
LABEL_ATTEMPT = "morpheo.attempt"
LABEL_STEP = "morpheo.step"
LABEL_NODE = "morpheo.node"
LABEL_WORKER = "morpheo.worker"
#: How long a container may run, in seconds.
LABEL_LIMIT = "morpheo.limit"
#: Oldest API that knows all that is used here; also what builds the host configuration.
API_VERSION = "1.41"


def owner_labels(owner: Owner) -> dict[str, str]:
    """Return the labels that say whose a container or image build is."""
    return {LABEL_JOB: str(owner.job_id), LABEL_ATTEMPT: str(owner.attempt), LABEL_WORKER: owner.worker}


def create_arguments(spec: ContainerSpec, profile: Profile, *, node: str) -> dict[str, Any]:
    """Return the keyword arguments of docker-py's low-level ``create_container``."""
    return {
        "name": spec.name,
        "image": spec.image_id,
        **({"entrypoint": list(spec.entrypoint)} if spec.entrypoint else {}),
        "command": list(spec.args),
        "user": f"{profile.user}:{profile.user}",
        "working_dir": "/data",
        "hostname": "job",
        "environment": {"HOME": "/tmp"},  # noqa: S108 - the container's own
        "use_config_proxy": False,  # nor those of the worker's own Docker configuration, with their passwords
        "labels": {
            **owner_labels(spec.owner),
            LABEL_STEP: spec.step,
            LABEL_NODE: node,
            LABEL_LIMIT: f"{spec.timeout_s:g}",
        },
        "healthcheck": {"test": ["NONE"]},
        "stop_signal": "SIGKILL",
        "network_disabled": True,
        "tty": False,
        "stdin_open": False,
        "host_config": _host_config(spec, profile),
    }


def _host_config(spec: ContainerSpec, profile: Profile) -> HostConfig:
    owner = f"uid={profile.user},gid={profile.user}"
    return HostConfig(
        version=API_VERSION,
        network_mode="none",
        dns=["127.0.0.1"],  # or the host's resolv.conf is copied in
        dns_search=["."],
        read_only=True,
        init=True,
        runtime=profile.runtime or None,
        privileged=False,
        devices=[],
        cap_drop=["ALL"],
        security_opt=["no-new-privileges:true"],
        ipc_mode="private",
        shm_size=64 << 20,
        pids_limit=profile.pids,
        mem_limit=profile.memory_bytes,
        memswap_limit=profile.memory_bytes,
        nano_cpus=int(profile.cpus * 1e9),
        oom_score_adj=1000,
        ulimits=[
            Ulimit(name="nofile", soft=1024, hard=1024),
            Ulimit(name="core", soft=0, hard=0),
            Ulimit(name="fsize", soft=profile.file_bytes, hard=profile.file_bytes),
        ],
        # Docker makes every tmpfs noexec by itself; numba and other compilers need to run what they write.
        tmpfs={"/tmp": f"rw,exec,nosuid,nodev,size={profile.tmp_bytes},nr_inodes=65536,{owner},mode=0700"},  # noqa: S108
        log_config=LogConfig(type="json-file", config={"max-size": str(profile.log_bytes), "max-file": "1"}),
        restart_policy={"Name": "no"},
        auto_remove=False,
        mounts=[
            Mount(type="bind", source=str(bind.source), target=bind.target, read_only=not bind.writable)
            for bind in spec.binds
        ],
        device_requests=[_gpu_request(profile.gpus)] if spec.gpu and profile.gpus else None,
    )


def _gpu_request(gpus: str) -> DeviceRequest:
    if gpus == "all" or gpus.isdecimal():
        return DeviceRequest(count=-1 if gpus == "all" else int(gpus), capabilities=[["gpu"]])
    return DeviceRequest(device_ids=[name for name in gpus.split(",") if name], capabilities=[["gpu"]])
