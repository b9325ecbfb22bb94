"""python -m benchmarks.watching BOOK.txt: what it costs to watch a model read a book, and write.

Interleaved, in one process: the model unwatched with PyTorch's attention, and watched. Memory is
what a pass raises the peak by above what was there before it.
"""

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
from benchmarks import memory
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
    with watched(model, options):
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


def reading(model: Any, ids: torch.Tensor, rounds: int) -> Any:
    """Prints what each way takes, and gives the trace of a watched pass."""
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    raised: dict[str, list[int]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            before = memory.resident()
            most, (seconds, trace) = memory.peak(partial(read, model, ids, way))
            del trace  # no pass has that of another in memory
            times[way].append(seconds)
            raised[way].append(most - before)
    for way in WAYS:
        ratio = median(times[way]) / median(times[UNWATCHED])
        above = (median(raised[way]) - median(raised[UNWATCHED])) / 1e6
        print(f"{way:32} {median(times[way]):7.2f} s  {ratio:5.2f}  {above:+6.0f} MB")
    return read(model, ids, KEPT)[1]


@app.command()
def main(
    book: Annotated[Path, typer.Argument(help="A text long enough.")],
    length: Annotated[int, typer.Option(help="Tokens.")] = 8192,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    random: Annotated[int, typer.Option(help="Tokens of a run with random weights; 0: none.")] = 0,
) -> None:
    """Watch SmolLM2-135M read and write, all layers and heads, beside itself unwatched."""
    torch.set_num_threads(THREADS)
    model, ids = tokens(book, length)
    print(", ".join(f"{name} {value}" for name, value in describe().items()))
    for name, value in of_a_file(reading(model, ids, rounds)).items():
        print(f"{name:32} {value:7.2f}")
    writing: dict[str, list[float]] = {UNWATCHED: [], KEPT: []}
    for _ in range(rounds):
        for way, seconds in writing.items():
            seconds.append(write(model, ids[:, :AFTER], way))
    ratio = median(writing[KEPT]) / median(writing[UNWATCHED])
    print(f"{WRITTEN} tokens after {AFTER}, watched / unwatched: {ratio:.2f}")
    if random:
        model, ids = longer(random), torch.randint(1, 40000, (1, random))
        most, (taken, trace) = memory.peak(partial(read, model, ids, KEPT))
        entropy = float(trace[15].observation.entropy.mean())
        print(f"{random:,} tokens: {taken:.0f} s, peak {most / 1e9:.1f} GB, entropy {entropy:.2f}")


if __name__ == "__main__":
    app()
