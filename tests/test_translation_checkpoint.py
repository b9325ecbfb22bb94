"""Models in files, and what cannot be one: told by name, never a traceback."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from translation_toys import LETTERS, PIECES, TINY

from regard import FileError, ModelError, OptionError
from regard.translation import Translator, checkpoint
from regard.translation.model import Config, TranslationModel
from regard.translation.vocabulary import learn

pytestmark = pytest.mark.once

VOCABULARY = learn([" ".join(LETTERS)] * 3, PIECES)
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"kind": "other"}, "kind: got 'other'; needs one of transformer, additive, fixed"),
    ({"kind": []}, r"kind: got \[\]; needs one of"),
    ({"pieces": 0}, "vocabulary: got 0; needs a whole number, at least 1"),
    ({"size": 0}, "size: got 0; needs a whole number, at least 1"),
    ({"size": "192"}, "size: got '192'; needs a whole number"),
    ({"size": 15, "heads": 3}, "size: got 15; needs to be even, and a multiple of heads, 3"),
    ({"size": 20, "heads": 3}, "size: got 20; needs to be even, and a multiple of heads, 3"),
    ({"heads": None}, "heads: got None; needs a whole number"),
    ({"encoder_layers": -1}, "encoder_layers: got -1; needs a whole number, at least 1"),
    ({"length": "a"}, "length: got 'a'; needs a whole number, at least 2"),
    ({"dropout": "x"}, "dropout: got 'x'; needs 0 or more, and less than 1"),
    ({"dropout": 1.0}, "dropout: got 1.0; needs 0 or more, and less than 1"),
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    checkpoint.write(path, TINY, TranslationModel(TINY).state_dict(), VOCABULARY)
    return path


def change(path: Path, **told: Any) -> None:
    """Writes other metadata beside a file's tensors, as JSON."""
    rewrite(path, {name: json.dumps(x) for name, x in told.items()})


def rewrite(path: Path, told: dict[str, str]) -> None:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    save_file(tensors, path, metadata | told)


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_a_configuration_that_cannot_be(wrong: dict[str, Any], message: str, model: Path) -> None:
    given = vars(TINY) | wrong
    with pytest.raises(OptionError, match=message):
        Config(**given)
    change(model, config=given)
    with pytest.raises(FileError, match=message):
        Translator.load(model)


@pytest.mark.parametrize("wrong", [{"size": 2**40}, {"inner": 2**62}, {"encoder_layers": 10**9}])
def test_a_file_that_lies_about_its_sizes(wrong: dict[str, Any], model: Path) -> None:
    change(model, config=vars(TINY) | wrong)
    with pytest.raises(FileError, match="weights: do not fit the file's own configuration"):
        Translator.load(model)


def test_a_file_whose_configuration_has_no_end(model: Path) -> None:
    rewrite(model, {"config": "[" * 100_000})
    with pytest.raises(FileError, match="is not a translation model of regard"):
        Translator.load(model)


@pytest.mark.parametrize("told", [{"alignment": -5}, {"alignment": "x"}, {"config": [1]}])
def test_a_file_with_other_metadata_is_no_model(told: dict[str, Any], model: Path) -> None:
    change(model, **told)
    with pytest.raises(FileError, match=r"is not a translation model of regard"):
        Translator.load(model)


@pytest.mark.parametrize("number", [1e5, torch.nan])
def test_weights_that_half_precision_cannot_hold_are_not_written(
    number: float, tmp_path: Path
) -> None:
    weights = TranslationModel(TINY).state_dict()
    weights["table.weight"][5, 0] = number
    with pytest.raises(ModelError, match=r"some of table.weight are NaN, or beyond half"):
        checkpoint.write(tmp_path / "model", TINY, weights, VOCABULARY)
    assert list(tmp_path.iterdir()) == []
