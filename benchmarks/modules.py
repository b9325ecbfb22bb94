"""python -m benchmarks.modules: a Transformer of regard.nn beside one of torch.nn.

The same model, sizes and dropout, on the same padded batch, interleaved in one process. The time of
the processor is given beside the clock's: on a machine with other work only the first is steady.
"""

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from benchmarks.machine import THREADS, describe
from regard.nn import Transformer

SIZE, HEADS, LAYERS, INNER, DROPOUT = 256, 4, 3, 1024, 0.1
PAIRS, LENGTH, SHORTEST = 80, 25, 20  # of sentences; 2,000 positions of each side

app = typer.Typer(add_completion=False)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Source, target, and which positions of the source are real."""
    torch.manual_seed(0)
    lengths = torch.randint(SHORTEST, LENGTH + 1, (PAIRS, 1))
    source, target = torch.randn(2, PAIRS, LENGTH, SIZE)
    return source, target, torch.arange(LENGTH) < lengths


def calls(training: bool) -> dict[str, Callable[[], Tensor]]:
    """Forward passes of both."""
    source, target, real = batch()
    ours = Transformer(SIZE, HEADS, LAYERS, LAYERS, INNER, dropout=DROPOUT).train(training)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its encoder does not use nested tensors
        theirs = nn.Transformer(
            SIZE, HEADS, LAYERS, LAYERS, INNER, DROPOUT, batch_first=True, norm_first=True
        ).train(training)
    later = torch.ones(LENGTH, LENGTH).tril() == 0

    def by_torch() -> Tensor:
        found: Tensor = theirs(
            source,
            target,
            tgt_mask=later,
            src_key_padding_mask=~real,
            memory_key_padding_mask=~real,
            tgt_is_causal=True,
        )
        return found

    return {"regard.nn": lambda: ours(source, target, real), "torch.nn": by_torch}


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    """Of the clock, and of the processor."""
    start, worked = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - worked


@app.command()
def main(rounds: Annotated[int, typer.Option(min=3)] = 15) -> None:
    """Medians of forward and backward in training, with dropout, and of forward alone without."""
    torch.set_num_threads(THREADS)
    print(", ".join(f"{name} {value}" for name, value in describe().items()))
    kinds: dict[str, dict[str, Callable[[], object]]] = {
        "forward and backward": {
            name: lambda call=call: call().square().mean().backward()  # type: ignore[misc]
            for name, call in calls(training=True).items()
        },
        "inference": {n: torch.no_grad()(call) for n, call in calls(training=False).items()},
    }
    for kind, each in kinds.items():
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in each}
        for turn in range(rounds + 1):  # the first is not counted
            for name, call in each.items() if turn % 2 else reversed(each.items()):
                found = seconds(call)
                taken[name] += [found] if turn else []
        middle = {n: [statistics.median(x) for x in zip(*t, strict=True)] for n, t in taken.items()}
        for name, (clock, worked) in middle.items():
            tokens = 2 * PAIRS * LENGTH / clock
            print(
                f"{kind:22} {name:10} {1e3 * clock:7.0f} ms {1e3 * worked:7.0f} ms of processor "
                f"{tokens:8,.0f} positions/s"
            )
        ratios = [b / a for a, b in zip(middle["regard.nn"], middle["torch.nn"], strict=True)]
        print(f"{kind:22} torch / regard: {ratios[0]:.2f} by the clock, {ratios[1]:.2f} in work")


if __name__ == "__main__":
    app()
