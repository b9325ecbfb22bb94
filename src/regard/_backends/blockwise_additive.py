"""The additive score in torch operations, some rows and keys at a time.

tanh(query + key) has a number for every query, key and feature. It is there for few pairs at once,
forward and backward, and never kept.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

# Numbers of tanh(query + key) that are there at once.
PIECE = 2**21


def scores(query: Tensor, key: Tensor, vector: Tensor) -> Tensor:
    """vector · tanh(query + key), (*batch, heads, L, S).

    Args:
        query: (*batch, heads, L, d).
        key: (*batch, kv_heads, S, d).
        vector: (heads, d).
    """
    folded = _fold(query, key)
    found = query.new_empty((*folded.shape[:-1], key.shape[-2]))
    column = _per_head(vector, folded)[..., None]
    for rows, keys in _pieces(folded, key):
        bent = _bent(folded[..., rows, :], key[..., keys, :])
        found[..., rows, keys] = (bent @ column)[..., 0]
    return found.reshape(*query.shape[:-1], key.shape[-2])


def gradients(
    d_scores: Tensor, query: Tensor, key: Tensor, vector: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What gradients of the scores, 0 where a key is hidden, give to query, key and vector.

    A hidden key gets and gives nothing, whatever it holds.
    """
    folded = _fold(query, key)
    given = d_scores.reshape(*folded.shape[:-1], key.shape[-2])
    line = _per_head(vector, folded)[..., None, :]
    d_query, d_key = torch.zeros_like(folded), torch.zeros_like(key)
    d_vector = vector.new_zeros(folded.shape[-4], folded.shape[-3], vector.shape[-1])
    for rows, keys in _pieces(folded, key):
        part = given[..., rows, keys, None]
        bent = _bent(folded[..., rows, :], key[..., keys, :]).masked_fill_(part == 0, 0)
        both = part.flatten(-3).unsqueeze(-2) @ bent.flatten(-3, -2)
        d_vector += both.squeeze(-2).sum_to_size(d_vector.shape)
        through = bent.square_().neg_().add_(1).mul_(line).mul_(part)
        d_query[..., rows, :] += through.sum(dim=-2)
        d_key[..., keys, :] += through.sum(dim=(-4, -3))
    return d_query.reshape(query.shape), d_key, d_vector.reshape(vector.shape)


def _fold(query: Tensor, key: Tensor) -> Tensor:
    """(*batch, kv_heads, group, L, d): the queries of the heads that share a key head together."""
    *batch, heads, L, d = query.shape
    kv_heads = key.shape[-3]
    return query.reshape(*batch, kv_heads, heads // max(kv_heads, 1), L, d)


def _per_head(vector: Tensor, folded: Tensor) -> Tensor:
    """(kv_heads, group, 1, d)."""
    kv_heads, group = folded.shape[-4:-2]
    return vector.reshape(kv_heads, group, 1, vector.shape[-1])


def _bent(query: Tensor, key: Tensor) -> Tensor:
    """tanh(query + key), (*batch, kv_heads, group, rows, keys, d)."""
    return (query[..., None, :] + key[..., None, None, :, :]).tanh_()


def _pieces(folded: Tensor, key: Tensor) -> Iterator[tuple[slice, slice]]:
    """Runs of rows and of keys whose pairs make a piece."""
    L, S = folded.shape[-2], key.shape[-2]
    pair = max(folded.shape[:-2].numel() * folded.shape[-1], 1)
    columns = max(1, min(S, PIECE // pair))
    step = max(1, PIECE // (pair * columns))
    for i in range(0, L, step):
        for j in range(0, S, columns):
            yield slice(i, i + step), slice(j, j + columns)
