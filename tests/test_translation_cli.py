"""Translating, in Python and as `regard translate`: what it prints, writes and refuses."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from translation_toys import PIECES, SHORT, TINY, reversals

import regard
from regard import FileError, ModelError, OptionError, TextError, cli
from regard.translation import Translator
from regard.translation.alignment import align, best_layer, cross_attentions, kept_words
from regard.translation.batches import collate
from regard.translation.cli import _line as cli_line
from regard.translation.compare import KINDS
from regard.translation.start import begin
from regard.translation.train import MODEL, Training
from regard.translation.translator import Translation
from regard.translation.vocabulary import END
from regard.translation.words import by_word

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("one_thread")]


LATER = ("--validation", "x", "--out", "x")  # of a file that is not there, but read later


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a small model that has read words and their reversals for a moment."""
    path = tmp_path_factory.mktemp("models") / "toy"
    pairs = reversals(400, 0)
    config = replace(TINY, size=32, decoder_layers=2)
    settings = replace(SHORT, steps=60, every=60)
    Training(path, pairs, reversals(20, 1), begin(path, pairs, config), settings).run()
    return path


@pytest.fixture(scope="module")
def translator(folder: Path) -> Translator:
    return Translator.load(folder)


@pytest.fixture
def run(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Any:
    """Runs `regard translate` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def main(*arguments: str, stdin: bytes | None = None) -> Ran:
        monkeypatch.setattr(sys, "argv", ["regard", "translate", *arguments])
        buffer = io.BytesIO(stdin or b"")
        terminal = SimpleNamespace(buffer=buffer, isatty=lambda: stdin is None)
        monkeypatch.setattr(sys, "stdin", terminal)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        return Ran(code if isinstance(code, int) else 0, *capsys.readouterr())

    return main


def test_translations_come_in_the_order_of_the_texts(translator: Translator) -> None:
    texts = ["abc", "", "hgfedc", "  ", "a"]
    found = translator.translate(texts)
    assert [t.source for t in found] == texts
    assert [found[1].target, found[3].target] == ["", "  "]
    assert all(t.target for t in (found[0], found[2], found[4]))
    alone = translator.translate(["hgfedc"])[0]
    assert (alone.target, alone.tokens) == (found[2].target, found[2].tokens)
    assert found[0].weights is None


def test_weights_are_the_decoders_own_when_it_wrote_the_translation(
    translator: Translator,
) -> None:
    (found,) = translator.translate(["abcd"], align=True)
    assert found.weights is not None
    assert found.tokens[0][-1] == found.tokens[1][-1] == "</s>"
    assert found.weights.shape == (len(found.tokens[1]), len(found.tokens[0]))
    assert found.weights.sum(1) == pytest.approx(1.0, abs=1e-5)
    # The same by hand: queries and keys of that layer, where the decoder reads token by token.
    seen: list[torch.Tensor] = []
    layer = translator.model.network.decoder.layers[translator.layer]
    hook = layer.cross_attention.register_forward_pre_hook(
        lambda module, args: seen.append(module.q_proj(args[0])), with_kwargs=False
    )
    source = translator.vocabulary.encode("abcd")
    target = [translator.vocabulary._processor.piece_to_id(p) for p in found.tokens[1][:-1]]
    batch = collate([(source, target)])
    with torch.inference_mode():
        memory, real = translator.model.encode(batch.source)
        cache = translator.model.new_cache()
        for place in range(batch.target.shape[1] - 1):
            translator.model.decode(batch.target[:, place : place + 1], memory, real, cache)
        key = layer.cross_attention.k_proj(memory)[0]
    hook.remove()
    heads, d = layer.cross_attention.heads, layer.cross_attention.d_k
    query = torch.cat(seen, 1)[0].view(-1, heads, d).transpose(0, 1)
    scores = query @ key.view(-1, heads, d).permute(1, 2, 0) / d**0.5
    assert found.weights == pytest.approx(scores.softmax(-1).mean(0).numpy(), abs=1e-5)


def test_the_layer_of_the_alignment_is_the_one_that_finds_kept_words(
    translator: Translator,
) -> None:
    vocabulary, model = translator.vocabulary, translator.model
    capital = vocabulary.encode("X1")  # bytes, which are pieces with digits
    pairs = [([*vocabulary.encode("ab"), token], [token]) for token in capital]
    assert [kept_words(pair, vocabulary) for pair in pairs][-1] == [(0, len(pairs[0][0]) - 1)]
    layer, rates = best_layer(model, pairs, vocabulary)
    assert len(rates) == len(cross_attentions(model)) == 2
    assert rates[layer] == max(rates)
    for number, rate in enumerate(rates):
        hits = [
            weights[row].argmax() == column
            for pair, weights in zip(pairs, align(model, pairs, number), strict=True)
            for row, column in kept_words(pair, vocabulary)
        ]
        assert rate == np.mean(hits)


def test_words_gather_the_weights_of_their_tokens(translator: Translator) -> None:
    (found,) = translator.translate(["ab cd é"], align=True)
    words = by_word(found)
    assert words.source == ["ab", "cd", "é", "</s>"]
    assert words.target[-1] == "</s>"
    assert words.weights.shape == (len(words.target), 4)
    assert words.weights.sum(1) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("whole", [False, True])
def test_a_text_is_translated_by_sentences_or_by_as_many_as_fit(
    translator: Translator, whole: bool
) -> None:
    sentence = "Abcdefgh abcdefgh."
    part = f"{sentence} {sentence}" if whole else sentence
    (found,) = translator.translate([" ".join([sentence] * 4)], align=True, whole=whole)
    (alone,) = translator.translate([part], align=True, whole=whole)
    assert found.target == " ".join([alone.target] * (2 if whole else 4))
    assert found.weights is not None
    assert alone.weights is not None
    rows, columns = alone.weights.shape
    assert found.weights.shape == tuple(len(side) for side in reversed(found.tokens))
    assert found.weights[:rows, :columns] == pytest.approx(alone.weights, abs=1e-6)
    assert found.weights[:rows, columns:].max() == 0.0


def test_a_long_sentence_is_refused(translator: Translator) -> None:
    with pytest.raises(TextError, match=r"text 2: has a word of 101 tokens; the model takes 39"):
        translator.translate(["a", "a" * 100])


def test_what_python_gets_wrong(translator: Translator) -> None:
    with pytest.raises(TextError, match="texts: got one text; needs a list of them"):
        translator.translate("abc")
    with pytest.raises(OptionError, match="beam: got 0; needs a whole number, at least 1"):
        translator.translate(["abc"], beam=0)
    with pytest.raises(OptionError, match=r"beam: got 2.5; needs a whole number, at least 1"):
        translator.translate(["abc"], beam=2.5)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r'there is no "nowhere"; needs "en-fr", a file or a'):
        Translator.load("nowhere")


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / MODEL).write_bytes(b"no model")
    with pytest.raises(FileError, match="is not a translation model of regard"):
        Translator.load(tmp_path)


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\nfrom regard import cli\nsys.argv = ['regard', 'translate', '--help']\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    print('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.endswith("False\n")
    assert all(name in ran.stdout for name in ("text", "train", "score", "compare"))


def test_a_text_beside_commands(run: Any, folder: Path, translator: Translator) -> None:
    ran = run("abcd", "--model", str(folder))
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == translator.translate(["abcd"])[0].target + "\n"
    assert run("--model", str(folder), "--", "train").out == (
        translator.translate(["train"])[0].target + "\n"
    )


def test_without_anything_it_helps(run: Any) -> None:
    ran = run()
    assert ran.code == 0
    assert "Usage:" in ran.out


def test_nothing_after_a_pipe_is_translated(run: Any) -> None:
    """With the packaged model, since nothing names another."""
    assert run(stdin=b"Save the file.\n").out.count("\n") == 1


def test_lines_of_standard_input_and_of_a_file(run: Any, folder: Path, tmp_path: Path) -> None:
    text = b"abc\n\nde\n"
    (tmp_path / "text").write_bytes(text)
    ran = run("-", "--model", str(folder), stdin=text)
    lines = ran.out.split("\n")
    assert len(lines) == 4
    assert (lines[1], lines[3]) == ("", "")
    assert lines[0]
    assert lines[2]
    assert run("--model", str(folder), stdin=text).out == ran.out
    assert run("--file", "text", "--model", str(folder)).out == ran.out
    assert run("--model", str(folder)).err.startswith("regard: text: needs TEXT, --file, or text")


def test_the_name_of_a_file_may_be_meant_as_its_text(
    run: Any, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "abc").touch()
    ran = run("abc", "--model", str(folder))
    assert ran.out.strip()
    assert ran.err == 'regard: the name "abc" is translated; its lines, by --file\n'


def test_a_text_too_long_for_a_name_is_translated(run: Any, folder: Path) -> None:
    assert run("a\u00e9 " * 70, "--model", str(folder)).code == 0


def test_a_mark_of_the_byte_order_is_no_text(run: Any, folder: Path, tmp_path: Path) -> None:
    text = b"\xef\xbb\xbfabc\n"
    (tmp_path / "text").write_bytes(text)
    ran = run("--file", "text", "--model", str(folder))
    assert run("-", "--model", str(folder), stdin=text).out == ran.out


def test_a_page_does_not_replace_its_text(run: Any, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("abc\n")
    ran = run("--file", "text", "--html", "./text", "--model", str(folder))
    assert ran.err == 'regard: html: "text" is the text itself; needs another file\n'
    assert (tmp_path / "text").read_text() == "abc\n"


def test_a_long_sentence_of_a_file_is_named_by_its_line(
    run: Any, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text(f"abc\n{'a' * 100}\n")
    ran = run("--file", "text", "--model", str(folder))
    assert ran.err.startswith('regard: "text": text 2: has a word of 101 tokens')


def test_a_translation_is_one_line_whatever_the_model_writes() -> None:
    found = Translation("a", "un\ndeux\x1b[31m\u2028trois é", ([], []), None, 0.0, True)
    assert cli_line(found) == "un\ufffddeux\ufffd[31m\ufffdtrois é"


def test_an_alignment_in_the_terminal_and_as_a_page(run: Any, folder: Path, tmp_path: Path) -> None:
    ran = run("ab <b> cd", "--align", "--html", "page.html", "--model", str(folder))
    assert (ran.code, ran.err) == (0, "")
    assert "the decoder's cross-attention in layer" in ran.out
    assert "%" in ran.out
    page = (tmp_path / "page.html").read_text()
    assert "&lt;b&gt;" in page
    assert "<b>cd" not in page
    assert "https://" not in page


def test_json_has_tokens_weights_and_score(run: Any, folder: Path) -> None:
    told = json.loads(run("abc", "--json", "--model", str(folder)).out)["translations"][0]
    assert told["source"] == "abc"
    assert len(told["weights"]) == len(told["tokens"]["target"])
    assert len(told["weights"][0]) == len(told["tokens"]["source"])
    assert told["score"] < 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((" ",), "text: is empty; needs at least one word"),
        (("abc", "--file", "x"), "text: needs either TEXT or --file, got both"),
        (("--file", "x"), '"x": cannot be read: No such file or directory'),
        (("-",), "text: standard input is not UTF-8"),
        (("abc", "--beam", "x"), "Invalid value for '--beam'"),
        (("abc", "--beam", "0"), "Invalid value for '--beam'"),
        (("caf\udcff",), "text: is not UTF-8"),
        (("train", "x", *LATER, "--threads", "0"), "Invalid value for '--threads'"),
        (("train", "x", *LATER, "--seed", "-1"), "seed: got -1; needs a whole number"),
        (("train", "x", *LATER, "--size", "0"), "size: got 0; needs a whole number"),
        (("compare", "x", *LATER, "--test", "x", "--steps", "0"), "steps: got 0; needs a whole"),
        (("abc", "--model", "nowhere"), 'model: there is no "nowhere"'),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], message: str, run: Any) -> None:
    ran = run(*arguments, stdin=b"\xff")
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err
    assert ran.err.count("\n") == 1


def test_training_scoring_and_what_they_refuse(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: Training) -> Path:
        raise KeyboardInterrupt

    pairs = reversals(200, 0)
    (tmp_path / "t.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in pairs))
    (tmp_path / "v.a").write_text("".join(f"{a}\n" for a, _ in pairs[:10]))
    (tmp_path / "v.b").write_text("".join(f"{b}\n" for _, b in pairs[:10]))
    (tmp_path / "short").write_text("a\n")
    held_out = ("--validation", "v.a", "--validation", "v.b")
    sizes = ("--vocabulary", str(PIECES), "--size", "16", "--heads", "2", "--inner", "32")
    options = (*held_out, *sizes, "--out", "run", "--tokens", "400", "--every", "5")
    ran = run("train", "t.tsv", *options, "--steps", "5")
    assert ran.code == 0
    assert ran.out == 'The model: "run/model.safetensors"\n'
    assert "step 5: loss" in ran.err
    again = run("train", "t.tsv", *options, "--steps", "5")
    assert (again.code, again.out) == (2, "")
    assert 'regard: "run": holds a training run; resume it' in again.err
    resumed = run("train", "t.tsv", *options, "--steps", "10", "--resume")
    assert resumed.code == 0
    assert 'regard: goes on from "run/step-5.safetensors"' in resumed.err
    anew = run("train", "t.tsv", *options[:-6], "--out", "new", "--steps", "1", "--resume")
    assert 'regard: "new": holds no checkpoint; training begins anew' in anew.err
    uneven = run("train", "v.a", "short", *options)
    assert '"v.a" has 10 lines and "short" 1; needs a line for a line' in uneven.err
    monkeypatch.setattr(Training, "run", interrupted)
    stopped = run("train", "t.tsv", *options, "--steps", "20", "--resume")
    assert stopped.code == 130
    assert stopped.err.endswith('--resume goes on from "run/step-10.safetensors"\n')
    scored = run("score", "v.a", "v.b", "--model", "run", "--beam", "2")
    assert scored.out.startswith("BLEU ")
    assert "10 pairs, beam 2" in scored.out
    numbers = json.loads(run("score", "v.a", "v.b", "--model", "run", "--json").out)
    assert numbers["bleu"]["signature"].startswith("nrefs:1")


def test_three_kinds_are_compared(run: Any, tmp_path: Path) -> None:
    pairs = [(" ".join(a), " ".join(b)) for a, b in reversals(120, 0, longest=14)]
    (tmp_path / "t").write_text("".join(f"{a}\t{b}\n" for a, b in pairs))
    sets = ("--validation", "t", "--test", "t")
    # Letters after spaces are pieces of their own: the most that the text allows is not needed.
    options = ("--vocabulary", "272", "--size", "16", "--steps", "3", "--every", "3", "--beam", "1")
    ran = run("compare", "t", *sets, "--out", "found", *options)
    assert ran.code == 0, ran.err
    assert "| words | pairs | recurrent, one fixed summary" in ran.out
    assert (tmp_path / "found" / "comparison.md").read_text() in ran.out
    told = json.loads((tmp_path / "found" / "comparison.json").read_text())
    assert {line["kind"] for line in told["lines"]} == {"fixed", "additive", "transformer"}
    assert told["verdict"] in ran.out
    assert all(of["steps"] == 3 and of["speed"] > 0 for of in told["trained"].values())
    drawing = (tmp_path / "found" / "comparison.svg").read_text()
    assert all(name in drawing for name in KINDS.values())
    pages = sorted(path.name for path in (tmp_path / "found").glob("*.html"))
    assert pages == ["alignments-additive.html", "alignments-transformer.html"]


def test_a_long_test_sentence_is_refused_before_a_comparison_trains(
    run: Any, tmp_path: Path
) -> None:
    (tmp_path / "t").write_text("".join(f"{a}\t{b}\n" for a, b in reversals(120, 0)))
    (tmp_path / "long").write_text(f"a\ta\n{'a' * 300}\ta\n")
    options = ("--validation", "t", "--vocabulary", str(PIECES), "--size", "16", "--steps", "3")
    ran = run("compare", "t", "--test", "long", "--out", "found", *options)
    assert "text 2 of the test set: has a word of 301 tokens; the model takes 255" in ran.err
    assert not list((tmp_path / "found").rglob("*.safetensors"))


def test_the_public_names() -> None:
    assert regard.translation.__all__ == ["Translation", "Translator"]
    assert END == 3
