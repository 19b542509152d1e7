"""What a container may do: the create arguments, against the list in which each line stops an attack."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from morpheo.models import StepName
from morpheo.runtime.contract import Bind, ContainerSpec, Owner, Profile
from morpheo.runtime.profile import create_arguments, owner_labels

JOB = UUID("8b9c7d1e-0000-4000-8000-000000000001")
OWNER = Owner(job_id=JOB, attempt=2, worker="node-1-abc")
PROFILE = Profile(
    user=10001,
    memory_bytes=512 << 20,
    cpus=1.5,
    pids=100,
    tmp_bytes=64 << 20,
    log_bytes=1000,
    file_bytes=7 << 20,
)
BINDS = (
    Bind(source=Path("/node/test"), target="/data/test"),
    Bind(source=Path("/node/pred"), target="/data/test/pred", writable=True),
)


def make_spec(**changes: Any) -> ContainerSpec:
    values: dict[str, Any] = {
        "owner": OWNER,
        "step": StepName.TRAIN,
        "image_id": "sha256:abc",
        "args": ("-V", "/data", "-T", "train"),
        "binds": BINDS,
        "timeout_s": 10.0,
    }
    return ContainerSpec(**{**values, **changes})


@pytest.fixture
def arguments() -> dict[str, Any]:
    """The create arguments of a train container."""
    return create_arguments(make_spec(), PROFILE, node="node-1")


@pytest.fixture
def host(arguments: dict[str, Any]) -> dict[str, Any]:
    """The host configuration in the engine's own words."""
    return dict(arguments["host_config"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image", "sha256:abc"),
        ("command", ["-V", "/data", "-T", "train"]),
        ("user", "10001:10001"),
        ("working_dir", "/data"),
        ("hostname", "job"),
        ("environment", {"HOME": "/tmp"}),
        ("healthcheck", {"test": ["NONE"]}),
        ("stop_signal", "SIGKILL"),
        ("network_disabled", True),
        ("tty", False),
        ("stdin_open", False),
        ("name", f"morpheo-{JOB}-2-train"),
    ],
)
def test_a_container_is_created_with(arguments: dict[str, Any], name: str, value: object) -> None:
    assert arguments[name] == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NetworkMode", "none"),
        ("Dns", ["127.0.0.1"]),
        ("DnsSearch", ["."]),
        ("ReadonlyRootfs", True),
        ("Init", True),
        ("CapDrop", ["ALL"]),
        ("SecurityOpt", ["no-new-privileges:true"]),
        ("IpcMode", "private"),
        ("ShmSize", 64 << 20),
        ("PidsLimit", 100),
        ("Memory", 512 << 20),
        ("MemorySwap", 512 << 20),  # with swap included: none of it is swap
        ("NanoCpus", 1_500_000_000),
        ("OomScoreAdj", 1000),
        ("RestartPolicy", {"Name": "no"}),
        ("LogConfig", {"Type": "json-file", "Config": {"max-size": "1000", "max-file": "1"}}),
    ],
)
def test_the_host_configuration_has(host: dict[str, Any], name: str, value: object) -> None:
    assert host[name] == value


@pytest.mark.parametrize(
    "name",
    [
        "Privileged",
        "AutoRemove",
        "CapAdd",
        "Devices",
        "DeviceRequests",
        "DeviceCgroupRules",
        "Binds",
        "VolumesFrom",
        "PidMode",
        "UTSMode",
        "UsernsMode",
        "CgroupParent",
        "GroupAdd",
        "ExtraHosts",
        "Links",
        "PortBindings",
        "PublishAllPorts",
        "Sysctls",
        "OomKillDisable",
    ],
)
def test_the_host_configuration_gives_nothing_else(host: dict[str, Any], name: str) -> None:
    assert not host.get(name)


@pytest.mark.parametrize("name", ["volumes", "ports", "entrypoint", "domainname", "mac_address", "runtime"])
def test_no_other_argument_is_given(arguments: dict[str, Any], name: str) -> None:
    assert name not in arguments


def test_the_workers_own_docker_configuration_gives_no_variable(arguments: dict[str, Any]) -> None:
    assert arguments["use_config_proxy"] is False


def test_another_runtime_is_asked_for_by_its_name(host: dict[str, Any]) -> None:
    assert not host.get("Runtime")  # the engine's default, whatever it is
    profile = dataclasses.replace(PROFILE, runtime="runsc")
    assert create_arguments(make_spec(), profile, node="n")["host_config"]["Runtime"] == "runsc"


