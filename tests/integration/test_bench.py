"""The benchmarks run, in small; what they measure is asserted nowhere."""

from __future__ import annotations

import pytest

from bench import leaderboard, transfer


def test_the_benchmark_of_the_leaderboard_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"ALGOS": 5, "RANKS": 2, "TURNS": 1, "SKILLS": {"close": 0.02}}.items():
        monkeypatch.setattr(leaderboard, name, value)
    leaderboard.main()
    assert capsys.readouterr().out.startswith("leaderboard, 5 algos, close: ")


@pytest.mark.s3
@pytest.mark.usefixtures("s3")  # it starts one of its own, where one can be
def test_the_benchmark_of_transfers_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {"SIZE": 3 * transfer.MIB, "TURNS": 1}.items():
        monkeypatch.setattr(transfer, name, value)
    transfer.main()
    measured = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert measured[:2] == ["upload, raw body", "upload, multipart"]
    assert measured[2:] == ["download", "download, its sha256 checked by both", "memory"]
