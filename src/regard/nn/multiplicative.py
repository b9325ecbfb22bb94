"""Multiplicative attention (Luong et al. 2015): one score per query and key, from their product."""

from typing import Any

import torch
from torch import Tensor, nn

from regard._errors import OptionError, ShapeError
from regard._observation import Observe
from regard.nn._checks import check_size, of_one_head, value_of
from regard.nn.functional import scaled_dot_product_attention

SCORES = ("general", "dot")


class MultiplicativeAttention(nn.Module):
    """softmax(score) · value with score = qᵀ W k ("general") or qᵀ k ("dot") (Luong et al. 2015).

    Without a scale, as in the paper. The interface is that of `AdditiveAttention`.

    Args:
        query_size: of the queries' vectors.
        key_size: of the keys' vectors; for "dot" they are as large.
        score: "general", which learns W, Glorot uniform at first; or "dot".
        device, dtype: of W.

    Raises:
        OptionError: another score; ShapeError: sizes that differ, for "dot".
    """

    def __init__(
        self,
        query_size: int,
        key_size: int,
        *,
        score: str = "general",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if score not in SCORES:
            raise OptionError(f"score: got {score!r}; needs one of {', '.join(SCORES)}")
        if score == "dot" and query_size != key_size:
            raise ShapeError(f'key_size: got {key_size}; "dot" needs query_size, {query_size}')
        self.query_size, self.key_size, self.score = query_size, key_size, score
        self.weight = None
        if score == "general":
            weight = torch.empty(query_size, key_size, device=device, dtype=dtype)
            self.weight = nn.Parameter(weight)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """W as at the beginning, drawn anew."""
        if self.weight is not None:
            nn.init.xavier_uniform_(self.weight)

    def project(self, key: Tensor) -> Tensor:
        """W k for keys (*batch, S, key_size): (*batch, S, query_size); for "dot" the keys.

        A decoder makes them once, and gives them with `projected=True`.

        Raises:
            ShapeError: keys of another size.
        """
        check_size(key, self.key_size, "key")
        return key if self.weight is None else nn.functional.linear(key, self.weight)

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
        """What the queries gather from the values.

        Args:
            query: (*batch, T, query_size).
            key: (*batch, S, key_size), or what `project` made of it.
            value: (*batch, S, value_size); the key unless given.
            mask: booleans, True where a query may attend: (*batch, S), the keys that are real, or
                (*batch, T, S).
            observe: which statistics of the weights to gather on the way.
            projected: whether `key` comes from `project`; then `value` needs to be given.

        Returns:
            The context, (*batch, T, value_size); with `observe`, a pair of it and an `Observation`
            of one head: its arrays are (*batch, 1, ...).

        Raises:
            ShapeError: sizes that do not fit.
            DtypeError: a mask that is not boolean.
            OptionError: projected keys without a value.
        """
        check_size(query, self.query_size, "query")
        value = value_of(key, value, projected)
        key = key if projected else self.project(key)
        check_size(key, self.query_size, "key")
        q, k, v, seen = of_one_head(query, key, value, mask)
        found = scaled_dot_product_attention(q, k, v, seen, scale=1.0, observe=observe)
        if observe is None:
            context: Tensor = found.squeeze(-3)
            return context
        return found[0].squeeze(-3), found[1]

    def extra_repr(self) -> str:
        return f"{self.query_size}, {self.key_size}, score={self.score!r}"
