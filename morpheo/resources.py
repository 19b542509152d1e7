"""
The composition root: from settings to services. Everything is made when it is first asked for, once per process.
"""

from __future__ import annotations

import functools
import os
import uuid
from pathlib import Path

from prometheus_client import CollectorRegistry

from morpheo.artifacts import ArtifactService
from morpheo.client.http import HttpClient
from morpheo.config import Settings
from morpheo.execution import Limits, Tools
from morpheo.images import ImageShelf
from morpheo.jobs import JobService, Publisher, publish
from morpheo.metrics import MeteredBlobStore, make_registry
from morpheo.orchestrator import Orchestrator, advance_chain
from morpheo.packing import context_limits
from morpheo.reports import Reporter, write_report
from morpheo.runner import JobRunner, RunnerSettings
from morpheo.runtime.archive import ArchiveLimits
from morpheo.runtime.cache import NodeCache
from morpheo.runtime.contract import ContainerRuntime, Engines, Profile
from morpheo.runtime.docker import DockerRuntime
from morpheo.runtime.outputs import OutputLimits
from morpheo.storage.blobs import BlobStore
from morpheo.storage.database import Database
from morpheo.storage.local import LocalBlobStore
from morpheo.storage.s3 import S3BlobStore
from morpheo.sweeper import Sweeper


class Resources:
    """
    What one process of Morpheo works with; not to be used in a forked child.

    Args:
        settings: From the environment.
        publisher: Gives messages to the broker.
        image_repository: What the names of images begin with.
    """

    def __init__(self, settings: Settings, publisher: Publisher, *, image_repository: str = "morpheo") -> None:
        self.settings = settings
        self.publisher = publisher
        self._image_repository = image_repository

    @functools.cached_property
    def database(self) -> Database:
        """The database."""
        database = Database(self.settings.database)
        self.attach(database)
        return database

    def attach(self, database: Database) -> None:
        """Let a database do what follows from jobs: chains go on, and workers hear of what is queued."""
        rules = (advance_chain, write_report) if self.settings.orchestrator_url else (advance_chain,)
        database.attach(rules=rules, publish=lambda specs: publish(database, self.publisher, specs))

    @functools.cached_property
    def blobs(self) -> BlobStore:
        """The blob store, metered."""
        return MeteredBlobStore(blob_store(self.settings))

    @functools.cached_property
    def metrics(self) -> CollectorRegistry:
        """What Prometheus is told."""
        return make_registry(self.database, self.settings.data_dir)

    @functools.cached_property
    def artifacts(self) -> ArtifactService:
        """Uploads, lists and downloads."""
        return ArtifactService(self.database, self.blobs, max_blob_bytes=self.settings.max_blob_bytes)

    @functools.cached_property
    def jobs(self) -> JobService:
        """Orders."""
        return JobService(self.database, self.blobs)

    @functools.cached_property
    def orchestrator(self) -> Orchestrator:
        """Registrations, and the orders that follow from them."""
        return Orchestrator(self.database, outside_lease_s=self.settings.longest_job_s)

    @functools.cached_property
    def engines(self) -> Engines:
        """The container engines: one, unless algos have their own."""
        settings = self.settings
        _make_data_dir(settings)
        problem = self._engine(settings.engine_url)
        return Engines(problem=problem, algo=self._engine(url) if (url := settings.algo_docker_host) else problem)

    def _engine(self, url: str) -> ContainerRuntime:
        return DockerRuntime(
            url,
            profile=self._limits.profile,
            node=_node_id(self.settings.data_dir),
            timeout_s=self.settings.engine_timeout_s,
        )

    @functools.cached_property
    def runner(self) -> JobRunner:
        """What a worker runs jobs with."""
        settings = self.settings
        return JobRunner(
            self.database,
            self.blobs,
            self._tools,
            RunnerSettings(
                work_dir=self._work_dir,
                container_user=settings.container_user,
                lease_s=settings.lease_s,
                heartbeat_s=settings.heartbeat_s,
                max_attempts=settings.max_attempts,
                retry_delay_s=settings.retry_delay_s,
                outage_s=settings.outage_s,
            ),
        )

    @functools.cached_property
    def sweeper(self) -> Sweeper:
        """Repairs what was lost."""
        return Sweeper(
            self.database,
            self.publisher,
            self.artifacts,
            self.engines,
            work_dir=self._work_dir,
            max_attempts=self.settings.max_attempts,
        )

    @functools.cached_property
    def reporter(self) -> Reporter | None:
        """Tells an outside orchestrator of the jobs that it ordered, if there is one."""
        settings = self.settings
        if not settings.orchestrator_url:
            return None
        auth = (settings.user, settings.password.get_secret_value())
        return Reporter(self.database, HttpClient(settings.orchestrator_url, auth=auth, retries=0))

    @property
    def _work_dir(self) -> Path:
        return self.settings.data_dir / "work"

    @functools.cached_property
    def _cache(self) -> NodeCache:
        """What this machine has fetched and made."""
        settings = self.settings
        return NodeCache(settings.data_dir / "cache", self.blobs.get, max_bytes=settings.cache_bytes)

    @functools.cached_property
    def images(self) -> ImageShelf:
        """Images of problems and algos."""
        settings = self.settings
        return ImageShelf(
            self.engines,
            self._cache,
            limits=context_limits(settings),
            base_images=settings.base_images,
            timeout_s=settings.build_timeout_s,
            network=settings.build_network,
            memory_bytes=settings.memory_bytes,
            max_image_bytes=settings.image_bytes,
            repository=self._image_repository,
        )

    @property
    def _tools(self) -> Tools:
        return Tools(
            artifacts=self.artifacts,
            images=self.images,
            engines=self.engines,
            cache=self._cache,
            limits=self._limits,
        )

    @functools.cached_property
    def _limits(self) -> Limits:
        settings = self.settings
        return Limits(
            profile=Profile(
                user=settings.container_user,
                memory_bytes=settings.memory_bytes,
                cpus=settings.cpus,
                pids=settings.pids,
                tmp_bytes=settings.tmp_bytes,
                log_bytes=settings.log_bytes,
                file_bytes=max(settings.model_bytes, settings.prediction_bytes),
                gpus=settings.gpus,
            ),
            learn_timeout_s=settings.learn_timeout_s,
            predict_timeout_s=settings.predict_timeout_s,
            archive=ArchiveLimits(max_bytes=settings.context_bytes, max_entries=settings.context_entries),
            model=OutputLimits(max_bytes=settings.model_bytes, max_files=settings.model_files),
            prediction_bytes=settings.prediction_bytes,
        )


def blob_store(settings: Settings) -> BlobStore:
    """Return the blob store of the settings."""
    if not settings.s3_endpoint:
        _make_data_dir(settings)
        return LocalBlobStore(settings.data_dir)
    return S3BlobStore(
        settings.s3_endpoint,
        bucket=settings.s3_bucket,
        access_key=settings.s3_access_key,
        secret_key=settings.s3_secret_key.get_secret_value(),
        region=settings.s3_region,
        secure=settings.s3_secure,
        max_bytes=settings.max_blob_bytes,
    )


def _make_data_dir(settings: Settings) -> None:
    # Only for its owner: it holds data with targets. What containers see is mounted by the engine.
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)


def _node_id(data_dir: Path) -> str:
    """Return the name of the node whose caches are in this folder; made once."""
    path = data_dir / "node-id"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return path.read_text() or _node_id(data_dir)
    with open(descriptor, "w") as file:
        file.write(uuid.uuid4().hex)
    return path.read_text()
