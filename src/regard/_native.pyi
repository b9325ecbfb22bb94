"""Kernels of regard; see kernels/ in the source. A test compares names and arguments with them."""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

class Mask:
    def __init__(self) -> None: ...
    def band(
        self, low: NDArray[Any] | None, high: NDArray[Any] | None, first: NDArray[Any] | None
    ) -> None: ...
    def padding(self, keys: NDArray[Any], queries: NDArray[Any] | None) -> None: ...
    def documents(self, queries: NDArray[Any], keys: NDArray[Any]) -> None: ...
    def dense(self, array: NDArray[Any]) -> None: ...
    def both(self) -> None: ...
    def either(self) -> None: ...

class Asked:
    def __init__(self) -> None: ...
    lse: NDArray[Any] | None
    entropy: NDArray[Any] | None
    sink: NDArray[Any] | None
    peak_weight: NDArray[Any] | None
    peak_key: NDArray[Any] | None
    top_weights: NDArray[Any] | None
    top_keys: NDArray[Any] | None
    received: NDArray[Any] | None
    received_rows: int
    def pool(self, queries: NDArray[Any], keys: NDArray[Any], out: NDArray[Any]) -> None: ...

class Problem:
    def __init__(
        self,
        query: NDArray[Any],
        key: NDArray[Any],
        value: NDArray[Any] | None,
        context: NDArray[Any] | None,
        scale: float,
        softcap: float,
        sinks: Sequence[float],
        mask: Mask | None,
        dense_bias: NDArray[Any] | None,
        distance_bias: NDArray[Any] | None,
        row: int,
        dropout: float,
        seed: int,
        vector: NDArray[Any] | None,
        in_parts: bool,
    ) -> None: ...

def forward(problem: Problem, asked: Asked | None) -> None: ...
def attend(
    query: Any,
    key: Any,
    value: Any,
    mask: Mask | None,
    bias: NDArray[Any] | None,
    scale: float,
    grouped: bool,
    with_lse: bool,
) -> Any: ...
def gradients(
    of_context: Any,
    query: Any,
    key: Any,
    value: Any,
    context: Any,
    lse: Any,
    mask: Mask | None,
    bias: NDArray[Any] | None,
    scale: float,
) -> Any: ...
def backward(
    problem: Problem,
    of_context: NDArray[Any],
    lse: NDArray[Any],
    of_lse: NDArray[Any] | None,
    of_query: NDArray[Any],
    of_key: NDArray[Any],
    of_value: NDArray[Any],
    of_sinks: NDArray[Any] | None,
    of_bias: NDArray[Any] | None,
    of_vector: NDArray[Any] | None,
) -> None: ...
def decodes(rows: int, S: int, d_k: int, d_v: int, adjacent: bool, in_double: bool) -> bool: ...
def isa() -> str: ...
def isas() -> list[str]: ...
