"""The harness: what it says is what it measured, and the memory it promises holds."""

import json
import time
import xml.etree.ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer

from benchmarks import chart, machine, memory, peers, report, speed, tables
from benchmarks.cases import CASES, Case, Inputs
from benchmarks.peers.pytorch import eager, regard_native, sdpa
from benchmarks.peers.ready import Ready, Tensors, UnservedError
from benchmarks.results import Cell, Results, Row
from benchmarks.roofline import Roof
from benchmarks.timing import Timing, interleaved

pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parent.parent
SMALL = Case(64, causal=True, heads=2)
TORCH = {"regard": regard_native, "SDPA": sdpa, "eager": eager}


def absent(case: Case, inputs: object) -> Ready:
    raise UnservedError("is not installed")


def timed(seconds: float) -> Timing:
    return Timing(seconds, seconds, seconds, 1)


def row(work: str, case: str, precision: str = "float32") -> Row:
    """regard takes 10 ms, SDPA 20, JAX 40; ORT does not serve it."""
    seconds = {"regard": 0.010, "SDPA": 0.020, "JAX": 0.040}
    cells = {name: Cell(timed(taken), 3_000_000) for name, taken in seconds.items()}
    return Row(work, precision, case, 0.004, cells, {"ORT": "no such kernel"})


@pytest.fixture(scope="module")
def results() -> Results:
    rows = [
        row("forward", "512 x 512 x 64"),
        row("forward", "2048 x 2048 x 64"),
        row("backward", "2048 x 2048 x 64", "bfloat16"),
    ]
    return Results(
        machine=machine.describe(),
        peers={name: peers.MEANING[name] for name in ("regard", "SDPA", "ORT", "JAX")},
        versions={"jax": "1.2.3", "onnxruntime": "not installed"},
        rates={"products float32": 2e11},
        rows=rows,
        observed={"float32": {"plain": timed(0.010), "received": timed(0.011)}},
        memory={"L": 64, "raised": 1_000_000, "outputs": 2_000_000},
        look={"import torch, transformers": timed(1.5), "regard look": timed(2.75)},
        undisturbed={"regard": timed(0.0101)},
    )


def test_interleaving_times_every_call_and_finds_the_slower() -> None:
    turns: list[str] = []

    def call(name: str, seconds: float) -> None:
        turns.append(name)
        time.sleep(seconds)

    found = interleaved({"a": lambda: call("a", 0.021), "b": lambda: call("b", 0.06)}, rounds=3)
    assert turns[4:] == ["a", "b", "b", "a", "a", "b"]
    assert 0.021 <= found["a"].lower <= found["a"].median <= found["a"].upper
    assert found["b"].median > 2 * found["a"].median


def test_short_calls_are_repeated_within_a_sample() -> None:
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1

    interleaved({"short": call}, rounds=1)
    assert calls > 100


def test_a_long_call_takes_part_in_fewer_rounds_spread_over_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("benchmarks.timing.SHARE", 0.0)
    turns: list[str] = []

    def call(name: str, seconds: float) -> None:
        turns.append(name)
        time.sleep(seconds)

    found = interleaved({"long": lambda: call("long", 0.006)}, rounds=9)
    assert found["long"].samples == 3
    monkeypatch.setattr("benchmarks.timing.SHARE", 1.0)
    assert interleaved({"short": lambda: call("short", 0.006)}, rounds=9)["short"].samples == 9


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peers_that_agree_are_served_with_their_peak(dtype: torch.dtype, gradients: bool) -> None:
    case = replace(SMALL, dtype=dtype, gradients=gradients)
    served, reasons = peers.serve(case, {**TORCH, "absent": absent})
    assert list(served) == list(TORCH)
    assert all(one.peak >= 0 for one in served.values())
    assert reasons == {"absent": "is not installed"}


def test_one_query_has_no_mask_and_serves() -> None:
    served, _ = peers.serve(Case(1, S=96), TORCH)
    assert list(served) == list(TORCH)


