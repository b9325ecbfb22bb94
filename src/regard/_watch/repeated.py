"""Induction heads, found on random tokens that are read twice."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from regard._errors import ModelError, OptionError
from regard._watch.intercept import watch
from regard._watch.scoring import HeadScores


def induction(
    model: Any,
    vocabulary: Any = None,
    *,
    length: int = 50,
    seed: int = 0,
    before: Sequence[int] = (),
) -> HeadScores:
    """Which heads complete a pattern: the scores of a model on random tokens, read twice.

        scores = regard.induction(model, tokenizer)
        scores.top("induction")      # heads that look at what followed a token the last time

    Nothing but the repetition tells what comes next, so a head that looks from a token to the one
    after its first occurrence is an induction head (Elhage et al. 2021; Olsson et al. 2022, whose
    prefix matching score `induction` is). The other scores are those of the same sequence.

    Args:
        model: one of transformers' that reads input_ids.
        vocabulary: the tokenizer, whose special tokens are not drawn; or the token ids to draw
            from; all that the model knows unless given.
        length: how many tokens are drawn, each at most once where there are enough.
        seed: of the draw.
        before: token ids to read first, such as that which begins a text.

    Raises:
        OptionError: length is less than 2, or there is nothing to draw from.
        ModelError: the model does not say what it knows; others as `regard.watch`.
    """
    ids = _drawn_from(model, vocabulary)
    if length < 2 or not len(ids):
        raise OptionError(f"induction: got {length} of {len(ids)} tokens; needs 2 or more of any")
    rng = np.random.default_rng(seed)
    drawn = rng.choice(ids, length, replace=len(ids) < length)
    import torch

    device = next(model.parameters()).device
    read = torch.tensor([[*before, *drawn.tolist(), *drawn.tolist()]], device=device)
    with watch(model) as trace, torch.no_grad():
        model(input_ids=read)
    return trace.head_scores()


def _drawn_from(model: Any, vocabulary: Any) -> np.ndarray:
    if hasattr(vocabulary, "all_special_ids"):
        special = {*vocabulary.all_special_ids, *vocabulary.added_tokens_decoder}
        return np.array([i for i in range(vocabulary.vocab_size) if i not in special])
    if vocabulary is not None:
        return np.asarray(vocabulary, np.int64)
    size = getattr(getattr(model, "config", None), "vocab_size", None)
    if size is None:
        raise ModelError("induction: the model tells no vocabulary; needs vocabulary=...")
    return np.arange(size)
