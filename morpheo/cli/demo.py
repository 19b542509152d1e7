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
from pathlib import Path

import click
from rich.live import Live
from rich.table import Table

from morpheo.cli.common import err, json_option, login, out, print_json
from morpheo.cli.dev import START_DEADLINE_S, check_engine
from morpheo.cli.jobs import describe
from morpheo.cli.leaderboard import leaderboard_table
from morpheo.client import ComputeClient, OrchestratorClient, StorageClient
from morpheo.config import Settings
from morpheo.errors import MorpheoError
from morpheo.models import Job, LearnSpec


@click.command()
@json_option
def demo(as_json: bool) -> None:
    """Run a clinical challenge end to end on a throwaway stack.

    569 real patients, two algorithms that learn online over four batches of hospital data, scored on a hidden test
    set; then a fifth batch, and a prediction with the best model. Nothing is left behind but the images.
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
    ports = [f"--{name}-port=0" for name in ("compute", "storage", "orchestrator", "flower", "redis")]
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
    from morpheo.demo import challenge as demo  # noqa: PLC0415 - scikit-learn takes a second to import

    settings = Settings.from_env()
    who = login(settings)
    clients = demo.Clients(
        storage=StorageClient(urls["storage"], **who),
        compute=ComputeClient(urls["compute"], **who),
        orchestrator=OrchestratorClient(urls["orchestrator"], **who),
    )
    challenge = demo.register(clients)
    board = _Board()
    with Live(get_renderable=board.table, console=err, refresh_per_second=8, transient=True):
        demo.follow(clients, challenge, board.update)
        first = clients.orchestrator.leaderboard(challenge.problem)
        clients.orchestrator.add_data(challenge.later, problems=[challenge.problem])
        scores = demo.follow(clients, challenge, board.update)
        last = clients.orchestrator.leaderboard(challenge.problem)
        model, prediction = demo.predict(clients, challenge, board.update)
    if not as_json:
        out.print(leaderboard_table(first, title=f"Breast cancer challenge, {demo.TRAIN_FILES} hospitals"))
        out.print(leaderboard_table(last, title=f"and {demo.LATER_FILES} hospitals more"))
        shown = ", ".join(prediction[:5])
        out.print(
            f"The best model predicted {len(prediction)} patients without a diagnosis: {shown}, ...", soft_wrap=True
        )
    return {
        "scores": scores,
        "boards": [first, last],
        "best_model": model,
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
