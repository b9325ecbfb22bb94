"""python -m benchmarks.additive: the additive score beside the formula in PyTorch.

Interleaved medians on two threads; memory is what a call raises the peak by above what was there
before it, gradients included. Of several processes the ratios can be trusted, not the times.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
import typer
from torch import Tensor

from benchmarks import memory
from benchmarks.machine import THREADS, describe
from benchmarks.timing import interleaved
from regard.nn.functional import additive_attention


@dataclass(frozen=True)
class Case:
    """B entries of T queries and S keys with d features each."""

    name: str
    B: int
    T: int
    S: int
    d: int
    learns: bool


CASES = (
    Case("training: all steps at once", 16, 50, 50, 512, True),
    Case("training: one step", 80, 1, 50, 512, True),
    Case("decoding: one step", 80, 1, 50, 512, False),
    Case("long: one head", 1, 1024, 1024, 128, True),
)


def formula(query: Tensor, key: Tensor, value: Tensor, vector: Tensor) -> Tensor:
    """As people write it."""
    scores = torch.tanh(query[..., :, None, :] + key[..., None, :, :]) @ vector
    return scores.softmax(-1) @ value


def call(case: Case, attend: Callable[..., Tensor]) -> Callable[[], object]:
    """One forward pass, and one backward where the case learns, on tensors of its own."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(case.B, 1, n, case.d) for n in (case.T, case.S, case.S)]
    arrays = [torch.randn(shape, generator=generator) for shape in shapes]
    arrays.append(torch.randn(case.d, generator=generator) / case.d**0.5)
    upstream = torch.randn(shapes[0], generator=generator)
    for x in arrays:
        x.requires_grad_(case.learns)

    def run() -> object:
        context = attend(*arrays)
        return torch.autograd.grad(context, arrays, upstream) if case.learns else context

    return run


def raised(run: Callable[[], object]) -> int:
    """By how many bytes a call raises the peak; the first may load code."""
    run()
    before = memory.resident()
    return memory.peak(run)[0] - before


def main(rounds: Annotated[int, typer.Option(min=1)] = 21) -> None:
    """The additive score (Bahdanau et al. 2014) of regard beside PyTorch's operations."""
    torch.set_num_threads(THREADS)
    print(", ".join(f"{name} {value}" for name, value in describe().items()))
    print(f"{'':30}{'formula':>12}{'regard':>12}{'faster':>9}{'memory':>22}")
    for case in CASES:
        calls = {"formula": call(case, formula), "regard": call(case, additive_attention)}
        times = {name: x.median * 1e3 for name, x in interleaved(calls, rounds).items()}
        bytes_of = {name: raised(run) / 1e6 for name, run in calls.items()}
        print(
            f"{case.name:30}{times['formula']:9.1f} ms{times['regard']:9.1f} ms"
            f"{times['formula'] / times['regard']:8.1f}x"
            f"{bytes_of['formula']:10.1f} MB{bytes_of['regard']:8.1f} MB"
        )


if __name__ == "__main__":
    typer.run(main)
