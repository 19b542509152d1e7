"""
Jobs flow, and things break at random, for a set time; then the balance: accepted = done + failed + cancelled.

::

    python -m tests.faults.soak [--seconds 300] [--seed N]

The faults follow from the seed, though not to the millisecond. Ends with status 1 if anything was lost or done twice.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import random
import secrets
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from uuid import UUID

from docker import APIClient

from morpheo.errors import ApiError, ApiUnavailable, NotFound
from morpheo.models import JobSpec, JobState
from tests.faults.chaos import FAULTS
from tests.faults.invariants import check_ended_once, check_invariants
from tests.faults.rig import Rig, running_rig
from tests.support.services import engine_url

#: Orders that are not over, at most.
IN_FLIGHT = 8
#: How long all may take to end when nothing breaks any more, in seconds.
END_S = 300
logger = logging.getLogger(__name__)

_UNAVAILABLE = (ApiError, ApiUnavailable)


@dataclass
class Soak:
    """
    Jobs and faults.

    Args:
        rig: What is hurt.
        seed: Of all that is random.
    """

    rig: Rig
    seed: int
    began: float = field(default_factory=time.monotonic)
    stop: threading.Event = field(default_factory=threading.Event)
    open: dict[UUID, JobSpec] = field(default_factory=dict)
    models: list[UUID] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    cancels: int = 0
    duplicates: int = 0

    def run(self, seconds: float) -> None:
        """Let jobs flow and things break."""
        threads = [threading.Thread(target=target, name=target.__name__) for target in (self._order, self._break)]
        for thread in threads:
            thread.start()
        try:
            self.stop.wait(seconds)
        finally:
            self.stop.set()
            for thread in threads:
                thread.join()

    # ---- jobs

    def _order(self) -> None:
        rng = random.Random(self.seed)
        while not self.stop.wait(0.1):
            self._forget_ended()
            if len(self.open) < IN_FLIGHT and (spec := self._make(rng)) is not None:
                self._submit(spec, rng)
            if self.open and rng.random() < 0.01:
                self._cancel(rng.choice(list(self.open.values())))

    def _forget_ended(self) -> None:
        for spec in list(self.open.values()):
            with contextlib.suppress(Exception):
                job = self.rig.job(spec)
                if job.state.is_final:
                    del self.open[spec.id]
                if job.state is JobState.SUCCEEDED and hasattr(spec, "model_end"):
                    self.models.append(spec.model_end)

    def _make(self, rng: random.Random) -> JobSpec | None:
        """Return an order whose artifacts are uploaded, None if one was not accepted."""
        try:
            if self.models and rng.random() < 0.3:
                return self.rig.make_prediction(rng.choice(self.models[-20:]), seconds=rng.uniform(0, 1))
            return self.rig.make_learn(seconds=rng.uniform(0.1, 2), fresh=rng.random() < 0.1)
        except _UNAVAILABLE:
            self.refused += 1
            return None

    def _submit(self, spec: JobSpec, rng: random.Random) -> None:
        """Order until it is accepted: an answer may have been lost on the way, and ordering twice is one job."""
        again = rng.random() < 0.1
        while True:
            try:
                self.rig.submit(spec)
                break
            except _UNAVAILABLE:
                self.refused += 1
                if self.stop.wait(0.5) and self._was_never_there(spec):
                    return
        self.open[spec.id] = spec
        if again:
            with contextlib.suppress(*_UNAVAILABLE):
                self.rig.compute.submit(spec)
                self.duplicates += 1

    def _was_never_there(self, spec: JobSpec) -> bool:
        try:
            self.rig.job(spec)
        except NotFound:
            return True
        except Exception:  # noqa: BLE001 - the database is away
            return False
        return False

    def _cancel(self, spec: JobSpec) -> None:
        with contextlib.suppress(*_UNAVAILABLE):
            self.rig.compute.cancel(spec.id)
            self.cancels += 1

    # ---- faults

    def _break(self) -> None:
        rng = random.Random(self.seed + 1)
        while not self.stop.wait(rng.uniform(2, 6)):
            with ExitStack() as stack:
                for _ in range(2 if rng.random() < 0.2 else 1):
                    make = rng.choice(FAULTS)
                    self.faults[make.__name__.removeprefix("_")] += 1
                    stack.enter_context(make(self.rig, rng))
                self.stop.wait(rng.uniform(0.5, 5))
            self.rig.heal()

    def balance(self) -> int:
        """Wait until all is over, and print the balance; 0 if all is as it must be."""
        rig, ledger = self.rig, self.rig.ledger
        logger.info("nothing breaks any more")
        rig.settle()
        problems: list[str] = []
        deadline = time.monotonic() + END_S
        while time.monotonic() < deadline and any(not rig.job(spec).state.is_final for spec in ledger.orders):
            time.sleep(0.5)
        states: Counter[str] = Counter()
        causes: Counter[str] = Counter()
        doubles = lost = attempts = 0
        for spec in ledger.orders:
            try:
                job = rig.job(spec)
            except NotFound:
                lost += 1
                problems.append(f"job {spec.id} was accepted, and is not there")
                continue
            states[job.state.value] += 1
            attempts += job.attempt
            if job.failure is not None:
                causes[job.failure.cause.value] += 1
            lost += not job.state.is_final
            ends = [change for change in rig.history(spec) if change.state.is_final]
            doubles += len(ends) > 1
            with self._noting(problems):
                check_ended_once(rig, spec)
        with self._noting(problems):
            check_invariants(rig)
        done, failed, cancelled = (states[name] for name in ("succeeded", "failed", "cancelled"))
        accepted = len(ledger.orders)
        broken = ", ".join(f"{name} {count}" for name, count in sorted(self.faults.items()))
        because = ", ".join(f"{name} {count}" for name, count in sorted(causes.items()))
        lines = [
            f"seed {self.seed}, {time.monotonic() - self.began:.0f} s, {sum(self.faults.values())} faults: {broken}",
            f"accepted {accepted} = done {done} + failed {failed} + cancelled {cancelled} ({because})",
            f"attempts {attempts}, uploads {len(ledger.uploads)}, requests that were refused {self.refused}",
            f"cancels asked for {self.cancels}, orders given twice {self.duplicates}",
            f"doubles {doubles}, lost {lost}, invariants {'BROKEN' if problems else 'kept'}",
            *problems,
        ]
        sys.stdout.write("\n".join(["", *lines, ""]))
        return int(bool(problems or doubles or lost or accepted != done + failed + cancelled))

    @contextmanager
    def _noting(self, problems: list[str]) -> Iterator[None]:
        try:
            yield
        except (AssertionError, NotFound) as exc:
            problems.append(str(exc))


def main() -> int:
    """Soak, and return the exit status."""
    parser = argparse.ArgumentParser(description="Let jobs flow and things break at random, and print the balance.")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", stream=sys.stdout)
    logging.getLogger("tests").setLevel(logging.INFO)
    source = APIClient(base_url=engine_url(), version="auto", timeout=60)
    with running_rig(source, kinds=("learn", "predict")) as rig:
        soak = Soak(rig, options.seed)
        logger.info("seed %d", soak.seed)
        soak.run(options.seconds)
        return soak.balance()


if __name__ == "__main__":
    sys.exit(main())
