"""python -m benchmarks.watching BOOK.txt: what it costs to watch a model read a book, and write.

Times are of one process, interleaved: the model unwatched with PyTorch's attention, and watched.
Memory is of a process for each, as a peak cannot be taken back.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer

import regard
import regard.hf
from benchmarks.machine import THREADS, describe

SEEN = regard.Observe(entropy=True, peak=True, received="all", map=(256, 256))
UNWATCHED, KEPT, STATISTICS = "unwatched, PyTorch's sdpa", "watched", "watched, statistics only"
WAYS: dict[str, dict[str, Any] | None] = {
    UNWATCHED: None,
    KEPT: {"observe": SEEN},
    STATISTICS: {"observe": SEEN, "keep": "statistics"},
}
TILE = 256
WRITTEN, AFTER = 64, 1024  # tokens generated, and read before that

app = typer.Typer(add_completion=False)


def tokens(book: Path, length: int) -> tuple[Any, torch.Tensor]:
    model, tokenizer = regard.hf.load("smollm2")
    model.set_attn_implementation("sdpa")
    ids = tokenizer(book.read_text(), return_tensors="pt", verbose=False)["input_ids"]
    if ids.shape[1] < length:
        raise typer.BadParameter(f"{book} has {ids.shape[1]:,} tokens; needs {length:,}")
    return model, ids[:, :length]


def longer(length: int) -> Any:
    """A model of SmolLM2's shape with random weights and a longer context."""
    import transformers

    known, _ = regard.hf.load("smollm2")
    config = transformers.LlamaConfig(
        **known.config.to_dict() | {"max_position_embeddings": length}
    )
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.06)
    model.train(False)
    return model


def watched(model: Any, options: dict[str, Any] | None) -> Any:
    return nullcontext() if options is None else regard.watch(model, **options)


def read(model: Any, ids: torch.Tensor, way: str) -> tuple[float, Any]:
    """The seconds that one forward pass takes, and the trace."""
    options = WAYS[way]
    start = time.perf_counter()
    with (
        torch.no_grad(),
        nullcontext() if options is None else regard.watch(model, **options) as trace,
    ):
        model.base_model(ids, use_cache=False)
    return time.perf_counter() - start, trace


def write(model: Any, ids: torch.Tensor, way: str) -> float:
    options = WAYS[way]
    start = time.perf_counter()
    with (
        nullcontext()
        if options is None
        else regard.watch(model, observe=regard.Observe(entropy=True))
    ):
        model.generate(ids, max_new_tokens=WRITTEN, min_new_tokens=WRITTEN, do_sample=False)
    return time.perf_counter() - start


def milliseconds(call: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * median(times)


def of_a_file(trace: Any) -> dict[str, float]:
    """How long parts of the trace take from the file, and how large it is."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "book.safetensors"
        trace.save(path)
        opened = regard.Trace.load(path)
        L = opened[0].weights.shape[-2]
        heads = [(layer, head) for layer in (0, 7, 29) for head in (0, 4, 8)]
        corner = slice(L - TILE, L)
        found = {"file, GB": path.stat().st_size / 1e9}
        tiles = []
        for layer, head in heads:
            weights = opened[layer].weights[0, head]
            tiles.append(milliseconds(partial(weights.__getitem__, (corner, slice(TILE))), 1))
        found["tile, ms, worst"] = max(tiles)
        whole = opened[7].weights[0, 4]
        found["pooled map, ms"] = milliseconds(partial(whole.pooled, TILE, TILE), 3)
    return found


@app.command()
def main(
    book: Annotated[Path, typer.Argument(help="A text long enough.")],
    length: Annotated[int, typer.Option(help="Tokens.")] = 8192,
    rounds: Annotated[int, typer.Option()] = 3,
    random: Annotated[int, typer.Option(help="Tokens of a run with random weights; 0: none.")] = 0,
    only: Annotated[str, typer.Option(help="One way, and print its peak memory; for itself.")] = "",
) -> None:
    """Watch SmolLM2-135M read and write, all layers and heads, beside itself unwatched."""
    torch.set_num_threads(THREADS)
    model, ids = tokens(book, length)
    if only:
        _, trace = read(model, ids, only)
        print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
        return
    print(", ".join(f"{name} {value}" for name, value in describe().items()))
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            seconds, trace = read(model, ids, way)
            times[way].append(seconds)
            if way == KEPT:
                kept = trace
    peaks = {way: peak_of(way, book, length) for way in WAYS}
    for way in WAYS:
        print(
            f"{way:32} {median(times[way]):7.2f} s  "
            f"{median(times[way]) / median(times[UNWATCHED]):5.2f}  "
            f"+{(peaks[way] - peaks[UNWATCHED]) / 1e6:6.0f} MB"
        )
    for name, value in of_a_file(kept).items():
        print(f"{name:32} {value:7.2f}")
    writing = {
        way: [write(model, ids[:, :AFTER], way) for _ in range(rounds)] for way in (UNWATCHED, KEPT)
    }
    ratio = median(writing[KEPT]) / median(writing[UNWATCHED])
    print(f"{WRITTEN} tokens after {AFTER}, watched / unwatched: {ratio:.2f}")
    if random:
        model, ids = longer(random), torch.randint(1, 40000, (1, random))
        seconds, trace = read(model, ids, KEPT)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        entropy = float(trace[15].observation.entropy.mean())
        print(f"{random:,} tokens: {seconds:.0f} s, peak {peak:.1f} GB, entropy {entropy:.2f}")


def peak_of(way: str, book: Path, length: int) -> float:
    command = [sys.executable, "-m", "benchmarks.watching", str(book), f"--length={length}"]
    done = subprocess.run([*command, f"--only={way}"], check=True, capture_output=True, text=True)
    return float(done.stdout)


if __name__ == "__main__":
    app()
