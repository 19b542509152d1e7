"""The doctor and a stack in which all is well."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from uuid import uuid4

import pytest
from docker import APIClient

from tests.conftest import missing
from tests.support.doctor import GOOD_REDIS, doctor_command
from tests.support.services import S3Server, engine_url, redis_binary, redis_server


@pytest.mark.docker
@pytest.mark.database
@pytest.mark.redis
@pytest.mark.s3
def test_a_healthy_stack_passes(engine: APIClient, postgres_url: str, s3: S3Server, tmp_path: Path) -> None:
    binary = redis_binary()
    if binary is None:
        missing("Redis")
    with redis_server(tmp_path, binary, *GOOD_REDIS) as url:
        environment = {
            **os.environ,
            "MORPHEO_DATA_DIR": str(tmp_path / "data"),
            "MORPHEO_DOCKER_HOST": engine_url(),
            "MORPHEO_DATABASE_URL": postgres_url,
            "MORPHEO_BROKER_URL": url.replace("://", "://:secret@"),
            "MORPHEO_S3_ENDPOINT": s3.endpoint,
            "MORPHEO_S3_ACCESS_KEY": s3.access_key,
            "MORPHEO_S3_SECRET_KEY": s3.secret_key,
            "MORPHEO_S3_SECURE": "false",
            "MORPHEO_S3_BUCKET": f"doctor-{uuid4().hex[:12]}",
            "MORPHEO_PASSWORD": "correct horse battery staple",
            # One job takes less than any machine has.
            **{f"MORPHEO_{name}_BYTES": str(1 << 20) for name in ("CONTEXT", "MODEL", "PREDICTION")},
        }
        done = subprocess.run(doctor_command(), env=environment, capture_output=True, text=True, check=False)
    findings = json.loads(done.stdout)
    # Other programs may have the ports of this machine; they have a test of their own.
    findings = [found for found in findings if not found["check"].startswith("node.port")]
    assert [found for found in findings if found["status"] != "ok"] == []
    assert len(findings) >= 25
