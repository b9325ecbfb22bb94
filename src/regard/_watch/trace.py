"""What was seen of one run of a model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import Any

from regard._errors import LayerError, ModelError, OptionError, TextError
from regard._observation import Observation
from regard._watch.words import Word, words
from regard._weights import Weights


@dataclass(frozen=True, eq=False)
class Layer:
    """One attention of the run.

    Attributes:
        name: the module's, as `model.named_modules()` gives it; a module that ran more than once
            (weights shared among layers) has "#2", "#3", ... added from its second call on.
        weights: (batch, heads, L, S), lazy; rows of padded queries are zero.
        observation: what was asked for, and the lse.
    """

    name: str
    weights: Weights
    observation: Observation


class Trace(Sequence[Layer]):
    """The attentions of one forward pass, in the order in which they ran.

    `trace[3]`, `trace[-1]` and `trace["model.layers.3.self_attn"]` give a `Layer`.

    Attributes:
        token_ids: (batch, L), what the model was called with; None for other inputs.
        attention_mask: (batch, positions), likewise.
    """

    def __init__(self, tokenizer: Any = None) -> None:
        self.token_ids: Any = None
        self.attention_mask: Any = None
        self._tokenizer = tokenizer
        self._layers: dict[str, Layer] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self._layers.values())

    def __getitem__(self, which: Any) -> Any:
        """A layer by number or name.

        Raises:
            LayerError: there is none such; the message says which there are.
            ModelError: no forward pass ran.
        """
        if not self._layers:
            raise ModelError("trace: is empty; call the model inside `with regard.watch(...)`")
        if isinstance(which, str):
            if which not in self._layers:
                raise LayerError(f'layer: got "{which}"; the names are {", ".join(self.names)}')
            return self._layers[which]
        count = len(self)
        if not -count <= index(which) < count:
            raise LayerError(f"layer: got {which}; needs a number from {-count} to {count - 1}")
        return self._layers[self.names[which]]

    def add(self, layer: Layer) -> None:
        """Appends a layer; a name that is there already gets the number of the call."""
        calls = sum(name.partition("#")[0] == layer.name for name in self._layers)
        name = f"{layer.name}#{calls + 1}" if calls else layer.name
        self._layers[name] = replace(layer, name=name)

    def __repr__(self) -> str:
        return f"Trace({len(self)} layers)"

    def tokens(self, entry: int = 0) -> list[str]:
        """The tokens of a batch entry as the tokenizer writes them, padding included.

        Raises:
            TextError: no tokenizer was given, or the model was not called with tokens.
            OptionError: there is no such batch entry.
        """
        found: list[str] = self._tokenizer_or_error().convert_ids_to_tokens(self._ids(entry))
        return found

    def words(self, entry: int = 0, text: str | None = None) -> list[Word]:
        """The words of a batch entry; start and stop count positions, padding included.

        Args:
            entry: of the batch.
            text: what the tokens were made from; with it words appear as they were written.

        Raises:
            As `tokens`; TextError also if the text has other tokens.
        """
        return words(self._ids(entry), self._tokenizer_or_error(), text)

    def _tokenizer_or_error(self) -> Any:
        if self._tokenizer is None:
            raise TextError("tokenizer: none was given; needs regard.watch(model, tokenizer=...)")
        return self._tokenizer

    def _ids(self, entry: int) -> list[int]:
        if self.token_ids is None:
            raise TextError("trace: holds no tokens; the model was not called with input_ids")
        count = len(self.token_ids)
        if not -count <= entry < count:
            raise OptionError(f"entry: got {entry}; needs a number from {-count} to {count - 1}")
        ids: list[int] = self.token_ids[entry].tolist()
        return ids
