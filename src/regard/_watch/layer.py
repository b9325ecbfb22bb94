"""One attention of a run, as it is looked at afterwards."""

from dataclasses import dataclass

from regard._errors import ModelError
from regard._observation import Observation
from regard._weights import Weights


@dataclass(frozen=True, eq=False)
class Layer:
    """One attention of the run: all its queries, of every forward pass, against all its keys.

    Attributes:
        number: its place in the order in which the model's attentions first ran, from 0.
        name: the module's, as `model.named_modules()` gives it; a module that runs more than once
            in a pass (weights shared among layers) has "#2", "#3", ... from its second call on.
        heads: which of the model's heads are held.
        queries, keys: the positions of rows and columns. Padding has positions too; of a run that
            began with a filled cache the first is not 0.
        sequence: whose positions the queries are: "input" for the tokens that the model reads,
            "decoder" for those of an encoder-decoder's decoder, "other" for what has no tokens.
        cross: whether the keys are another sequence's, as where a decoder attends to an encoder.
        observation: what was asked for, and the lse.
    """

    number: int
    name: str
    heads: tuple[int, ...]
    queries: range
    keys: range
    sequence: str
    cross: bool
    observation: Observation
    kept: Weights | None

    @property
    def weights(self) -> Weights:
        """(batch, heads, L, S), lazy; rows of padded queries are zero.

        Raises:
            ModelError: the run kept statistics only.
        """
        if self.kept is None:
            raise ModelError(
                f"weights: {self.name} kept statistics only; needs "
                'regard.watch(..., keep="weights")'
            )
        return self.kept

    def __repr__(self) -> str:
        size = f"{len(self.heads)} heads, {len(self.queries)} x {len(self.keys)}"
        return f"Layer({self.number}, {self.name}: {size})"
