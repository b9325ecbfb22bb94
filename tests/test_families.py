"""Every family of models with regard's attention, against its own eager attention."""

from typing import Any

import pytest
import torch
from families import CROSSING, DECODERS, ENCODERS, FAMILIES, disagreement
from transformers import AttentionInterface, AttentionMaskInterface

import regard
from regard._watch.interface import attention_forward, register
from regard._watch.masks import make_mask

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("one_thread")]

RELATIVE = 1e-5
TEXT = DECODERS | ENCODERS | CROSSING


@pytest.fixture
def peaks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """ "counted" is regard's attention, which notes each call: the mean greatest weight of a row,
    as a multiple of what it were if attention was even."""
    found: list[float] = []

    def counted(module: Any, query: Any, key: Any, *args: Any, **options: Any) -> Any:
        plain = {n: options[n] for n in ("scaling", "softcap") if options.get(n) is not None}
        if "scaling" in plain:
            plain["scale"] = plain.pop("scaling")
        with torch.no_grad():
            seen = regard.attention(query, key, key, **plain, observe=regard.Observe(peak=True))[1]
        found.append(float(seen.peak.weight.mean()) * key.shape[2])
        return attention_forward(module, query, key, *args, **options)

    monkeypatch.setitem(AttentionInterface._global_mapping, "counted", counted)
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, "counted", make_mask)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_computes_what_it_computes_with_eager(family: str, peaks: list[float]) -> None:
    assert disagreement(family, "counted") < RELATIVE
    assert peaks, "its attention is not regard's"
    assert max(peaks) > 5, "its attention is so even that it would hide mistakes"


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("family", TEXT)
def test_a_padded_family_computes_what_it_computes_with_eager(family: str, padding: str) -> None:
    register()
    assert disagreement(family, "regard", padding) < RELATIVE