def test_a_step_of_the_platform_has_its_own_entry_point() -> None:
    arguments = create_arguments(make_spec(entrypoint=("python3", "-c", "x")), PROFILE, node="n")
    assert arguments["entrypoint"] == ["python3", "-c", "x"]


def test_masked_and_read_only_paths_are_the_engines(host: dict[str, Any]) -> None:
    assert host.get("MaskedPaths") is None
    assert host.get("ReadonlyPaths") is None


def test_the_default_seccomp_profile_stays_on(host: dict[str, Any]) -> None:
    assert not [option for option in host["SecurityOpt"] if "seccomp" in option or "apparmor" in option]


def test_files_descriptors_and_core_dumps_are_limited(host: dict[str, Any]) -> None:
    limits = {limit["Name"]: (limit["Soft"], limit["Hard"]) for limit in host["Ulimits"]}
    assert limits == {"nofile": (1024, 1024), "core": (0, 0), "fsize": (7 << 20, 7 << 20)}


def test_only_tmp_is_writable_in_the_image_with_limits_and_an_owner(host: dict[str, Any]) -> None:
    assert list(host["Tmpfs"]) == ["/tmp"]
    options = set(host["Tmpfs"]["/tmp"].split(","))
    assert options == {
        "rw",
        "exec",
        "nosuid",
        "nodev",
        f"size={64 << 20}",
        "nr_inodes=65536",
        "uid=10001",
        "gid=10001",
        "mode=0700",
    }


def test_mounts_are_binds_and_read_only_unless_listed_as_writable(host: dict[str, Any]) -> None:
    assert [(mount["Type"], mount["Source"], mount["Target"], mount["ReadOnly"]) for mount in host["Mounts"]] == [
        ("bind", "/node/test", "/data/test", True),
        ("bind", "/node/pred", "/data/test/pred", False),
    ]


def test_a_bind_is_read_only_if_nobody_says_anything() -> None:
    host = create_arguments(make_spec(binds=(Bind(source=Path("/a"), target="/b"),)), PROFILE, node="n")["host_config"]
    assert [mount["ReadOnly"] for mount in host["Mounts"]] == [True]


def gpu_requests(gpus: str, *, gpu: bool) -> Any:
    """Return the device requests of a container, in the engine's own words."""
    profile = dataclasses.replace(PROFILE, gpus=gpus)
    return create_arguments(make_spec(gpu=gpu), profile, node="n")["host_config"].get("DeviceRequests")


@pytest.mark.parametrize(
    ("gpus", "count", "ids"),
    [
        ("all", -1, []),
        ("2", 2, []),
        ("0,3", 0, ["0", "3"]),
        ("0,", 0, ["0"]),
        ("GPU-8c3f0a2e,MIG-77", 0, ["GPU-8c3f0a2e", "MIG-77"]),
    ],
)
def test_a_container_that_asks_for_gpus_gets_those_of_the_profile(gpus: str, count: int, ids: list[str]) -> None:
    assert gpu_requests(gpus, gpu=True) == [
        {"Driver": "", "Count": count, "DeviceIDs": ids, "Capabilities": [["gpu"]], "Options": {}}
    ]


@pytest.mark.parametrize(("gpus", "gpu"), [("all", False), ("", True), ("", False)])
def test_no_other_container_gets_any(gpus: str, *, gpu: bool) -> None:
    assert not gpu_requests(gpus, gpu=gpu)


def test_a_container_says_whose_it_is(arguments: dict[str, Any]) -> None:
    assert arguments["labels"] == {
        "morpheo.job": str(JOB),
        "morpheo.attempt": "2",
        "morpheo.worker": "node-1-abc",
        "morpheo.step": "train",
        "morpheo.limit": "10",
        "morpheo.node": "node-1",
    }


def test_a_build_says_whose_it_is() -> None:
    assert owner_labels(OWNER) == {"morpheo.job": str(JOB), "morpheo.attempt": "2", "morpheo.worker": "node-1-abc"}


def test_containers_of_other_attempts_and_steps_have_other_names() -> None:
    specs = [
        make_spec(),
        make_spec(step=StepName.PERF),
        make_spec(owner=Owner(job_id=JOB, attempt=3)),
        make_spec(owner=Owner(job_id=UUID(int=1), attempt=2)),
    ]
    names = {create_arguments(spec, PROFILE, node="n")["name"] for spec in specs}
    assert len(names) == 4
