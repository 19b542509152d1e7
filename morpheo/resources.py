"""
The composition root: from settings to services. Everything is made when it is first asked for, once per process.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path

from prometheus_client import CollectorRegistry

from morpheo.artifacts import ArtifactService
from morpheo.client.http import HttpClient
from morpheo.config import Settings
from morpheo.contact import Contact
from morpheo.disk import Disk, Marks
from morpheo.downloads import DownloadLog
from morpheo.ends import EndWriter
from morpheo.execution import Limits, Tools
from morpheo.images import ImageShelf
from morpheo.jobs import JobService, Publisher, publish
from morpheo.logins import Logins
from morpheo.metrics import MeteredBlobStore, make_registry
from morpheo.models import ArtifactKind
from morpheo.node import node_id
from morpheo.orchestrator import Orchestrator
from morpheo.outside import OutsideWorkers
from morpheo.packing import context_limits
from morpheo.planning import advance_chain
from morpheo.reports import Reporter, write_report
from morpheo.runner import JobRunner, RunnerSettings
from morpheo.runtime.archive import ArchiveLimits
from morpheo.runtime.cache import NodeCache
from morpheo.runtime.contract import BuildNetwork, ContainerRuntime, Engines, Interrupt, Profile
from morpheo.runtime.docker import DockerRuntime
from morpheo.runtime.outputs import OutputLimits
from morpheo.runtime.volume import why_no_volumes
from morpheo.runtime.workspace import remove_tree
from morpheo.spool import FILE_NAME, Spool
from morpheo.storage.blobs import BlobStore
from morpheo.storage.database import Database
from morpheo.storage.local import LocalBlobStore
from morpheo.sweeper import Sweeper
from morpheo.throttle import RateLimit
from morpheo.transcripts import Transcripts

logger = logging.getLogger(__name__)


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
        database.attach(
            rules=rules,
            publish=lambda specs: publish(database, self.publisher, specs),
            apart=self.settings.engine_per_submitter,
        )

    @functools.cached_property
    def blobs(self) -> BlobStore:
        """The blob store, metered."""
        return MeteredBlobStore(blob_store(self.settings))

    @functools.cached_property
    def metrics(self) -> CollectorRegistry:
        """What Prometheus is told."""
        marks = disk_marks(self.settings)
        by_name = {"high": marks.high_free, "low": marks.low_free}
        return make_registry(self.database, self.settings.data_dir, by_name)

    @functools.cached_property
    def artifacts(self) -> ArtifactService:
        """Uploads, lists and downloads."""
        settings = self.settings
        limits = {
            ArtifactKind.MODEL: _model_limits(settings).packed_bytes,
            ArtifactKind.PREDICTION: settings.prediction_bytes,
        }
        return ArtifactService(self.database, self.blobs, max_blob_bytes=settings.max_blob_bytes, limits=limits)

    @functools.cached_property
    def downloads(self) -> DownloadLog:
        """What is sent out, for the audit trail."""
        return DownloadLog(self.database)

    @functools.cached_property
    def jobs(self) -> JobService:
        """Orders."""
        return JobService(self.database, self.blobs)

    @functools.cached_property
    def orchestrator(self) -> Orchestrator:
        """Registrations, and the orders that follow from them."""
        return Orchestrator(self.database)

    @functools.cached_property
    def outside_workers(self) -> OutsideWorkers:
        """What workers that are not ours take and report."""
        return OutsideWorkers(self.database, lease_s=self.settings.longest_job_s)

    @functools.cached_property
    def logins(self) -> Logins:
        """Who calls."""
        settings = self.settings
        return Logins(self.database, (settings.user, settings.password.get_secret_value()))

    @functools.cached_property
    def rate_limit(self) -> RateLimit:
        """How many requests each user has left."""
        return RateLimit(self.settings.max_requests_per_minute)

    @functools.cached_property
    def node(self) -> str:
        """Name of this machine, as long as its data folder is the same."""
        _make_data_dir(self.settings)
        return node_id(self.settings.data_dir)

    @functools.cached_property
    def engines(self) -> Engines:
        """The container engines: one, unless algos have their own."""
        settings = self.settings
        problem = self._engine(settings.engine_url)
        return Engines(problem=problem, algo=self._engine(url) if (url := settings.algo_docker_host) else problem)

    def _engine(self, url: str) -> ContainerRuntime:
        return DockerRuntime(
            url,
            profile=self._limits.profile,
            node=self.node,
            timeout_s=self.settings.engine_timeout_s,
            return_s=self.settings.engine_return_s,
            build_timeout_s=self.settings.build_timeout_s,
        )

    @functools.cached_property
    def runner(self) -> JobRunner:
        """What a worker runs jobs with."""
        settings = self.settings
        return JobRunner(
            self.database,
            self.blobs,
            self._tools,
            self.spool,
            RunnerSettings(
                node=self.node,
                work_dir=self._work_dir,
                container_user=settings.container_user,
                lease_s=settings.lease_s,
                heartbeat_s=settings.heartbeat_s,
                self_fence_s=settings.self_fence_s,
                max_attempts=settings.max_attempts,
                retry_delay_s=settings.retry_delay_s,
                outage_s=settings.outage_s,
                submitter=settings.submitter,
            ),
        )

    @functools.cached_property
    def spool(self) -> Spool:
        """Ends of attempts that the database could not take."""
        return Spool(self.settings.data_dir / FILE_NAME)

    @functools.cached_property
    def contact(self) -> Contact:
        """Says that this node is there, and writes what the spool holds."""
        writer = EndWriter(self.database, self.artifacts)
        return Contact(self.database, self.spool, writer, node=self.node, lease_s=self.settings.lease_s)

    @functools.cached_property
    def sweeper(self) -> Sweeper:
        """Repairs what was lost."""
        return Sweeper(
            self.database,
            self.publisher,
            self.artifacts,
            Transcripts(self.database, self.blobs),
            self.engines,
            self.cache,
            work_dir=self._work_dir,
            max_attempts=self.settings.max_attempts,
            lease_s=self.settings.lease_s,
        )

    @functools.cached_property
    def reporter(self) -> Reporter | None:
        """Tells an outside orchestrator of the jobs that it ordered, if there is one."""
        settings = self.settings
        if not settings.orchestrator_url:
            return None
        client = HttpClient(settings.orchestrator_url, auth=settings.login, retries=0)
        return Reporter(self.database, client)

    @property
    def _work_dir(self) -> Path:
        return self.settings.data_dir / "work"

    @functools.cached_property
    def cache(self) -> NodeCache:
        """What this machine has fetched and made."""
        settings = self.settings
        return NodeCache(settings.data_dir / "cache", self.blobs.get, max_bytes=settings.cache_bytes)

    @functools.cached_property
    def images(self) -> ImageShelf:
        """Images of problems and algos."""
        settings = self.settings
        return ImageShelf(
            self.engines,
            self.cache,
            limits=context_limits(settings),
            base_images=settings.base_images,
            timeout_s=settings.build_timeout_s,
            network=BuildNetwork(proxy_socket=Path(settings.build_proxy), relay_image=settings.build_relay_image)
            if settings.build_proxy
            else None,
            memory_bytes=settings.memory_bytes,
            cpus=settings.cpus,
            max_image_bytes=settings.image_bytes,
            repository=self._image_repository,
        )

    @functools.cached_property
    def _disk(self) -> Disk:
        """This machine's disks."""
        settings = self.settings
        _make_data_dir(settings)
        return Disk(
            settings.data_dir,
            self._work_dir,
            disk_marks(settings),
            self.cache,
            engine_folders=lambda: {root for engine in self.engines if (root := engine.facts().data_root) is not None},
            evict=(self.cache.evict, self.images.evict),
        )

    @property
    def _tools(self) -> Tools:
        return Tools(
            artifacts=self.artifacts,
            images=self.images,
            engines=self.engines,
            cache=self.cache,
            disk=self._disk,
            limits=self._limits,
            has_volumes=lambda: self._has_volumes,
            sanitizer=self.settings.sanitizer_image,
        )

    @functools.cached_property
    def _has_volumes(self) -> bool:
        """Whether output folders get a file system of their own; found out once, before the first job."""
        if not self.settings.output_volumes:
            return False
        folder = self.settings.data_dir / "volume-trial"
        with self.cache.lock("volume-trial", Interrupt()):
            remove_tree(folder)
            why = why_no_volumes(folder, [engine.facts().pid for engine in self.engines])
        if why:
            logger.warning("output folders are counted every 2 s, and have no file system of their own: %s", why)
        return not why

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
                runtime="" if settings.sandbox == "runc" else settings.sandbox,
            ),
            learn_timeout_s=settings.learn_timeout_s,
            predict_timeout_s=settings.predict_timeout_s,
            archive=ArchiveLimits(max_bytes=settings.context_bytes, max_entries=settings.context_entries),
            model=_model_limits(settings),
            prediction_bytes=settings.prediction_bytes,
            output_bytes=settings.output_bytes,
        )


def disk_marks(settings: Settings) -> Marks:
    """Return the watermarks of the settings."""
    return Marks(high=settings.disk_high, low=settings.disk_low)


def blob_store(settings: Settings) -> BlobStore:
    """Return the blob store of the settings."""
    if not settings.s3_endpoint:
        _make_data_dir(settings)
        return LocalBlobStore(settings.data_dir)
    from morpheo.storage.s3 import S3BlobStore  # noqa: PLC0415 - a fifth of a start, for who has such a server

    return S3BlobStore(
        settings.s3_endpoint,
        bucket=settings.s3_bucket,
        access_key=settings.s3_access_key,
        secret_key=settings.s3_secret_key.get_secret_value(),
        region=settings.s3_region,
        secure=settings.s3_secure,
        max_bytes=settings.max_blob_bytes,
    )


def _model_limits(settings: Settings) -> OutputLimits:
    return OutputLimits(max_bytes=settings.model_bytes, max_files=settings.model_files)


def _make_data_dir(settings: Settings) -> None:
    # Only for its owner: it holds data with targets. What containers see is mounted by the engine.
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
