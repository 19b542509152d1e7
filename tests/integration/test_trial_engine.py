"""Trials on a real engine: one algo for each thing that would fail, and one that is good."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from docker import APIClient

from morpheo.config import Settings
from morpheo.models import Cause
from morpheo.runtime.profile import LABEL_NODE
from morpheo.trial.findings import State
from morpheo.trial.home import Home, owner_name
from morpheo.trial.run import Inputs, run_trial
from tests.support.jobs import ALGO
from tests.support.services import engine_url
from tests.support.trials import DOCKERFILE, algo_folder, problem_folder

pytestmark = pytest.mark.docker

MEMORY = 64 << 20
TIMEOUT_S = 20


@dataclass(frozen=True, kw_only=True)
class Case:
    """An algo, and what a trial says of it."""

    program: str = ALGO
    dockerfile: str = DOCKERFILE
    #: Parts of the names of the checks that fail, with words that they say.
    failed: dict[str, str]
    cause: Cause | None = None
    #: The same for warnings.
    warned: dict[str, str]


def case(
    *, program: str = ALGO, dockerfile: str = DOCKERFILE, cause: Cause | None = None, **words: dict[str, str]
) -> Case:
    return Case(
        program=program,
        dockerfile=dockerfile,
        cause=cause,
        failed=words.get("failed", {}),
        warned=words.get("warned", {}),
    )


DOWNLOAD = 'import urllib.request\nurllib.request.urlopen("http://example.org/weights", timeout=5)\n'
CASES = {
    "good": case(),
    "no predictions": case(
        program=ALGO.replace('predict(args.V + "/train")', "pass").replace('predict(args.V + "/test")', "pass"),
        failed={"every train item": "(one)", "every test item": "(three)"},
        cause=Cause.MISSING_OUTPUT,
    ),
    "wrong names": case(
        program=ALGO.replace('"/pred/" + name', '"/pred/pred_" + name'),
        failed={"every train item": "found pred_", "every test item": ", expected "},
        cause=Cause.BAD_OUTPUT,
    ),
    "network": case(
        program=ALGO + DOWNLOAD,
        failed={"train runs": "exit code 1", "needs no network": "install it in the Dockerfile"},
        cause=Cause.EXIT_CODE,
    ),
    "network that is not needed": case(
        program=ALGO
        + "try:\n    "
        + DOWNLOAD.replace("\n", "\n    ")
        + "pass\nexcept OSError as exc:\n    print(exc)\n",
        warned={"needs no network": "name resolution"},
    ),
    "network in the build": case(
        dockerfile=DOCKERFILE.replace(
            "ENTRYPOINT", f"RUN python3 -c '{DOWNLOAD.strip().replace(chr(10), '; ')}'\nENTRYPOINT"
        ),
        failed={"algo image": "returned a non-zero code", "needs no network": "when an image is built"},
        cause=Cause.BUILD_FAILED,
    ),
    "memory": case(
        program=ALGO + "hoard = []\nwhile True:\n    hoard.append(b'x' * (1 << 20))\n",
        failed={"train runs": "64 MiB", "memory": "more than the limit of 64 MiB"},
        cause=Cause.OUT_OF_MEMORY,
    ),
    "time": case(
        program=ALGO + "import time\nif args.T == 'predict':\n    time.sleep(600)\n",
        failed={"reloads": "ran longer than", "time": f"stopped at its limit of {TIMEOUT_S // 4} s"},
        cause=Cause.TIME_LIMIT,
    ),
    "a model that does not reload": case(
        program=ALGO.replace(
            "os.path.exists(path) else {}", 'not os.listdir(args.V + "/model") else json.load(open("w"))'
        ).replace("json.load(open(path)) if", "{} if"),
        failed={"goes on": "exit code 1", "reloads": "exit code 1"},
        cause=Cause.EXIT_CODE,
    ),
    "a model that is not loaded": case(
        program=ALGO.replace("if os.path.exists(path) else", 'if args.T == "train" and os.path.exists(path) else'),
        warned={"reloads": "another prediction of four"},
    ),
    "no model": case(
        program=ALGO.replace('json.dump(memory, open(path, "w"))', "pass"),
        failed={"leaves a model": "/data/model is empty"},
        cause=Cause.MISSING_OUTPUT,
    ),
    "exit code": case(
        program='raise SystemExit("no such column")\n',
        failed={"train runs": "exit code 1"},
        cause=Cause.EXIT_CODE,
    ),
    "no entry point": case(
        dockerfile="FROM morpheo/base:1\nCOPY . /\n",
        failed={"algo image": "no ENTRYPOINT"},
        cause=Cause.BAD_IMAGE,
    ),
}


def on_engine(engine: APIClient) -> tuple[set[str], set[str], set[str]]:
    """Return the containers of trials, the images without a tag, and the names of the images of trials."""
    tags = {tag for image in engine.images() for tag in image.get("RepoTags") or () if tag.startswith(owner_name())}
    dangling = {image["Id"] for image in engine.images(filters={"dangling": True})}
    containers = engine.containers(all=True, filters={"label": f"{LABEL_NODE}={owner_name()}"})
    return {container["Id"] for container in containers}, dangling, tags


@pytest.fixture(scope="module")
def home(engine: APIClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of trials whose problem's image is warm after the first."""
    folder = tmp_path_factory.mktemp("try")
    yield folder
    for tag in (folder / "images").read_text().split():
        engine.remove_image(tag)


@pytest.mark.parametrize("tried", [pytest.param(each, id=name) for name, each in CASES.items()])
def test_a_trial_says_what_would_fail_and_leaves_nothing(
    engine: APIClient, home: Path, tmp_path: Path, tried: Case
) -> None:
    _, dangling, _ = on_engine(engine)
    report = run_trial(
        Inputs(
            algo=algo_folder(tmp_path / "algo", program=tried.program, dockerfile=tried.dockerfile),
            problem=problem_folder(tmp_path / "problem"),
        ),
        Settings(
            data_dir=tmp_path / "real",
            docker_host=engine_url(),
            memory_bytes=MEMORY,
            learn_timeout_s=TIMEOUT_S,
            predict_timeout_s=TIMEOUT_S // 4 if tried.cause is Cause.TIME_LIMIT else TIMEOUT_S,
        ),
        home=Home(home),
        on_step=lambda _: None,
    )
    found = {check.name: check for check in report.checks}
    for state, words in ((State.FAILED, tried.failed), (State.WARNING, tried.warned)):
        said = {name: check.detail for name, check in found.items() if check.state is state}
        assert len(said) == len(words), said
        for part, expected in words.items():
            assert any(part in name and expected in detail for name, detail in said.items()), said
    assert {failure.cause for failure in report.failures} == ({tried.cause} if tried.cause else set())
    assert report.passed is (tried.cause is None)
    assert not (tmp_path / "real").exists()
    assert {path.name for path in home.iterdir()} == {"images", "lock"}
    kept = set((home / "images").read_text().split())
    assert len(kept) == 1
    containers, now_dangling, tags = on_engine(engine)
    assert containers == set()
    assert now_dangling - dangling == set()
    assert kept <= tags
    assert not any("/algo:" in tag for tag in tags)
