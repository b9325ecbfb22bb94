"""What a translator reads: parallel text, vocabularies; and how it is scored."""

import re
import time
from pathlib import Path

import pytest
import sacrebleu

from regard import FileError, OptionError, TextError
from regard.translation.corpus import lines_of, read_lines, read_pairs
from regard.translation.parts import sentences
from regard.translation.scores import score
from regard.translation.vocabulary import Vocabulary, learn

pytestmark = pytest.mark.once

TEXT = ["The cat sat on the mat.", "Le chat est assis sur le tapis.", "Press Shift+F1."] * 10


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return learn(TEXT, 290)


def test_two_aligned_files_and_one_with_tabs_are_the_same_pairs(tmp_path: Path) -> None:
    (tmp_path / "a.en").write_text("one\ntwo\u2028half\n", encoding="utf-8")
    (tmp_path / "a.fr").write_bytes(b"un\r\ndeux\r\n")
    (tmp_path / "a.tsv").write_text("one\tun\ntwo\u2028half\tdeux", encoding="utf-8")
    wanted = [("one", "un"), ("two\u2028half", "deux")]
    assert read_pairs([tmp_path / "a.en", tmp_path / "a.fr"]) == wanted
    assert read_pairs([tmp_path / "a.tsv"]) == wanted


@pytest.mark.parametrize(
    ("text", "lines"), [("", []), ("a", ["a"]), ("a\n\nb\n", ["a", "", "b"]), ("\n", [""])]
)
def test_lines_end_with_a_newline(text: str, lines: list[str]) -> None:
    assert lines_of(text) == lines


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": b"x\ny\n", "b": b"x\n"}, r'"a" has 2 lines and "b" 1; needs a line for a line'),
        ({"a": b"", "b": b""}, r'"a" and "b": empty; needs at least one pair'),
        ({"a": b""}, r'"a": empty; needs at least one pair'),
        ({"a": b"x\n \n", "b": b"x\ny\n"}, r"line 2 has no text on one side"),
        ({"a": b"x\ty\nno tab\n"}, r'"a": line 2 has 0 tabs; needs one'),
        ({"a": b"x\ty\tz\n"}, r'"a": line 1 has 2 tabs; needs one'),
        ({"a": b"x\n\xff\n", "b": b"x\ny\n"}, r'"a": line 2 is not UTF-8'),
        ({"a": b"x", "b": b"x", "c": b"x"}, r"got 3 files; needs one TSV, or two aligned"),
    ],
)
def test_parallel_text_that_is_none(
    files: dict[str, bytes], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in files.items():
        Path(name).write_bytes(content)
    with pytest.raises((TextError, FileError), match=message):
        read_pairs([Path(name) for name in files])


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(FileError, match=r'"nowhere": cannot be read: No such file or directory'):
        read_lines(Path("nowhere"))


def test_any_text_passes_through_the_vocabulary(vocabulary: Vocabulary) -> None:
    for text in ("The mat.", "m² at 20 °C, ½", "漢字 and 🎼", "Ünïcödé"):
        assert vocabulary.decode(vocabulary.encode(text)) == text


def test_bytes_that_are_no_text_are_left_out(vocabulary: Vocabulary) -> None:
    sky = vocabulary.encode("\u7a7a")  # a space and three bytes
    cat = vocabulary.encode("cat")
    assert vocabulary.decode([*cat, *sky[:3], *cat, *sky]) == "cat  cat \u7a7a"


def test_the_same_text_gives_the_same_vocabulary(vocabulary: Vocabulary) -> None:
    assert learn(TEXT, 290).serialized == vocabulary.serialized
    assert len(vocabulary) == 290


@pytest.mark.parametrize("size", [1, 100, 5000])
def test_a_vocabulary_that_the_text_does_not_allow(size: int) -> None:
    with pytest.raises(OptionError, match=f"vocabulary: got {size} pieces; this") as refused:
        learn(TEXT, size)
    least, most = map(int, re.findall(r"\d+", str(refused.value))[1:])
    assert len(learn(TEXT, least)) == least
    assert len(learn(TEXT, most)) == most


@pytest.mark.parametrize("model", [b"", b"no model", b"\x0a\xff\xff"])
def test_what_is_no_vocabulary(model: bytes) -> None:
    with pytest.raises(FileError, match="vocabulary: "):
        Vocabulary(model)


def test_bleu_and_chrf_are_sacrebleus_own() -> None:
    found = ["the cat sat on a mat", "one two three four five"]
    wanted = ["the cat sat on the mat", "one two three five four"]
    bleu, chrf = score(found, wanted)
    assert bleu.value == sacrebleu.corpus_bleu(found, [wanted]).score
    assert chrf.value == sacrebleu.corpus_chrf(found, [wanted]).score
    assert "tok:13a" in bleu.signature
    assert bleu.around is None


def test_intervals_come_from_resampled_test_sets() -> None:
    found = ["a b c d e f", "a b c d x y"] * 50
    wanted = ["a b c d e f", "a b c d e f"] * 50
    bleu, chrf = score(found, wanted, resample=True)
    assert bleu.value == score(found, wanted)[0].value
    assert bleu.around is not None
    assert chrf.around is not None
    assert 0.5 < bleu.around < 10
    assert 0.5 < chrf.around < 10


def test_intervals_where_some_resampled_sets_have_nothing_right() -> None:
    bleu, chrf = score(["", "a b c d e"], ["x y z", "a b c d e"], resample=True)
    assert bleu.value > 0
    assert bleu.around is not None
    assert chrf.around is not None
    assert bleu.around > 0
    assert chrf.around > 0


@pytest.mark.parametrize(
    "parts",
    [
        ["Use e.g. Writer.", "Or i.e. Calc?", "Yes!"],
        ['He said "Go."', 'Then "Stop!"', "(Twice.)", "And left… perhaps."],
        ["1. Open it, 2.5 times.", "«Bon.»", "Étoile de G. R. Martin."],
        ["See www.a.org.", "The end"],
        ["Mr. Smith met Dr. Jones in Fig. 10.", "Drive C?", "Yes.", "Mme. Curie."],
        ["\u4eca\u5929\u3002", "\u660e\u5929\uff01", "\u597d"],
    ],
)
def test_a_text_is_parted_where_sentences_end(parts: list[str]) -> None:
    space = "" if "\u3002" in parts[0] else " "
    assert [part.rstrip() for part in sentences(space.join(parts))] == parts


@pytest.mark.parametrize(
    "text", ["." * 100_000, '." ' * 100_000, "\u3002" * 100_000, "a" * 100_000]
)
def test_a_long_row_of_marks_is_parted_in_linear_time(text: str) -> None:
    began = time.process_time()
    assert "".join(sentences(f"{text} B")) == f"{text} B"
    assert time.process_time() - began < 10
