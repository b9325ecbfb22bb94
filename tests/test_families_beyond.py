"""Which models do not go through transformers' attention interface, or are not tested, by name."""

import re
from pathlib import Path
from typing import Any

import families
import families_beyond as beyond
import pytest
import torch
import transformers as hf
from tiny_models import inputs, scrambled

import regard
from regard._watch import interface

pytestmark = pytest.mark.once

ATTENTION = re.compile(r"^class \w*Attention\w*\(nn\.Module\):", re.MULTILINE)
CALLS = "ALL_ATTENTION_FUNCTIONS.get_interface("
of_another_version = pytest.mark.skipif(
    hf.__version__ != beyond.VERSION, reason=f"the lists are of transformers {beyond.VERSION}"
)


def sources() -> dict[str, list[str]]:
    """The modelling files that hold attention, by folder."""
    found: dict[str, list[str]] = {}
    for path in (Path(hf.__file__).parent / "models").glob("*/modeling_*.py"):
        text = path.read_text()
        if CALLS in text or ATTENTION.search(text):
            found.setdefault(path.parent.name, []).append(text)
    return found


def through() -> set[str]:
    return {name for name, texts in sources().items() if any(CALLS in text for text in texts)}


def covered() -> set[str]:
    modules: dict[str, Any] = hf._class_to_module
    return {modules[kind].split(".")[1] for kind in families.FAMILIES.values()}


@of_another_version
def test_those_past_the_interface_are_the_ones_that_are_listed() -> None:
    assert sorted(sources().keys() - through()) == beyond.PAST_THE_INTERFACE


@of_another_version
def test_every_family_that_goes_through_is_tested_or_listed() -> None:
    lists = (beyond.REFUSED, beyond.NEEDS_A_PACKAGE, beyond.STAYS_BIG, beyond.NEEDS_MORE)
    listed = [name for names in lists for name in names]
    assert len(listed) == len(set(listed)), "in two lists"
    assert not covered() & set(listed), "tested as well"
    assert covered() | set(listed) == through()


def test_there_are_many_families() -> None:
    assert len(covered()) >= 170


@pytest.mark.parametrize("kind", ["BloomForCausalLM", "XGLMForCausalLM", "MPNetModel"])
def test_watching_a_model_past_the_interface_says_so(kind: str) -> None:
    model = tiny(kind)
    assert not model._can_set_attn_implementation()
    with (
        pytest.raises(regard.ModelError, match="do not go through transformers' attention"),
        regard.watch(model),
    ):
        model(torch.arange(1, 10)[None])


def test_sinks_that_differ_from_query_to_query_are_refused() -> None:
    interface.register()
    model = tiny("Inkling2ForCausalLM")
    model.set_attn_implementation("regard")
    with torch.no_grad(), pytest.raises(regard.OptionError, match="sinks: Inkling2Sliding"):
        model(**inputs(20))


def tiny(kind: str) -> Any:
    made = getattr(hf, kind)
    return scrambled(made(made.config_class(**families.sizes(made.config_class, {}))))
