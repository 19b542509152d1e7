"""``morpheo demo``: the main job on real input, on a throwaway stack."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
from rich.box import SIMPLE_HEAD
from rich.live import Live
from rich.table import Table

from morpheo.cli.common import err, json_option, out, print_json
from morpheo.cli.dev import START_DEADLINE_S, check_engine
from morpheo.cli.jobs import describe
from morpheo.client import ComputeClient, StorageClient
from morpheo.config import Settings
from morpheo.errors import MorpheoError
from morpheo.models import ArtifactKind, Job, LearnSpec


@click.command()
@json_option
def demo(as_json: bool) -> None:
    """Run a clinical challenge end to end on a throwaway stack.

    569 real patients, two algorithms that learn online over four batches of hospital data, scored on a hidden test
    set; then a prediction with the best model. Nothing is left behind but the images.
    """
    check_engine(Settings.from_env())
    err.print("starting Redis, the APIs, a worker and Flower ...")
    with tempfile.TemporaryDirectory(prefix="morpheo-demo-") as folder, throwaway_stack(Path(folder)) as urls:
        result = _challenge(urls, as_json=as_json)
    if as_json:
        print_json(result)


@contextlib.contextmanager
def throwaway_stack(folder: Path, settings: dict[str, str] | None = None) -> Iterator[dict[str, str]]:
    """
    Run `morpheo dev` on free ports with all its data in a folder; gives the addresses of its services.

    Args:
        folder: Where its data and log go.
        settings: Variables of its environment, besides this process's own.

    Raises:
        MorpheoError: it did not start; the message has the end of its log.
    """
    ready, log = folder / "ready.json", folder / "log"
    data_dir = folder / "data"
    ports = [f"--{name}-port=0" for name in ("compute", "storage", "flower", "redis")]
    command = [sys.executable, "-m", "morpheo", "dev", "--no-reload", *ports, f"--ready-file={ready}"]
    own = {
        "MORPHEO_DATA_DIR": str(data_dir),
        "MORPHEO_STOP_GRACE_S": "5",
        "MORPHEO_LEARN_PARALLELISM": "2",
        **(settings or {}),
    }
    environment = {**os.environ, "MORPHEO_DATABASE_URL": "", "MORPHEO_S3_ENDPOINT": "", **own}
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        deadline = time.monotonic() + START_DEADLINE_S
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise MorpheoError("the stack did not start:\n" + log.read_text(errors="replace")[-3000:])
            time.sleep(0.05)
        yield json.loads(ready.read_text())
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _challenge(urls: dict[str, str], *, as_json: bool) -> dict[str, object]:
    from morpheo.demo import challenge as demo_challenge  # noqa: PLC0415 - scikit-learn takes a second to import

    settings = Settings.from_env()
    storage = StorageClient(urls["storage"], user=settings.user, password=settings.password.get_secret_value())
    compute = ComputeClient(urls["compute"])
    challenge = demo_challenge.upload(storage)
    board = _Board()
    with Live(get_renderable=board.table, console=err, refresh_per_second=8, transient=True):
        with ThreadPoolExecutor(len(challenge.algos)) as pool:
            chains = dict(
                zip(
                    challenge.algos,
                    pool.map(
                        lambda name: demo_challenge.train_chain(compute, challenge, name, board.update),
                        challenge.algos,
                    ),
                    strict=True,
                )
            )
        best = max(
            (job for jobs in chains.values() for job in jobs), key=lambda job: job.scores.perf if job.scores else 0
        )
        assert isinstance(best.spec, LearnSpec)  # noqa: S101 - for the type checker
        spec = demo_challenge.predict(compute, challenge, best.spec.model_end, board.update)
    prediction = storage.read(ArtifactKind.PREDICTION, spec.prediction).decode().split()
    if not as_json:
        _print_results(chains, urls["storage"], prediction)
    return {
        "scores": {name: [job.scores.perf for job in jobs if job.scores] for name, jobs in chains.items()},
        "best_model": best.spec.model_end,
        "prediction": prediction,
    }


class _Board:
    """What each chain does now, for a live table."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: dict[str, tuple[str, str, str]] = {}

    def update(self, name: str, job: Job) -> None:
        rank = str(job.spec.rank) if isinstance(job.spec, LearnSpec) else "-"
        score = "" if job.scores is None else f"{job.scores.perf:.4f}"
        with self._lock:
            self._rows[name] = (rank, describe(job), score)

    def table(self) -> Table:
        table = Table("job", "rank", "doing", "score")
        with self._lock:
            for name, row in self._rows.items():
                table.add_row(name, *row)
        return table


def _print_results(chains: dict[str, list[Job]], storage_url: str, prediction: list[str]) -> None:
    table = Table(title="Breast cancer challenge", box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for heading in ("algo", "rank", "AUC", "seconds per step", "model"):
        table.add_column(heading, no_wrap=True)
    for name, jobs in chains.items():
        for job in jobs:
            steps = "\n".join(f"{step.name} {step.seconds or 0:.2f}" for step in job.attempts[-1].steps)
            assert isinstance(job.spec, LearnSpec)  # noqa: S101 - for the type checker
            score = f"{job.scores.perf:.4f}" if job.scores else "-"
            table.add_row(name, str(job.spec.rank), score, steps, str(job.spec.model_end), end_section=job is jobs[-1])
    out.print(table)
    out.print(f"While a stack runs, a model is at {storage_url}/model/MODEL/blob.", soft_wrap=True)
    first = ", ".join(prediction[:5])
    out.print(f"The best model predicted {len(prediction)} patients without a diagnosis: {first}, ...", soft_wrap=True)