@pytest.mark.parametrize("part", [0, 2])
def test_a_peer_that_computes_something_else_is_refused(part: int) -> None:
    def wrong(case: Case, inputs: Inputs) -> Ready:
        ready = sdpa(case, inputs)

        def read(returned: object) -> Tensors:
            results = list(ready.read(returned))
            results[part] = results[part] * 1.03
            return tuple(results)

        return Ready(ready.call, read)

    case = replace(SMALL, gradients=True)
    name = ("context", "gradient of query", "gradient of key")[part]
    with pytest.raises(
        AssertionError, match=f"wrong at 64 x 64 x 64 causal.*its {name} is 3.0e-02"
    ):
        peers.serve(case, {**TORCH, "wrong": wrong})


def test_a_peer_that_fails_is_named_with_what_it_said() -> None:
    def broken(case: Case, inputs: object) -> Ready:
        raise ValueError("no kernel for this\nand a long trace")

    def missing(case: Case, inputs: object) -> Ready:
        raise ModuleNotFoundError("No module named 'peer'")

    _, reasons = peers.serve(SMALL, {"broken": broken, "missing": missing})
    assert reasons == {
        "broken": "ValueError: no kernel for this",
        "missing": "not installed: No module named 'peer'",
    }


def test_weights_too_large_to_store_are_left_out_with_the_reason() -> None:
    case = Case(8192, causal=True, dtype=torch.bfloat16)
    with pytest.raises(UnservedError, match=r"stores the weights: 2\.1 GB"):
        eager(case, SMALL.inputs())


def test_a_peer_that_takes_minutes_is_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peers, "LONGEST", 0.0)
    served, reasons = peers.serve(SMALL, {"SDPA": sdpa})
    assert not served
    assert "not run here above 0 s" in reasons["SDPA"]


def test_inference_alone_is_said_so() -> None:
    case = replace(SMALL, gradients=True)
    _, reasons = peers.serve(case, {name: peers.PEERS[name] for name in ("Flex", "vLLM")})
    assert reasons == {"Flex": "has no gradients", "vLLM": "has no gradients"}


def test_operations_count_what_is_visible() -> None:
    assert Case(4, heads=1, d=1).operations == 2 * 2 * 16
    assert Case(4, heads=1, d=1, causal=True).operations == 2 * 2 * 10
    assert Case(4, heads=1, d=1, gradients=True).operations == 7 * 2 * 16
    assert Case(1, S=4096).bytes_read == 8 * (1 + 2 * 4096) * 64 * 4
    assert len(set(CASES)) == len(CASES)


@pytest.mark.parametrize("case", [Case(256), Case(1, S=4096)])
def test_the_roof_is_the_slower_of_products_and_reading(case: Case) -> None:
    roof = Roof()
    roof.look(case)
    products = case.operations / roof.rates["products float32"]
    reading = case.bytes_read / roof.rates[f"reading {case.bytes_read:,} bytes"]
    assert roof.seconds(case) == max(products, reading)
    assert (products > reading) == (case.L > 1)
    seen = roof.seconds(case)
    roof.look(case)
    assert roof.seconds(case) <= seen  # the best stays


def test_a_peak_between_two_moments_is_not_missed() -> None:
    def call() -> int:
        return len(bytearray(50_000_000))

    before = memory.resident()
    peak, returned = memory.peak(call)
    assert returned == 50_000_000
    assert 45_000_000 < peak - before < 60_000_000
    assert memory.peak(lambda: None)[0] - before < 10_000_000


