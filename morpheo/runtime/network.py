"""
The way out of one build: a network of its own, with nothing in it but a relay to the build proxy.

A container without any interface but loopback runs `morpheo.runtime.relay`, and the build's instructions share its
network. No engine has to route, filter or resolve anything for this, so there is nothing that leads elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from docker import APIClient
from docker.errors import APIError, ImageNotFound, NotFound
from docker.types import HostConfig, LogConfig, Mount

from morpheo.errors import RuntimeUnavailable
from morpheo.runtime import relay
from morpheo.runtime.contract import BuildNetwork, BuildSpec, Profile
from morpheo.runtime.profile import API_VERSION, LABEL_LIMIT, LABEL_NODE, owner_labels

#: Where a build finds the proxy.
PROXY_URL = f"http://127.0.0.1:{relay.PORT}"
#: How long the relay may take to listen, and how often it is looked at, in seconds.
START_S = 30.0
_LOOK_S = 0.02
_MEMORY_BYTES = 64 << 20
_PIDS = 128


@contextmanager
def relayed(client: APIClient, spec: BuildSpec, profile: Profile, *, node: str) -> Iterator[str]:
    """
    Give the engine's word for the network of a build: that of a relay, which is gone afterwards, or none.

    Raises:
        RuntimeUnavailable: the relay does not come up, or does not reach the proxy.
    """
    if spec.network is None:
        yield "none"
        return
    name = f"morpheo-{spec.owner.job_id}-{spec.owner.attempt}-network"
    try:
        container_id = _create(client, name, _arguments(spec, spec.network, profile, node=node))
        client.start(container_id)
        _wait_until_it_listens(client, container_id, spec.network)
        yield f"container:{container_id}"
    finally:
        _remove(client, name)


def _create(client: APIClient, name: str, arguments: dict[str, Any]) -> str:
    _remove(client, name)  # left by a worker that died: the name is ours alone
    try:
        return str(client.create_container(name=name, **arguments)["Id"])
    except ImageNotFound as exc:
        image = arguments["image"]
        raise RuntimeUnavailable(
            f"the engine has no image {image}, which brings builds to their proxy; load it there, or set "
            "MORPHEO_BUILD_RELAY_IMAGE"
        ) from exc
    except APIError as exc:
        if exc.status_code == requests.codes.bad_request and "bind source path" in str(exc.explanation):
            raise RuntimeUnavailable(
                "the engine does not see the folder of MORPHEO_BUILD_PROXY; start `morpheo build-proxy` there"
            ) from exc
        raise


def _arguments(spec: BuildSpec, network: BuildNetwork, profile: Profile, *, node: str) -> dict[str, Any]:
    words = (str(Path("/proxy", network.proxy_socket.name)), str(spec.owner.job_id), str(spec.owner.attempt))
    return {
        "image": network.relay_image,
        "entrypoint": ["python3", "-S", "-c", Path(relay.__file__).read_text()],
        "command": list(words),
        "user": f"{profile.user}:{profile.user}",
        "working_dir": "/",
        "labels": {**owner_labels(spec.owner), LABEL_NODE: node, LABEL_LIMIT: f"{spec.timeout_s + START_S:g}"},
        "healthcheck": {"test": ["NONE"]},
        "stop_signal": "SIGKILL",
        "host_config": HostConfig(
            version=API_VERSION,
            network_mode="none",
            dns=["127.0.0.1"],
            dns_search=["."],
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges:true"],
            pids_limit=_PIDS,
            mem_limit=_MEMORY_BYTES,
            memswap_limit=_MEMORY_BYTES,
            log_config=LogConfig(type="json-file", config={"max-size": "64k", "max-file": "1"}),
            mounts=[Mount(type="bind", source=str(network.proxy_socket.parent), target="/proxy", read_only=True)],
        ),
    }


def _wait_until_it_listens(client: APIClient, container_id: str, network: BuildNetwork) -> None:
    give_up = time.monotonic() + START_S
    while time.monotonic() < give_up:
        running = client.inspect_container(container_id)["State"]["Running"]
        if relay.LISTENING.encode() in client.logs(container_id):
            return
        if not running:
            break
        time.sleep(_LOOK_S)
    raise RuntimeUnavailable(
        f"the proxy of image builds does not answer at {network.proxy_socket}; start `morpheo build-proxy`, or leave "
        "MORPHEO_BUILD_PROXY empty"
    )


def _remove(client: APIClient, name: str) -> None:
    try:
        client.remove_container(name, force=True, v=True)
    except NotFound:
        return
