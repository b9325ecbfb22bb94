"""Where a training begins: a vocabulary and weights, new, of a model, or of a checkpoint."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from regard._errors import FileError, ModelError, OptionError, TextError
from regard.translation import checkpoint
from regard.translation.batches import Tokens
from regard.translation.corpus import Pair
from regard.translation.model import Config
from regard.translation.translator import FILE, model_path
from regard.translation.vocabulary import Vocabulary, learn


def tokenized(pairs: Sequence[Pair], vocabulary: Vocabulary) -> list[Tokens]:
    return [(vocabulary.encode(source), vocabulary.encode(target)) for source, target in pairs]


def fingerprint(pairs: Sequence[Pair]) -> str:
    """Of a text, to tell it from another."""
    whole = hashlib.sha256()
    for pair in pairs:
        whole.update("\t".join(pair).encode() + b"\n")
    return whole.hexdigest()[:16]


def check_lengths(validation: Sequence[Tokens], length: int) -> None:
    for number, pair in enumerate(validation, 1):
        if not fits(pair, length):
            raise TextError(
                f"validation: pair {number} has {max(map(len, pair)) + 1} tokens; the model takes "
                f"{length}"
            )


def fits(pair: Tokens, length: int) -> bool:
    """Whether a model reads and writes both sides, each with its end."""
    return max(map(len, pair)) < length


@dataclass(frozen=True, eq=False)
class Start:
    """Where a training begins.

    Attributes:
        config: of the model.
        vocabulary: of both languages.
        weights: to begin with; None for random ones.
        checkpoint: to go on from, or None.
    """

    config: Config
    vocabulary: Vocabulary
    weights: Mapping[str, Tensor] | None = None
    checkpoint: Path | None = None


def begin(
    folder: Path,
    train: Sequence[Pair],
    config: Config,
    model: str | None = None,
    resume: bool = False,
) -> Start:
    """Where a training in a folder begins, which is made unless it is there.

    Args:
        train: sentence pairs, from which the vocabulary is learnt if there is none.
        model: whose weights and vocabulary to take: as `Translator.load`.
        resume: whether to go on from the folder's last checkpoint, if there is one.

    Raises:
        OptionError: the folder holds a model, or a run that is not to be resumed; or both a model
            and a run are to be gone on from.
        ModelError: model or checkpoint is of another configuration, or not there.
        FileError: a file cannot be read, or the folder not be made.
    """
    if resume and model is not None:
        raise OptionError("from: excludes resume, which goes on with the weights of a checkpoint")
    found = checkpoint.checkpoints(folder)
    if found and not resume:
        raise OptionError(f'"{folder}": holds a training run; resume it, or name another folder')
    if not found and (folder / FILE).exists():
        raise OptionError(
            f'"{folder}": holds a model without its training run, which would be replaced; name '
            "another folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f'"{folder}": cannot be made: {error.strerror}') from error
    if found:
        saved = _of_config(found[-1], config)
        if not saved.progress:
            raise ModelError(f'"{found[-1]}": is a model, not a checkpoint')
        return Start(config, saved.vocabulary, checkpoint=found[-1])
    if model is not None:
        saved = _of_config(model_path(model), config)
        return Start(config, saved.vocabulary, saved.weights)
    return Start(config, learn((side for pair in train for side in pair), config.pieces))


def _of_config(path: Path, config: Config) -> checkpoint.Saved:
    saved = checkpoint.read(path)
    for name, value in vars(config).items():
        if (got := getattr(saved.config, name)) != value:
            named = "vocabulary" if name == "pieces" else name
            raise ModelError(f'"{path}": is of another model: its {named} is {got}, not {value}')
    return saved
