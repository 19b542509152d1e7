"""What the tests of the doctor share."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from morpheo.doctor.findings import Check, Finding, Status, examine

#: Options of a Redis server with the password ``secret`` in which the doctor finds nothing wrong.
GOOD_REDIS = ("--requirepass", "secret", "--appendonly", "yes", "--maxmemory-policy", "noeviction")
# With more patience than it has where it alone uses the services.
_DOCTOR = """
import sys
from morpheo.cli import main
from morpheo.doctor import blobs, broker, confinement, engine
blobs.TIMEOUT_S = broker.TIMEOUT_S = 15.0
for module in engine, confinement:
    module.CALL_S, module.PROBE_S = 60.0, 120.0
sys.argv[1:] = ["doctor", "--json", "--only", sys.argv[1]]
main()
"""


def diagnose(checks: Sequence[Check]) -> dict[str, Finding]:
    """Run checks; gives each one's finding."""
    return {finding.check: finding for finding in examine([checks], lambda _: None)}


def failed(findings: dict[str, Finding], name: str) -> Finding:
    """Return a finding that must be a failure, and the only one."""
    assert {found.check for found in findings.values() if found.status is Status.FAIL} == {name}, findings
    assert findings[name].fix
    return findings[name]


def doctor_command(*only: str) -> list[str]:
    """Return the arguments that run the doctor as a program."""
    return [sys.executable, "-c", _DOCTOR, ",".join(only)]
