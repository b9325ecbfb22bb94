"""The packaged model: what is in it, what it says, and how soon."""

import time
from pathlib import Path

import pytest
from safetensors import safe_open

from regard.translation import Translator
from regard.translation.translator import model_path
from regard.translation.words import by_word

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("one_thread")]

PACKAGE = Path(__file__).resolve().parent.parent / "models" / "en-fr"


@pytest.fixture(scope="module")
def translator() -> Translator:
    return Translator.load("en-fr")


def test_it_is_small_and_all_data() -> None:
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and "build" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 12_000_000
    installed = model_path("en-fr")
    assert installed.read_bytes() == (PACKAGE / "regard_en_fr" / "model.safetensors").read_bytes()
    with safe_open(installed, framework="pt") as file:
        assert file.metadata()["format"] == "regard translation 1"


def test_it_speaks_french(translator: Translator) -> None:
    found = translator.translate(["Click the button to open the dialog.", "Select the cells."])
    assert found[0].target.startswith("Cliquez sur")
    assert found[1].target == "Sélectionnez les cellules."
    assert all(translation.finished for translation in found)


def test_a_key_is_translated_while_looking_at_it(translator: Translator) -> None:
    (found,) = translator.translate(["Press Shift+F1 to learn more."], align=True)
    words = by_word(found)
    row = words.weights[words.target.index("Maj+F1")]
    assert words.source[int(row.argmax())] == "Shift+F1"


def test_what_it_does_not_know_comes_back_once(translator: Translator) -> None:
    unknown = {
        "Press 🎼 to continue.": "🎼",
        "Open the 漢字 file.": "漢字",
        "Press the key to 🎼 continue.": "🎼",  # which it leaves out
        "The name of Dvořák is shown.": "Dvořák",
    }
    found = translator.translate(list(unknown), align=True)
    assert found[1].target == "Ouvrez le fichier 漢字."
    for translation, run in zip(found, unknown.values(), strict=True):
        assert translation.target.count(run) == 1
        assert [sum(run in token for token in side) for side in translation.tokens] == [1, 1]
        assert translation.weights is not None
        assert translation.weights.shape == tuple(map(len, reversed(translation.tokens)))
        assert translation.weights.sum(1) == pytest.approx(1.0, abs=1e-5)
    plain = translator.translate(list(unknown))
    assert [t.target for t in plain] == [t.target for t in found]


def test_it_loads_and_translates_soon(translator: Translator) -> None:
    """In time of the processor, which other work on the machine does not lengthen."""
    translator.translate(["First."])
    start = time.process_time()
    Translator.load("en-fr")
    loaded = time.process_time()
    translator.translate(["Press Shift+F1 to learn more about the selected command."])
    assert loaded - start < 1.0
    assert time.process_time() - loaded < 0.5
