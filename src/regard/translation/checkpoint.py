"""Models and checkpoints as safetensors: weights and vocabulary in one file, nothing executed.

A model's file has its weights in half precision. A checkpoint has them whole, with the optimizer's
state and how far the training was. There is no random state in it: every step draws from a seed of
its own (`train.seed_of`), so a resumed run draws what the uninterrupted one would have.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from regard._errors import FileError, ModelError
from regard._watch.files import replacing
from regard.translation import checks
from regard.translation.model import Config, TranslationModel
from regard.translation.vocabulary import Vocabulary

FORMAT = "regard translation 1"
MODEL, VOCABULARY, OPTIMIZER = "model.", "vocabulary", "optimizer."


@dataclass(frozen=True, eq=False)
class Saved:
    """What a file holds.

    Attributes:
        config: of the model.
        weights: by the names of `TranslationModel.state_dict`.
        vocabulary: of both languages.
        alignment: the cross-attention whose mean over heads is shown as the alignment, from 0.
        optimizer: its state, "<parameter>.<kind>"; empty unless it is a checkpoint.
        progress: how far the training was; empty unless it is a checkpoint.
    """

    config: Config
    weights: Mapping[str, Tensor]
    vocabulary: Vocabulary
    alignment: int
    optimizer: Mapping[str, Tensor]
    progress: Mapping[str, Any]

    def model(self) -> TranslationModel:
        """The model, ready to translate."""
        config, count = self.config, len(self.weights)
        greatest = max((n for x in self.weights.values() for n in x.shape), default=0)
        try:
            # A file may lie about its sizes, and a model be made that no memory holds.
            if max(config.encoder_layers, config.decoder_layers) > count:
                raise RuntimeError(f"there are {count} weights in all")
            if max(config.size, config.inner, config.pieces) > greatest:
                raise RuntimeError(f"the greatest dimension is {greatest}")
            made = TranslationModel(config)
            made.load_state_dict({name: x.float() for name, x in self.weights.items()})
        except RuntimeError as error:
            raise FileError(f"weights: do not fit the file's own configuration: {error}") from error
        return made.eval()


def write(
    path: Path,
    config: Config,
    weights: Mapping[str, Tensor],
    vocabulary: Vocabulary,
    *,
    alignment: int = 0,
    optimizer: Mapping[str, Tensor] | None = None,
    progress: Mapping[str, Any] | None = None,
) -> None:
    """Write a model, or with an optimizer a checkpoint, whole or not at all.

    Raises:
        FileError: it cannot be written.
        ModelError: weights of a model are NaN, or too great for half precision.
    """
    tensors = {f"{OPTIMIZER}{name}": x for name, x in (optimizer or {}).items()}
    for name, x in weights.items():
        tensors[MODEL + name] = x if optimizer else _halved(name, x)
    tensors[VOCABULARY] = torch.frombuffer(bytearray(vocabulary.serialized), dtype=torch.uint8)
    told = {"format": FORMAT, "config": json.dumps(asdict(config)), "alignment": str(alignment)}
    if progress:
        told["progress"] = json.dumps(progress)
    with replacing(path) as stream:
        stream.write(save({name: x.contiguous() for name, x in tensors.items()}, told))


def read(path: Path) -> Saved:
    """What `write` wrote.

    Raises:
        FileError: the file cannot be read, or is something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
            if told.get("format") != FORMAT:
                raise FileError(f'"{path}": is not a translation model of regard')
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        config = Config(**json.loads(told["config"]))
        alignment, progress = int(told["alignment"]), json.loads(told.get("progress", "{}"))
        checks.whole("alignment", alignment, 0)
        vocabulary = Vocabulary(tensors.pop(VOCABULARY).numpy().tobytes())
    except FileError:
        raise
    except OSError as error:
        raise FileError(f'"{path}": cannot be read: {error.strerror or error}') from error
    except (SafetensorError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise FileError(f'"{path}": is not a translation model of regard: {error}') from error
    if len(vocabulary) != config.pieces:
        raise FileError(f'"{path}": its vocabulary is of another model')
    weights, optimizer = (_below(tensors, prefix) for prefix in (MODEL, OPTIMIZER))
    return Saved(config, weights, vocabulary, alignment, optimizer, progress)


def _halved(name: str, x: Tensor) -> Tensor:
    half = x.half()
    if not bool(half.isfinite().all()):
        raise ModelError(f"weights: some of {name} are NaN, or beyond half precision's 65,504")
    return half


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}


def checkpoints(folder: Path) -> list[Path]:
    """Of a training run, the oldest first."""
    found = [p for p in folder.glob("step-*.safetensors") if re.fullmatch(r"step-\d+", p.stem)]
    return sorted(found, key=lambda path: int(path.stem.removeprefix("step-")))


def name(step: int) -> str:
    return f"step-{step}.safetensors"


def average(paths: list[Path]) -> dict[str, Tensor]:
    """The mean of the weights of several checkpoints of one run.

    Raises:
        FileError: as `read`.
        ModelError: they are of different models.
    """
    total: dict[str, Tensor] = {}
    for path in paths:
        weights = read(path).weights
        if total and {n: x.shape for n, x in weights.items()} != {
            n: x.shape for n, x in total.items()
        }:
            raise ModelError(f'"{path}": is a checkpoint of another model')
        total = {n: x.double() + total.get(n, 0.0) for n, x in weights.items()}
    return {n: (x / len(paths)).float() for n, x in total.items()}