def test_readme_gets_what_matters_and_keeps_the_rest(results: Results, tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(f"above\n{report.BEGIN}\nold\n{report.END}\nbelow\n")
    report.write_readme(results, page)
    text = page.read_text()
    assert text.startswith(f"above\n{report.BEGIN}\n")
    assert text.endswith(f"{report.END}\nbelow\n")
    assert "old" not in text
    assert "| forward 2048 x 2048 x 64 | float32 | 10.00 | 40% | 2.00 | - | 4.00 |" in text
    assert "512 x 512" not in text
    assert "| received | +10.0% |" in text
    assert "takes 2.75 s, 1.25 s more than" in text
    assert "jax 1.2.3" in text
    page.write_text("no markers")
    with pytest.raises(ValueError, match="needs the markers"):
        report.write_readme(results, page)


def test_the_page_holds_every_case_and_why_one_is_missing(results: Results) -> None:
    page = report.page(results)
    assert "| 512 x 512 x 64 | 10.00 | 40% | 2.00 | - | 4.00 |" in page
    assert "| 512 x 512 x 64 | 3.0 | 3.0 | - | 3.0 |" in page
    assert "- ORT: no such kernel (forward 512 x 512 x 64 float32, " in page
    assert "regard 10.10 ms before the peers were loaded, 10.00 among them" in page


def test_a_whole_run_is_printed_and_stored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speed, "CASES", (SMALL,))
    monkeypatch.setattr(speed, "REHEARSED", (SMALL,))
    monkeypatch.setattr(speed, "OBSERVED", (SMALL,))
    monkeypatch.setattr(speed, "STATISTICS", {"received": speed.STATISTICS["received"]})
    monkeypatch.setattr(speed.peers, "PEERS", {**TORCH, "JAX": absent})
    speed.main(only=["forward", "observed"], out=tmp_path, rounds=2)
    read = json.loads((tmp_path / "speed.json").read_text())
    assert read["rows"][0]["cells"].keys() == TORCH.keys()
    assert read["rows"][0]["unserved"] == {"JAX": "is not installed"}
    assert 0 < read["rows"][0]["roof"] < 1
    assert read["observed"]["float32"].keys() == {"plain", "received"}
    assert read["machine"]["threads"] == 2
    assert {path.name for path in tmp_path.iterdir()} == {"speed.json", "speed.md", "speed.svg"}
    printed = capsys.readouterr().out
    assert "received" in printed
    assert "not measured: JAX: is not installed" in printed


def test_a_part_of_a_run_cannot_become_the_readme() -> None:
    with pytest.raises(typer.BadParameter, match="leave out --only"):
        speed.main(only=["forward"], readme=True)
    with pytest.raises(typer.BadParameter, match="--only forwards: there is forward, backward"):
        speed.main(only=["forwards"])


def test_the_chart_has_a_bar_for_every_peer_that_serves(results: Results) -> None:
    tree = xml.etree.ElementTree.fromstring(chart.drawn(results))
    kind = "{http://www.w3.org/2000/svg}"
    bars = [bar.get("class") for bar in tree.iter(f"{kind}rect")]
    assert bars == ["ours", "bar"] * len(results.rows)
    words = [text.text for text in tree.iter(f"{kind}text")]
    assert words.count("2.0") == len(results.rows)  # regard, twice as fast as SDPA
    assert words.count("0.50") == len(results.rows)  # JAX
    assert "ORT" not in words


def test_the_project_s_readme_has_the_markers() -> None:
    text = (ROOT / "README.md").read_text()
    assert 0 < text.find(report.BEGIN) < text.find(report.END)


def test_every_peer_is_explained_and_the_readme_s_cases_exist() -> None:
    assert peers.MEANING.keys() == peers.PEERS.keys()
    known = {(case.work, case.name) for case in CASES}
    chosen = {(work, name) for work, names in tables.README_CASES.items() for name in names}
    assert chosen <= known


@pytest.mark.parametrize("L", [8192, pytest.param(32768, marks=pytest.mark.deep)])
def test_a_long_call_with_every_statistic_needs_little_memory(L: int) -> None:
    found = memory.measured(L, threads=2)
    assert found["outputs"] > 0
    assert 0 <= found["raised"] < 64_000_000
