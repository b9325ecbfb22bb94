"""The command line: what it prints, writes and refuses, and how."""

import io
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from tiny_models import inputs, tiny
from transformers import LlamaModel, ViTConfig, ViTModel

import regard
from regard import cli

pytestmark = pytest.mark.once

TEXT = "the cat sat on the mat because it was warm"  # whose words the model knows


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def look(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Any:
    """Runs `regard look` in an empty folder; with the small model unless told."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, stdin: bytes = b"") -> Ran:
        model = () if "--model" in arguments else ("--model", str(folder))
        return main(["look", *arguments, *model], stdin, monkeypatch, capsys)

    return run


@pytest.fixture
def opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Runs `regard look --trace` in the same folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Ran:
        return main(["look", "--trace", *arguments], b"", monkeypatch, capsys)

    return run


def main(
    arguments: list[str],
    stdin: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Ran:
    monkeypatch.setattr(sys, "argv", ["regard", *arguments])
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stdin)))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    code = ended.value.code
    return Ran(code if isinstance(code, int) else 0, *capsys.readouterr())


def test_it_prints_and_writes_the_page(look: Any, tmp_path: Path) -> None:
    ran = look(TEXT, "--word", "it")
    assert (ran.code, ran.err) == (0, "")
    assert "tiny   mean of 3 layers x 4 heads, causal, 10 tokens" in ran.out
    assert "“it” looks at" in ran.out
    assert "Cannot be seen: “was warm”, as a causal model only looks back." in ran.out
    assert ran.out.endswith("\n  Page: regard-look.html\n")
    assert [entry.name for entry in tmp_path.iterdir()] == ["regard-look.html"]
    assert "last word" not in ran.out


def test_without_a_word_the_last_is_taken_and_told(look: Any) -> None:
    ran = look(TEXT)
    assert "“warm” looks at" in ran.out
    assert "This is the last word; choose another with --word." in ran.out


def test_layers_and_heads(look: Any, tmp_path: Path) -> None:
    assert "mean of 2 layers x 4 heads" in look(TEXT, "--layer", "0", "--layer", "2").out
    assert "mean of the 4 heads of layer 1" in look(TEXT, "--layer", "1").out
    assert "layer 1, head 3" in look(TEXT, "--layer", "1", "--head", "3", "--html", "p.html").out
    assert '"open":{"word":9,"layer":1,"head":3}' in (tmp_path / "p.html").read_text()


def test_json_is_numbers_alone(look: Any, tmp_path: Path) -> None:
    ran = look(TEXT, "--word", "the#2", "--json", "--layer", "1", "--head", "2")
    told = json.loads(ran.out)
    assert (ran.code, ran.err) == (0, "")
    assert told["words"][told["word"]] == {"text": "the", "start": 4, "stop": 5, "special": False}
    assert told["layers"] == [{"layer": 1, "heads": [2]}]
    assert sum(row["weight"] for row in told["looks_at"]) == pytest.approx(1.0, abs=1e-5)
    assert not list(tmp_path.iterdir())
    assert look(TEXT, "--json", "--html", "p.html").out.startswith("{")
    assert (tmp_path / "p.html").exists()


def test_what_the_model_adds_is_looked_at(look: Any, tmp_path: Path) -> None:
    ran = look("the cat sat", "--generate", "4", "--word", "sat", "--save", "run.safetensors")
    assert (ran.code, ran.err) == (0, "")
    assert "causal, 7 tokens, 4 of them generated" in ran.out
    assert "the cat sat ▸ " in ran.out
    assert "▸ what follows was generated." in ran.out
    assert ran.out.endswith("\n  Page: regard-look.html\n  Trace: run.safetensors\n")
    assert '"generated":3' in (tmp_path / "regard-look.html").read_text()


def test_without_a_word_the_first_that_was_added_is_taken(look: Any, opened: Any) -> None:
    ran = look("the cat sat", "--generate", "4", "--save", "run.safetensors")
    added = ran.out.split("▸ ")[1].split()[0]
    for out in (ran.out, opened("run.safetensors").out):
        assert re.search(rf"“{re.escape(added)}(#\d)?” looks at", out)
        assert "This is the first word that the model added; choose another" in out


def test_a_kept_run_shows_the_same(look: Any, opened: Any) -> None:
    kept = look(TEXT, "--word", "it", "--json", "--save", "run.safetensors").out
    assert opened("run.safetensors", "--word", "it", "--json") == (0, kept, "")


class TestTrace:
    """A saved run, wherever it comes from."""

    @staticmethod
    def save(model: Any, given: dict[str, Any], **options: Any) -> None:
        with regard.watch(model, **options) as trace, torch.no_grad():
            model(**given)
        trace.save("run.st")

    def test_that_of_a_text_that_was_cut(self, look: Any, opened: Any, tmp_path: Path) -> None:
        (tmp_path / "long.txt").write_text(f"{TEXT}\n" * 9)
        look("--file", "long.txt", "--generate", "2", "--save", "run.st")
        assert "The beginning of the text: 30 of its 90 tokens." in opened("run.st").out

    def test_of_some_layers(self, opened: Any) -> None:
        self.save(tiny("llama"), inputs(9), layers=[1, 2], heads=[1, 3])
        error = "regard: layer: got 0; of LlamaForCausalLM this run holds layers 1 and 2\n"
        assert opened("run.st", "--layer", "0").err.endswith(error)
        assert "mean of the 2 heads of layer 2" in opened("run.st", "--layer", "2").out

    def test_of_statistics_alone(self, opened: Any) -> None:
        self.save(tiny("llama"), inputs(9), keep="statistics")
        ran = opened("run.st")
        assert (ran.code, ran.out) == (2, "")
        assert ran.err.startswith('regard: trace: "run.st" holds statistics alone, and a look')
        assert "regard look TEXT --save FILE" in ran.err

    def test_of_pixels(self, opened: Any) -> None:
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        image = {"image_size": 32, "patch_size": 16, "intermediate_size": 32}
        model = ViTModel(ViTConfig(**sizes, **image)).eval()
        self.save(model, {"pixel_values": torch.randn(1, 3, 32, 32)})
        ran = opened("run.st", "--word", "3")
        assert ran.err == (
            'regard: trace: "run.st" tells no words; what is shown is named by its position\n'
        )
        assert "ViTModel   mean of 2 layers x 2 heads, bidirectional, 5 tokens" in ran.out
        assert "“3” looks at" in ran.out

    def test_without_a_tokenizer(self, opened: Any) -> None:
        self.save(tiny("llama"), inputs(9))
        ran = opened("run.st")
        assert "“8” looks at" in ran.out
        assert ran.err.endswith("regard: trace: holds 2 texts; this is the first\n")

    @pytest.mark.parametrize("generates", [False, True])
    def test_of_a_model_that_overflows(self, generates: bool, opened: Any, tmp_path: Path) -> None:
        model = tiny("llama")
        with torch.no_grad():
            model.model.layers[1].self_attn.q_proj.weight.fill_(1e30)
            model.model.layers[1].self_attn.k_proj.weight.fill_(1e30)
        if generates:
            with regard.watch(model) as trace:
                model.generate(**inputs(9), max_new_tokens=3, do_sample=False)
            trace.save("run.st")
        else:
            self.save(model, inputs(9))
        for options in ([], ["--json"], ["--layer", "0"]):
            ran = opened("run.st", *options)
            assert (ran.code, ran.out) == (2, ""), options
            assert "regard: model: weights of layer 1 are NaN" in ran.err
        assert [path.name for path in tmp_path.iterdir()] == ["run.st"]


def test_of_a_long_file_the_beginning_is_read(look: Any, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text(f"{TEXT}\n" * 9)
    assert "The beginning of the text: 32 of its 90 tokens." in look("--file", "long.txt").out
    ran = look("--file", "long.txt", "--json")
    assert len(json.loads(ran.out)["tokens"]) == 32
    assert (
        len(json.loads(look("--file", "long.txt", "--generate", "2", "--json").out)["tokens"]) == 32
    )


def test_a_long_text_is_shown_as_a_whole(
    look: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "LONG", 20)
    (tmp_path / "long.txt").write_text(f"{TEXT}\n" * 9)
    ran = look("--file", "long.txt")
    assert (ran.code, ran.err) == (0, "")
    assert "The beginning of the text: 32 of its 90 tokens." in ran.out
    assert "The words that get most" in ran.out
    assert "Where the text looks" in (tmp_path / "regard-look.html").read_text()
    assert "“it#2” looks at" in look("--file", "long.txt", "--word", "it#2").out
    whole = json.loads(look("--file", "long.txt", "--json", "--layer", "1").out)
    assert [layer["layer"] for layer in whole["layers"]] == [1]


def test_text_from_a_file_and_from_standard_input(look: Any, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the mat was warm\n")
    for ran in (look("--file", "text.txt"), look("-", stdin=b"the mat was warm\r\n")):
        assert (ran.code, "causal, 4 tokens" in ran.out) == (0, True)


def test_layers_that_do_not_fit_are_told(look: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from regard.draw import page

    def budget(size: int) -> None:
        defaults = page.write.__kwdefaults__ | {"budget": size}
        monkeypatch.setattr(page.write, "__kwdefaults__", defaults)

    budget(2500)
    told = (
        r"\n  It holds 2 of 3 layers, those asked for before those that tell most: [01], 2\."
        r"\n  Its mean runs over all 3 layers\.\n$"
    )
    assert re.search(told, look(TEXT, "--layer", "2").out)
    budget(1000)
    told = (
        r"\n  It holds 1 of 3 layers, those that tell most: [012]\."
        r"\n  Its mean runs over these alone, not over all 3 layers, but for the word above over"
        r" all\.\n$"
    )
    assert re.search(told, look(TEXT).out)


MISTAKES = {
    "no text": ([], "text: needs either TEXT or --file"),
    "two texts": ([TEXT, "--file", "x"], "text: needs either TEXT or --file, got both"),
    "empty": (["  "], "text: is empty; needs at least one word"),
    "too long": (["cat " * 40], "text: has 40 tokens; tiny takes at most 32"),
    "no such word": ([TEXT, "--word", "dog"], 'word: "dog" is not in the text, whose words are: '),
    "no third": ([TEXT, "--word", "the#3"], 'word: got "the#3", but "the" occurs 2 times'),
    "layer": ([TEXT, "--layer", "3"], "layer: got 3; tiny has layers 0 to 2"),
    "head": (
        [TEXT, "--layer", "0", "--head", "4"],
        "head: got 4; each layer of tiny has heads 0 to 3",
    ),
    "head alone": (
        [TEXT, "--head", "1"],
        "head: needs the one layer that it is in, as --layer; got none",
    ),
    "no file": (["--file", "none.txt"], 'file: cannot read "none.txt": No such file or directory'),
    "a folder": (["--file", "."], 'file: cannot read ".": Is a directory'),
    "no model": ([TEXT, "--model", "./none"], 'model: there is no folder "./none"'),
    "no folder": (
        [TEXT, "--html", "a/b.html"],
        'html: cannot write "a/b.html": there is no folder',
    ),
    "html folder": ([TEXT, "--html", "."], 'html: cannot write ".": it is a folder'),
    "html -": ([TEXT, "--html", "-"], 'html: got "-"; needs the name of a file'),
    "html slash": ([TEXT, "--html", "page/"], 'html: got "page/"; needs the name of a file'),
    "save slash": ([TEXT, "--save", "run/"], 'save: got "run/"; needs the name of a file'),
    "trace slash": (["--trace", "run/"], 'trace: got "run/"; needs the name of a file'),
    "file -": (["--file", "-"], 'file: got "-"; needs the name of a file (standard input is read'),
    "save folder": ([TEXT, "--save", "."], 'save: cannot write ".": it is a folder'),
    "generates more": (
        [TEXT, "--generate", "32"],
        "generate: got 32; tiny takes at most 32 tokens",
    ),
    "no room": (
        ["cat " * 30, "--generate", "3"],
        "text: has 30 tokens; tiny takes at most 32, 3 of them generated",
    ),
    "two files in one": ([TEXT, "--save", "a", "--html", "a"], 'html: "a" is named for something'),
    "trace and text": (
        [TEXT, "--trace", "x"],
        "trace: holds a run that is over; got TEXT and model",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line(mistake: str, look: Any, tmp_path: Path) -> None:
    arguments, message = MISTAKES[mistake]
    ran = look(*arguments)
    assert ran.code == 2
    assert ran.err.startswith(f"regard: {message}")
    assert ran.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "mistake", ["too long", "no such word", "no third", "layer", "head", "no room"]
)
def test_mistakes_are_told_before_the_model_runs(
    mistake: str, look: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ran(*_: Any) -> None:
        raise AssertionError("the model ran")

    monkeypatch.setattr(LlamaModel, "forward", ran)
    arguments, message = MISTAKES[mistake]
    assert message in look(*arguments).err


def test_a_trace_that_is_none(opened: Any, tmp_path: Path) -> None:
    (tmp_path / "none.safetensors").write_bytes(b"no trace")
    ran = opened("none.safetensors")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert "none.safetensors" in ran.err


def test_a_model_that_does_not_generate(look: Any) -> None:
    ran = look(TEXT, "--model", "minilm", "--generate", "4")
    assert ran == (
        2,
        "",
        "regard: generate: all-MiniLM-L6-v2 does not generate text; needs a causal model\n",
    )


def test_a_file_that_is_no_text(look: Any, tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    assert look("--file", "bytes").err == 'regard: file: cannot read "bytes": it is not UTF-8\n'


def test_a_message_is_one_line_whatever_the_user_wrote(look: Any) -> None:
    ran = look(TEXT, "--word", "a\nb\x1b[31m")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "\x1b" not in ran.err


@pytest.mark.parametrize("missing", ["torch", "transformers", "jinja2"])
def test_a_missing_extra_is_named(missing: str, look: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any) -> None:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=f"{missing}.sub")

    monkeypatch.setattr(cli, "_run", gone)
    line = f"regard: look needs {missing}, which is not installed: pip install 'regard[look]'\n"
    assert look(TEXT) == (2, "", line)


def test_a_missing_module_of_ours_is_no_extra(look: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any) -> None:
        raise ModuleNotFoundError("No module named 'regard._gone'", name="regard._gone")

    monkeypatch.setattr(cli, "_run", gone)
    with pytest.raises(ModuleNotFoundError):
        look(TEXT)


def test_warnings_are_one_line(look: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import warnings

    import regard.hf

    load = regard.hf.load

    def warned(name: str) -> Any:
        warnings.simplefilter("default")
        warnings.warn("something\nwas missed", stacklevel=1)
        return load(name)

    monkeypatch.setattr(regard.hf, "load", warned)
    ran = look(TEXT)
    assert (ran.code, ran.err) == (0, "regard: something was missed\n")


def test_standard_input_that_is_no_text(look: Any) -> None:
    ran = look("-", stdin=b"caf\xe9 it was")
    assert (ran.code, ran.err) == (2, "regard: text: standard input is not UTF-8\n")
