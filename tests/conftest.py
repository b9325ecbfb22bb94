"""How every test runs: hypothesis profiles, and the instruction set in the report's head.

`make test` and `make test-deep` run the suite under each instruction set of the machine. Tests
that have nothing to do with the kernels are marked `once`, slow and thorough ones `deep`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from regard import _native

hypothesis.settings.register_profile("fast", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.register_profile("deep", deadline=None, max_examples=1000)
hypothesis.settings.load_profile("fast")


def pytest_report_header(config: pytest.Config) -> str:
    profile = config.getoption("--hypothesis-profile") or "fast"
    return f"regard: {_native.isa()} of {', '.join(_native.isas())}; hypothesis profile {profile}"


@pytest.fixture(scope="session")
def smollm2() -> tuple[Any, Any]:
    """SmolLM2-135M and its tokenizer: causal, grouped heads. Fails where it is not installed."""
    import regard.hf

    return regard.hf.load("smollm2")


@pytest.fixture(scope="session")
def minilm() -> tuple[Any, Any]:
    """MiniLM and its tokenizer: bidirectional."""
    import regard.hf

    return regard.hf.load("minilm")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For tiny models: more threads only wait for each other.

    And for equal bits: with several, the math library takes as many as are idle.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small causal model of 3 layers with 4 heads, that knows these words."""
    from tiny_models import tiny
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = "the cat sat on the mat because it was warm"
    path = tmp_path_factory.mktemp("models") / "tiny"
    vocabulary = {word: i for i, word in enumerate(["[UNK]", *dict.fromkeys(words.split())])}
    sizes = {"max_position_embeddings": 32, "vocab_size": len(vocabulary)}
    tiny("llama", **sizes).save_pretrained(path)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece()  # which puts blanks between the words
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    fast.save_pretrained(path)
    return path
