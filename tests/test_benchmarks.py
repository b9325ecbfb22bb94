"""The harness: what it says is what it measured, and the memory it promises holds."""

import json
import time
from pathlib import Path

import pytest
import torch

from benchmarks import machine, memory, peers, report
from benchmarks.cases import Case
from benchmarks.speed import STATISTICS, forward, observed
from benchmarks.timing import Timing, interleaved

pytestmark = pytest.mark.once

SMALL = Case(64, causal=True, heads=2)


@pytest.fixture(scope="module")
def results() -> report.Results:
    statistics = {name: STATISTICS[name] for name in ("lse", "received")}
    return report.Results(
        machine=machine.describe(threads=2),
        forward={SMALL.name: forward(SMALL, rounds=2)},
        observed=observed(SMALL, statistics, rounds=2),
        memory={"L": 64, "raised": 1_000_000, "outputs": 2_000_000},
    )


def test_interleaving_times_every_call_and_finds_the_slower() -> None:
    turns: list[str] = []

    def call(name: str, seconds: float) -> None:
        turns.append(name)
        time.sleep(seconds)

    found = interleaved({"a": lambda: call("a", 0.006), "b": lambda: call("b", 0.03)}, rounds=3)
    assert turns[4:] == ["a", "b", "b", "a", "a", "b"]
    assert 0.006 <= found["a"].lower <= found["a"].median <= found["a"].upper
    assert found["b"].median > 2 * found["a"].median


def test_short_calls_are_repeated_within_a_sample() -> None:
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1

    interleaved({"short": call}, rounds=1)
    assert calls > 100


def test_a_peer_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.PEERS, "zero", lambda case, q, k, v: lambda: torch.zeros_like(q))
    with pytest.raises(AssertionError, match="not close"):
        peers.calls(SMALL)


def test_weights_too_large_to_store_are_left_out() -> None:
    assert peers.torch_eager(Case(32768), *SMALL.inputs()) is None


def test_readme_gets_the_tables_and_keeps_the_rest(results: report.Results, tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(f"above\n{report.BEGIN}\nold\n{report.END}\nbelow\n")
    report.write_readme(results, page)
    text = page.read_text()
    assert text.startswith(f"above\n{report.BEGIN}\n")
    assert text.endswith(f"{report.END}\nbelow\n")
    assert "old" not in text
    assert "| 64 x 64 x 64 causal |" in text
    assert "| received |" in text
    assert "| 64 | 2.0 | 1.0 | 0.0 |" in text
    page.write_text("no markers")
    with pytest.raises(ValueError, match="needs the markers"):
        report.write_readme(results, page)


def test_a_peer_that_does_not_serve_leaves_a_gap(results: report.Results) -> None:
    one = Timing(0.001, 0.001, 0.001)
    table = report.tables(
        report.Results(
            machine=results.machine,
            forward={"a": {"x": one, "y": one}, "b": {"x": one}},
            observed=results.observed,
            memory=results.memory,
        )
    )[0]
    assert table.rows == [["a", "1.00", "1.00", "1.00"], ["b", "1.00", "-", "-"]]


def test_json_and_terminal_hold_every_number(
    results: report.Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report.write_json(results, tmp_path / "numbers.json")
    read = json.loads((tmp_path / "numbers.json").read_text())
    assert read["observed"].keys() == {"plain", "lse", "received"}
    assert read["forward"][SMALL.name].keys() == peers.PEERS.keys()
    assert read["machine"]["threads"] == 2
    report.show(results)
    assert "received" in capsys.readouterr().out


def test_the_project_s_readme_has_the_markers() -> None:
    text = (Path(__file__).resolve().parent.parent / "README.md").read_text()
    assert 0 < text.find(report.BEGIN) < text.find(report.END)


@pytest.mark.parametrize("L", [8192, pytest.param(32768, marks=pytest.mark.deep)])
def test_a_long_call_with_every_statistic_needs_little_memory(L: int) -> None:
    found = memory.measured(L, threads=2)
    assert found["outputs"] > 0
    assert 0 <= found["raised"] < 64_000_000
