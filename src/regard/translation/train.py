"""Training a translator: resumable to the bit, on one process or several (Lightning Fabric)."""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn

from regard._errors import ModelError, OptionError
from regard._watch.files import replacing
from regard.translation import checkpoint, checks
from regard.translation.alignment import best_layer
from regard.translation.batches import Batch, Epochs, collate, groups
from regard.translation.corpus import Pair, read_lines
from regard.translation.model import TranslationModel
from regard.translation.scores import score
from regard.translation.search import search
from regard.translation.start import Start, check_lengths, fingerprint, fits, tokenized
from regard.translation.vocabulary import PAD

MODEL, LOG = "model.safetensors", "log.jsonl"
PRECISIONS: dict[str, Any] = {"float32": "32-true", "bfloat16": "bf16-mixed"}


@dataclass(frozen=True)
class Settings:
    """How to train.

    Attributes:
        tokens: of a batch, per process, padding included, on the longer side.
        rate: the greatest learning rate of Adam (Kingma and Ba 2015).
        warmup: steps in which the rate grows to that; then it falls with the root of the step.
        cooldown: last steps, in which it falls further, in a straight line to zero.
        steps: when to end.
        minutes: of training, validations left out and those before a resume included, after
            which it ends; None for no limit. The rate does not know of it.
        smoothing: of the labels (Szegedy et al. 2016).
        clip: the greatest norm of a gradient.
        every: steps from one checkpoint, and validation, to the next.
        patience: validations without a lower loss after which training ends; 0 for no such end.
        keep: checkpoints, whose average is tried at the end.
        seed: of weights, batches and dropout.
        precision: a name of PRECISIONS.
        processes: that train together.

    Raises:
        OptionError: one of them cannot be.
    """

    tokens: int = 4096
    rate: float = 1e-3
    warmup: int = 400
    cooldown: int = 0
    steps: int = 10_000
    minutes: float | None = None
    smoothing: float = 0.1
    clip: float = 1.0
    every: int = 500
    patience: int = 0
    keep: int = 5
    seed: int = 0
    precision: str = "float32"
    processes: int = 1

    def __post_init__(self) -> None:
        for name in ("tokens", "warmup", "steps", "every", "keep", "processes"):
            checks.whole(name, getattr(self, name), 1)
        for name in ("cooldown", "patience"):
            checks.whole(name, getattr(self, name), 0)
        checks.whole("seed", self.seed, 0, 2**32 - 1)  # `seed_of` makes 64 bits of it
        for name in ("rate", "clip"):
            checks.positive(name, getattr(self, name))
        if self.minutes is not None:
            checks.positive("minutes", self.minutes)
        checks.share("smoothing", self.smoothing)
        if self.precision not in PRECISIONS:
            named = " or ".join(PRECISIONS)
            raise OptionError(f"precision: got {self.precision!r}; needs {named}")

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, from 1 on."""
        root = min(step / self.warmup, math.sqrt(self.warmup / step))
        left = (self.steps - step + 1) / (self.cooldown + 1)
        return self.rate * root * min(1.0, max(0.0, left))


@dataclass(frozen=True)
class Report:
    """What is told of the training so far.

    Attributes:
        step: how many were made.
        loss: mean over the tokens since the last report, with smoothed labels, in nats.
        speed: target tokens per second.
        seconds: of training so far, validations left out, those before a resume included.
        validation: nats per token of the validation set; None between validations.
        bleu, chrf: of its greedy translations, likewise.
    """

    step: int
    loss: float
    speed: float
    seconds: float
    validation: float | None = None
    bleu: float | None = None
    chrf: float | None = None


class Objective(nn.Module):
    """A batch to the sum over its target tokens of the cross-entropy."""

    def __init__(self, model: TranslationModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, source: Tensor, target: Tensor, smoothing: float) -> Tensor:
        wanted = target[:, 1:]
        real = wanted != PAD
        states = self.model(source, target[:, :-1])[real]  # padding needs no logits
        return nn.functional.cross_entropy(
            self.model.logits(states).float(),
            wanted[real],
            reduction="sum",
            label_smoothing=smoothing,
        )


class Training:
    """One run, in a folder of its own.

    Args:
        folder: for checkpoints, the log and, in the end, the model.
        train, validation: sentence pairs.
        start: where to begin.
        settings: how to train.
        report: called every few steps and after each validation.

    Attributes:
        left_out: training pairs that are longer than the model takes.

    Raises:
        TextError: a validation pair is longer than the model takes.
        OptionError: a setting or configuration that cannot be.
    """

    REPORTED = 20  # steps between two reports

    def __init__(
        self,
        folder: Path,
        train: Sequence[Pair],
        validation: Sequence[Pair],
        start: Start,
        settings: Settings,
        report: Callable[[Report], None] = lambda _: None,
    ) -> None:
        self.folder, self.settings, self.report, self.start = folder, settings, report, start
        self.vocabulary, self.config = start.vocabulary, start.config
        self.references = [target for _, target in validation]
        self.validation = tokenized(validation, self.vocabulary)
        check_lengths(self.validation, self.config.length)
        pairs = [p for p in tokenized(train, self.vocabulary) if fits(p, self.config.length)]
        self.left_out = len(train) - len(pairs)
        self.epochs = Epochs(pairs, settings.tokens, settings.seed)
        self.data = fingerprint(train), fingerprint(validation)
        self.fabric = Fabric(
            accelerator="auto" if torch.cuda.is_available() else "cpu",
            devices=settings.processes,
            # The one buffer is the table of positions, which each process grows as it needs.
            strategy=DDPStrategy(forward_sync_buffers=False) if settings.processes > 1 else "auto",
            precision=PRECISIONS[settings.precision],
        )
        self.step, self.epoch, self.place = 0, 0, 0
        self.best_loss, self.best, self.stale = float("inf"), (-1.0, -1.0), 0
        self.last = Report(0, 0.0, 0.0, 0.0)
        self.log: list[dict[str, Any]] = []
        torch.manual_seed(settings.seed)
        self.model = TranslationModel(self.config)
        if start.weights is not None:
            self.model.load_state_dict({name: x.float() for name, x in start.weights.items()})

    def run(self) -> Path:
        """Train to the end; where the model was written.

        Raises:
            OptionError: there is less than a batch for each process.
            ModelError: the checkpoint is of other data or settings, or the loss is not finite.
            FileError: a file cannot be read or written.
        """
        self.fabric.launch()
        self.optimizer: Any = torch.optim.Adam(
            self.model.parameters(), lr=0.0, betas=(0.9, 0.98), eps=1e-9, fused=True
        )
        if self.start.checkpoint is not None:
            self._resume(self.start.checkpoint)
        self.objective, self.optimizer = self.fabric.setup(Objective(self.model), self.optimizer)
        self._steps()
        return self._finish()

    def _steps(self) -> None:
        s, fabric = self.settings, self.fabric
        last = time.monotonic()
        losses, tokens = 0.0, 0
        share = fabric.global_rank, fabric.world_size
        if not self.epochs.pairs:
            raise OptionError(f"length: no pair has fewer than {self.config.length} tokens a side")
        if not self.epochs.batches(0, *share):
            raise OptionError("tokens: the text has less than a batch for each process")
        if self.step and self._ends(last):
            return
        batches = self.epochs.after(self.epoch, self.place, *share)
        for epoch, place, batch in batches:
            self.step, self.epoch, self.place = self.step + 1, epoch, place
            loss = self.learn(batch)
            losses, tokens = losses + loss, tokens + batch.predicted
            ends = self._ends(last)
            if ends or self.step % self.REPORTED == 0 or self.step % s.every == 0:
                took = time.monotonic() - last
                speed = tokens * fabric.world_size / took
                self.last = Report(self.step, losses / tokens, speed, self.last.seconds + took)
                self._tell(self.last)
                losses, tokens, last = 0.0, 0, time.monotonic()
            if ends or self.step % s.every == 0:
                self._validate()
                self._save()
                last = time.monotonic()
            if ends or (s.patience and self.stale >= s.patience):
                return

    def learn(self, batch: Batch) -> float:
        """One step; the summed loss of its batch."""
        s, fabric, objective = self.settings, self.fabric, self.objective
        objective.train()
        torch.manual_seed(seed_of(s.seed, self.step, fabric.global_rank))
        for group in self.optimizer.param_groups:
            group["lr"] = s.rate_at(self.step)
        batch = Batch(*(fabric.to_device(x) for x in (batch.source, batch.target)))
        loss = objective(batch.source, batch.target, s.smoothing)
        if not bool(loss.isfinite()):
            raise ModelError(f"step {self.step}: the loss is {float(loss)}; needs a lower rate")
        fabric.backward(loss / batch.predicted)
        norm: Any = fabric.clip_gradients(
            objective, self.optimizer, max_norm=s.clip, error_if_nonfinite=False
        )
        if not bool(norm.isfinite()):
            raise ModelError(
                f"step {self.step}: the gradient's norm is {float(norm)}; needs a lower rate"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())

    def _ends(self, last: float) -> bool:
        """Whether this step is the last, by the first process's clock; last: of the last report."""
        s = self.settings
        seconds = self.last.seconds + time.monotonic() - last
        late = s.minutes is not None and seconds > 60 * s.minutes
        return self.step >= s.steps or bool(self.fabric.broadcast(late))

    def _validate(self) -> None:
        loss, bleu, chrf = self.fabric.broadcast(self._measured())
        if not math.isfinite(loss):  # nothing is saved of it, so that a resumed run can go on
            raise ModelError(f"step {self.step}: the validation loss is {loss}; needs a lower rate")
        self.stale = 0 if loss < self.best_loss else self.stale + 1
        self.best_loss = min(loss, self.best_loss)
        if (bleu, chrf) > self.best:
            self.best = bleu, chrf
            self._write_model()
        told = replace(self.last, step=self.step, validation=loss, bleu=bleu, chrf=chrf)
        self._tell(told)

    def _measured(self) -> tuple[float, float, float]:
        """Validation loss, BLEU and chrF, by the first process."""
        if not self.fabric.is_global_zero:
            return 0.0, 0.0, 0.0
        self.model.eval()
        translations = [""] * len(self.validation)
        loss, tokens = 0.0, 0
        objective = Objective(self.model)
        with torch.inference_mode():
            for places in self._validation_batches():
                batch = collate([self.validation[i] for i in places])
                source, target = map(self.fabric.to_device, (batch.source, batch.target))
                loss += float(objective(source, target, 0.0))
                if not math.isfinite(loss):
                    return loss, 0.0, 0.0
                tokens += batch.predicted
                for place, found in zip(places, search(self.model, source), strict=True):
                    translations[place] = self.vocabulary.decode(found.tokens)
        bleu, chrf = score(translations, self.references)
        return loss / tokens, bleu.value, chrf.value

    def _validation_batches(self) -> list[list[int]]:
        lengths = [(len(source) + 1, len(target) + 1) for source, target in self.validation]
        return groups(lengths, self.settings.tokens, range(len(lengths)))

    def _tell(self, report: Report) -> None:
        if not self.fabric.is_global_zero:
            return
        self.log.append({name: x for name, x in vars(report).items() if x is not None})
        self.report(report)

    def _write_model(self) -> None:
        if not self.fabric.is_global_zero:
            return
        best, _ = best_layer(self.model, self.validation, self.vocabulary)
        checkpoint.write(
            self.folder / MODEL,
            self.config,
            self.model.state_dict(),
            self.vocabulary,
            alignment=best,
        )

    def _save(self) -> None:
        """The log and a checkpoint; then the oldest checkpoint goes.

        The log comes first: what it tells of steps after a checkpoint, a resumed run leaves out.
        """
        if not self.fabric.is_global_zero:
            return
        lines = "".join(json.dumps(entry) + "\n" for entry in self.log)
        with replacing(self.folder / LOG) as stream:
            stream.write(lines.encode())
        names = [name for name, _ in self.model.named_parameters()]
        state = self.optimizer.state_dict()["state"]
        optimizer = {f"{names[i]}.{k}": x for i, held in state.items() for k, x in held.items()}
        checkpoint.write(
            self.folder / checkpoint.name(self.step),
            self.config,
            self.model.state_dict(),
            self.vocabulary,
            optimizer=optimizer,
            progress=self._progress(),
        )
        for old in checkpoint.checkpoints(self.folder)[: -self.settings.keep]:
            old.unlink()

    def _progress(self) -> dict[str, Any]:
        s = self.settings
        text, validation = self.data
        order = {
            "text": text,
            "tokens": s.tokens,
            "seed": s.seed,
            "processes": s.processes,
            "validation": validation,  # whose best scores are kept
        }
        place = {
            "step": self.step,
            "epoch": self.epoch,
            "place": self.place,
            "seconds": self.last.seconds,
        }
        best = {"loss": self.best_loss, "scores": self.best, "stale": self.stale}
        return {"order": order, "place": place, "best": best}

    def _resume(self, path: Path) -> None:
        """Go on where a checkpoint was written."""
        saved = checkpoint.read(path)
        for key, value in self._progress()["order"].items():
            if (got := saved.progress["order"].get(key)) != value:
                raise ModelError(
                    f'"{path}": was trained with {key} {got}, not {value}; needs the same'
                )
        self.model.load_state_dict(dict(saved.weights))
        names = [name for name, _ in self.model.named_parameters()]
        state: dict[int, dict[str, Tensor]] = {i: {} for i in range(len(names))}
        for key, x in saved.optimizer.items():
            name, _, kind = key.rpartition(".")
            state[names.index(name)][kind] = x
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
        place, best = saved.progress["place"], saved.progress["best"]
        self.step, self.epoch, self.place = place["step"], place["epoch"], place["place"]
        self.best_loss, self.best, self.stale = best["loss"], tuple(best["scores"]), best["stale"]
        path = self.folder / LOG
        entries = map(json.loads, read_lines(path) if path.exists() else [])
        self.log = [entry for entry in entries if entry["step"] <= self.step]
        self.last = replace(self.last, step=self.step, seconds=place["seconds"])

    def _finish(self) -> Path:
        """The best model by BLEU: one of those validated, or the average of the last."""
        found = checkpoint.checkpoints(self.folder)
        if len(found) > 1 and self.fabric.is_global_zero:
            self.model.load_state_dict(checkpoint.average(found))
            _, *scores = self._measured()
            if tuple(scores) > self.best:
                self._write_model()
        self.fabric.barrier()
        return self.folder / MODEL


def seed_of(seed: int, step: int, process: int) -> int:
    """What a process draws from in one step, so that no random state needs to be kept."""
    return (seed * 1_000_003 + step) * 1009 + process
