"""
Every setting of Morpheo, read once from the environment.

A field ``lease_s`` is the variable ``MORPHEO_LEASE_S``; the description and the default of each field are what
``morpheo config`` prints. Sizes are bytes, times are seconds.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from morpheo.access import is_name
from morpheo.errors import SettingsError
from morpheo.queues import consumed

PREFIX = "MORPHEO_"
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

#: The brokers that Morpheo is set up for: with and without TLS, Redis also on a socket or found by Sentinel.
_BROKERS = ("redis://", "rediss://", "redis+socket://", "sentinel://", "amqp://", "amqps://")

#: The password of `morpheo dev` if none is set; no other service has one that nobody set.
DEV_PASSWORD = "p"  # noqa: S105 - known to everybody

#: Threads of an API process that are not for requests which last.
SHORT_THREADS = 3

#: A token, or user and password.
Login = str | tuple[str, str]

CommaSeparated = Annotated[tuple[str, ...], NoDecode]
#: Not patterns, for which flask-cors would take some texts.
_Origin = Annotated[str, Field(pattern=r"^(\*|[a-z][a-z0-9+.-]*://[\w.:-]*)$")]
Origins = Annotated[tuple[_Origin, ...], NoDecode]


class Settings(BaseSettings):
    """The settings of one process; immutable."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", allow_inf_nan=False)

    data_dir: Path = Field(
        Path.home() / ".morpheo",
        description="Folder of all that this machine keeps: database file, blobs, caches, workspaces. "
        "The container engine must see it at the same path",
    )
    database_url: SecretStr = Field(
        SecretStr(""),
        description="SQLAlchemy URL; empty is a SQLite file in the data folder. "
        "Example: postgresql+psycopg://user:password@host/morpheo",
    )
    broker_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"),
        description="URL of the broker: Redis, or RabbitMQ as amqp://user:password@host/vhost",
    )

    s3_endpoint: str = Field(
        "", description="host:port of the S3 server that keeps blobs; empty is a folder in the data folder"
    )
    s3_bucket: str = Field("morpheo", min_length=3, description="Bucket of the blobs; made if it does not exist")
    s3_access_key: str = Field("", description="Access key of the S3 server")
    s3_secret_key: SecretStr = Field(SecretStr(""), description="Secret key of the S3 server")
    s3_region: str = Field("us-east-1", description="Region of the S3 server")
    s3_secure: bool = Field(True, description="Speak HTTPS with the S3 server")

    compute_url: str = Field("http://127.0.0.1:8081", description="Address of the compute API, for the command line")
    storage_url: str = Field("http://127.0.0.1:8082", description="Address of the storage API, for the command line")
    orchestrator_url: str = Field(
        "",
        description="Address of the orchestrator API, for the command line; empty is http://127.0.0.1:8083. If it is "
        "set, workers also report to it the jobs that were ordered at the compute API",
    )
    user: str = Field(
        "u",
        min_length=1,
        max_length=64,
        description="Who commands, and reports to an outside orchestrator, come from; for the APIs an admin who needs "
        "no row, if MORPHEO_PASSWORD is set",
    )
    password: SecretStr = Field(
        SecretStr(""), description="Password of that user; empty is none, and the APIs then know their own users only"
    )
    token: SecretStr = Field(SecretStr(""), description="API token that commands send instead of user and password")
    anonymous_orders: bool = Field(
        False,
        description="Take orders at the compute API (POST /learn and /pred) from whoever gives no password, as "
        "orchestrators of 2017 need it; what else can reach that port can then order, too",
    )
    max_requests_per_minute: int = Field(
        1200, ge=0, description="Requests of one user, no admin, that one process of an API serves; 0 is any number"
    )
    max_orders_waiting: int = Field(
        1000, ge=0, description="Orders of one user, no admin, that may wait for a worker; 0 is any number"
    )
    max_uploads_per_day: int = Field(
        1000, ge=0, description="Artifacts of one kind that one user, no admin, may store in 24 hours; 0 is any number"
    )
    cors_origins: Origins = Field(
        (),
        description="Origins whose web pages may call the storage and orchestrator APIs, comma-separated; * is any, "
        "but without the logins that a browser keeps",
    )
    trusted_proxies: int = Field(
        0,
        ge=0,
        le=8,
        description="Proxies before the APIs whose X-Forwarded-For and X-Forwarded-Proto are believed; with 0, "
        "nobody's are",
    )
    tls_certificate: str = Field(
        "", description="PEM file with the certificate of the APIs and its chain; empty is plain HTTP"
    )
    tls_key: str = Field("", description="PEM file with the key of that certificate")
    strict_size: bool = Field(
        False, description="Refuse an upload whose size field differs from the bytes received (clients of 2017 lie)"
    )
    max_blob_bytes: int = Field(48 * GIB, gt=0, description="Largest blob that can be uploaded")
    max_order_bytes: int = Field(
        MIB, gt=0, description="Largest JSON document that the compute and orchestrator APIs read"
    )
    api_threads: int = Field(8, gt=0, description="Requests that one process of an API serves at once")
    api_followers: int = Field(
        4,
        ge=0,
        description="Followers of logs that one process of the compute API serves at once; each takes one of its "
        "threads, of which four are left for others",
    )
    api_processes: int = Field(2, gt=0, description="Processes of each API")

    queues: CommaSeparated = Field(
        ("learn", "predict"),
        description="Jobs that a worker takes, comma-separated: learn and predict are those without tags, "
        "any other word is a tag that this machine has (at most 4)",
    )
    submitter: str = Field(
        "",
        description="User whose algos alone a worker runs; empty is all that ENGINE_PER_SUBMITTER does not keep apart",
    )
    engine_per_submitter: bool = Field(
        False,
        description="Jobs of a user's algos go only to workers that have that user as SUBMITTER, and engines of their "
        "own: programs, layers and images of two users never meet",
    )
    learn_parallelism: int = Field(1, ge=0, description="Learn jobs that one worker runs at once; 0 is none ever")
    predict_parallelism: int = Field(1, ge=0, description="Predict jobs that one worker runs at once; 0 is none ever")
    lease_s: float = Field(30, gt=0, description="How long a worker holds a job without renewing its lease")
    heartbeat_s: float = Field(10, gt=0, description="How often a worker renews the lease of its jobs")
    self_fence_s: float = Field(
        600,
        gt=0,
        description="How long a worker goes on with a job without any contact with the database before it stops its "
        "containers",
    )
    sweep_s: float = Field(10, gt=0, description="How often a worker looks for lost and unpublished jobs")
    max_attempts: int = Field(3, gt=0, description="Attempts that infrastructure may cost a job before it fails")
    retry_delay_s: float = Field(
        10, ge=0, description="Wait before the first retry; doubles with each one, up to a minute"
    )
    outage_s: float = Field(
        3600,
        ge=0,
        description="How long after the first vain attempt a job waits for a database, S3 server or engine that does "
        "not answer, without counting attempts",
    )
    stop_grace_s: float = Field(30, ge=0, description="How long a worker that was told to stop lets jobs finish")

    alive_dir: str = Field(
        "",
        description="Folder where each node of a worker touches a file while it speaks with its broker, for health "
        "checks; empty is none",
    )

    docker_host: str = Field(
        "", description="URL of the container engine; empty is DOCKER_HOST, else unix:///var/run/docker.sock"
    )
    algo_docker_host: str = Field(
        "", description="URL of another engine, for algos only; empty is the same engine as that of problems"
    )
    engine_timeout_s: float = Field(60, gt=0, description="How long one call to the container engine may take")
    engine_return_s: float = Field(
        120,
        ge=0,
        description="How long a job whose container runs waits for a container engine that is out, before it is tried "
        "again",
    )
    build_timeout_s: float = Field(900, gt=0, description="How long the build of an image may take")
    learn_timeout_s: float = Field(1200, gt=0, description="How long each container of a learn job may run")
    predict_timeout_s: float = Field(1200, gt=0, description="How long the container of a predict job may run")
    build_proxy: str = Field(
        "",
        pattern=r"^(|/.+)$",
        description="Unix socket of the proxy through which image builds reach package mirrors (`morpheo build-proxy`)"
        ", where the container engine sees it; empty: builds have no network",
    )
    build_hosts: CommaSeparated = Field(
        ("pypi.org", "files.pythonhosted.org", "deb.debian.org", "security.debian.org"),
        description="Hosts that this proxy lets builds reach, comma-separated; *.example is every name below example",
    )
    build_relay_image: str = Field(
        "morpheo/base:1",
        description="Image of the container engine with Python 3, which brings the requests of a build to the proxy",
    )
    base_images: CommaSeparated = Field(
        ("morpheo/base:*", "scratch"),
        description="Images that a Dockerfile may name in FROM, comma-separated, * is any text",
    )
    container_uid: int = Field(
        10001, gt=0, description="User and group id of every container, if the worker is root; else the worker's own"
    )
    memory_bytes: int = Field(2 * GIB, ge=16 * MIB, description="Memory of a container, swap included")
    cpus: float = Field(1.0, gt=0, description="Processors that a container may keep busy")
    sandbox: str = Field(
        "runc",
        pattern="^(runc|runsc)$",
        description="What runs the containers of jobs: the engine's default runtime (runc), or gVisor, which the "
        "engine must know as runsc",
    )
    sanitizer_image: str = Field(
        "morpheo/base:1-hdf5",
        min_length=1,
        description="Image with python3 and h5py, in the engine of problems, in which HDF5 predictions are written "
        "anew before they are scored",
    )
    gpus: str = Field(
        "",
        pattern=r"^(|all|[1-9]\d*|[\w:/-]+(,[\w:/-]*)+)$",
        description="GPUs that containers of jobs with the tag gpu get, if they run submitted algos: all, how many, "
        "or ids as the engine knows them, comma-separated (a comma after a single one); empty is none",
    )
    pids: int = Field(256, gt=0, description="Processes and threads of a container")
    tmp_bytes: int = Field(256 * MIB, gt=0, description="Size of a container's /tmp")
    log_bytes: int = Field(
        MIB,
        gt=0,
        description="How much of the log of a container or build is kept: half from its beginning, half from its end",
    )
    context_bytes: int = Field(2 * GIB, gt=0, description="Largest build context and model, unpacked")
    context_entries: int = Field(10_000, gt=0, description="Most files and folders in a build context or model")
    image_bytes: int = Field(8 * GIB, gt=0, description="Largest image that a build may leave")
    model_bytes: int = Field(
        GIB, gt=0, description="Largest model that a container may leave, or that is uploaded, unpacked"
    )
    model_files: int = Field(1000, gt=0, description="Most files in a model that a container leaves")
    prediction_bytes: int = Field(
        GIB, gt=0, description="Largest prediction file that a container may leave, or that is uploaded"
    )
    output_bytes: int = Field(
        3 * GIB,
        gt=0,
        description="What the output folders of a job may hold together while its containers run, besides twice the "
        "size of its test data",
    )
    output_volumes: bool = Field(
        True,
        description="Give the output folders of each job a file system of their own, if the worker may mount one where "
        "the engine sees it; else they are counted every 2 s",
    )
    cache_bytes: int = Field(
        20 * GIB, gt=0, description="Size of the node's cache of blobs, and of that of detargeted test sets"
    )

    disk_high: float = Field(
        2 * GIB,
        ge=0,
        description="High watermark of this machine's disk, which no job may cross: bytes that stay free, or, up to 1, "
        "the share that may be used (0.9)",
    )
    disk_low: float = Field(
        5 * GIB,
        ge=0,
        description="Low watermark, in the same way: how far caches and idle images go when a job needs room",
    )

    metrics_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="Port of a worker's Prometheus metrics, the next one for its predict node; 0 is none",
    )
    metrics_host: str = Field("127.0.0.1", description="Address at which a worker serves its metrics")
    log: str = Field("text", pattern="^(text|json)$", description="How lines of the log look: text or json")
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="How much is logged")

    @field_validator("cors_origins", "base_images", "build_hosts", "queues", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("database_url")
    @classmethod
    def _is_supported(cls, value: SecretStr) -> SecretStr:
        if value.get_secret_value() and not value.get_secret_value().startswith(
            ("sqlite:///", "postgresql+psycopg://")
        ):
            raise ValueError("must begin with sqlite:/// or postgresql+psycopg://")
        return value

    @field_validator("broker_url")
    @classmethod
    def _is_a_broker(cls, value: SecretStr) -> SecretStr:
        if not value.get_secret_value().startswith(_BROKERS):
            raise ValueError(f"must begin with one of {' '.join(_BROKERS)}")
        try:
            _ = urlsplit(value.get_secret_value()).port
        except ValueError:
            raise ValueError("its port is not a number from 0 to 65535; write a colon in a password as %3A") from None
        return value

    @field_validator("queues")
    @classmethod
    def _are_queues(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        consumed(value)
        return value

    @field_validator("submitter")
    @classmethod
    def _is_a_user(cls, value: str) -> str:
        if value and not is_name(value):
            raise ValueError("must be the name of a user")
        return value

    @field_validator("heartbeat_s")
    @classmethod
    def _renews_in_time(cls, value: float, info: object) -> float:
        lease_s = getattr(info, "data", {}).get("lease_s")
        if lease_s is not None and value * 2 > lease_s:
            raise ValueError(f"must be at most half of {PREFIX}LEASE_S ({lease_s:g}), or leases run out")
        return value

    @field_validator("self_fence_s")
    @classmethod
    def _outlasts_a_lease(cls, value: float, info: object) -> float:
        lease_s = getattr(info, "data", {}).get("lease_s")
        if lease_s is not None and value < lease_s:
            raise ValueError(f"must be at least {PREFIX}LEASE_S ({lease_s:g}): until then nobody else may have the job")
        return value

    @field_validator("disk_low")
    @classmethod
    def _leaves_more(cls, value: float, info: object) -> float:
        high = getattr(info, "data", {}).get("disk_high")
        if high is not None and (high <= 1) == (value <= 1) and (value > high if value <= 1 else value < high):
            raise ValueError(f"must leave at least as much free as {PREFIX}DISK_HIGH ({high:g})")
        return value

    @classmethod
    def from_env(cls) -> Self:
        """
        Read the environment.

        Raises:
            SettingsError: a value cannot be used; one line that names the variable and says what is right.
        """
        try:
            return cls()
        except ValidationError as exc:
            first = exc.errors()[0]
            field = cls.model_fields[str(first["loc"][0])]
            name = PREFIX + str(first["loc"][0]).upper()
            given = "***" if field.annotation is SecretStr else os.environ.get(name, str(field.default))
            value = " ".join(given.split())
            raise SettingsError(f"{name}={value}: {first['msg'].removeprefix('Value error, ')}") from None

    @property
    def login(self) -> Login:
        """What commands send to say who they are; the password of `morpheo dev` if nothing is set."""
        if token := self.token.get_secret_value():
            return token
        return self.user, self.password.get_secret_value() or DEV_PASSWORD

    @property
    def database(self) -> str:
        """SQLAlchemy URL of the database."""
        return self.database_url.get_secret_value() or f"sqlite:///{self.data_dir / 'morpheo.db'}"

    @property
    def broker(self) -> str:
        """URL of the broker."""
        return self.broker_url.get_secret_value()

    @property
    def jobs_at_once(self) -> int:
        """Jobs that one worker runs at once."""
        return self.learn_parallelism + self.predict_parallelism

    @property
    def longest_job_s(self) -> float:
        """Longest that a job of five containers and two builds can take; the real deadlines are the containers'."""
        return 2 * self.build_timeout_s + 3 * max(self.learn_timeout_s, self.predict_timeout_s)

    @property
    def engine_url(self) -> str:
        """URL of the container engine."""
        return self.docker_host or os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"

    @property
    def container_user(self) -> int:
        """User and group id of every container: never root."""
        return os.getuid() or self.container_uid
