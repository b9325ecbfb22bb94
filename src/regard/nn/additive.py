"""Attention with the additive score, as a module."""

from typing import Any

import torch
from torch import Tensor, nn

from regard._observation import Observe
from regard.nn._checks import check_size, of_one_head, value_of
from regard.nn.functional import additive_attention


class AdditiveAttention(nn.Module):
    """softmax(v · tanh(W q + U k)) · value (Bahdanau et al. 2014, arXiv 1409.0473).

    One head. A decoder that asks at every step projects the keys once, and passes the result:

        projected = attention.project(states)
        for _ in range(steps):
            context = attention(state, projected, states, mask=mask, projected=True)

    Args:
        query_size: features of a query.
        key_size: features of a key.
        size: features of the projected ones, among which v is a weighting.
        bias: whether W q + U k has a bias beside it. It is U's, so that it is added once.
        device, dtype: of the parameters.

    Attributes:
        query_projection: W, a `torch.nn.Linear` without a bias.
        key_projection: U, a `torch.nn.Linear`.
        vector: v, (size,), drawn from U(-1/√size, 1/√size) as the rows of a `torch.nn.Linear` are.
    """

    def __init__(
        self,
        query_size: int,
        key_size: int,
        size: int,
        *,
        bias: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.query_size, self.key_size, self.size = query_size, key_size, size
        self.query_projection = nn.Linear(query_size, size, False, device, dtype)
        self.key_projection = nn.Linear(key_size, size, bias, device, dtype)
        self.vector = nn.Parameter(torch.empty(size, device=device, dtype=dtype))
        self._draw_vector()

    def reset_parameters(self) -> None:
        """Draws all parameters anew."""
        self.query_projection.reset_parameters()
        self.key_projection.reset_parameters()
        self._draw_vector()

    def _draw_vector(self) -> None:
        bound = max(self.vector.shape[0], 1) ** -0.5
        nn.init.uniform_(self.vector, -bound, bound)

    def project(self, key: Tensor) -> Tensor:
        """U k, (*batch, S, size): what `forward` takes as `key` with `projected=True`.

        Args:
            key: (*batch, S, key_size).

        Raises:
            ShapeError: keys of another size.
        """
        check_size(key, self.key_size, "key")
        projected: Tensor = self.key_projection(key)
        return projected

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        observe: Observe | None = None,
        projected: bool = False,
    ) -> Any:
        """The context of each query.

        Args:
            query: (*batch, T, query_size).
            key: (*batch, S, key_size); with `projected`, what `project` made of it.
            value: (*batch, S, d_v); the key unless given.
            mask: boolean, True where a query may attend: (*batch, S), the keys that are real, or
                (*batch, T, S).
            observe: which statistics of the weights to gather on the way.
            projected: whether the key is projected already; then a value must be given.

        Returns:
            The context, (*batch, T, d_v), zero where a query sees no key. With `observe`, a pair of
            it and an `Observation` of one head: its arrays are (*batch, 1, ...).

        Raises:
            ShapeError: sizes that do not fit.
            DtypeError: a mask that is not boolean.
            OptionError: projected keys without a value.
        """
        check_size(query, self.query_size, "query")
        value = value_of(key, value, projected)
        key = key if projected else self.project(key)
        check_size(key, self.size, "key")
        q, k, v, seen = of_one_head(self.query_projection(query), key, value, mask)
        found = additive_attention(q, k, v, self.vector, seen, observe=observe)
        if observe is None:
            return found.squeeze(-3)
        context, observation = found
        return context.squeeze(-3), observation

    def extra_repr(self) -> str:
        return f"size={self.size}"
