"""Training a translator: it learns, and a run that was killed goes on as if it had not been."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from translation_toys import PIECES, SHORT, TINY, reversals

from regard import FileError, ModelError, OptionError, TextError
from regard.translation import Translator, checkpoint
from regard.translation.batches import Epochs, groups
from regard.translation.model import Config
from regard.translation.start import begin
from regard.translation.train import LOG, MODEL, Report, Settings, Training

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("one_thread")]

TRAIN, VALIDATION = reversals(300, 0), reversals(20, 1)


def train(
    folder: Path,
    settings: Settings = SHORT,
    config: Config = TINY,
    *,
    resume: bool = False,
    model: str | None = None,
    report: Callable[[Report], None] = lambda _: None,
) -> Path:
    start = begin(folder, TRAIN, config, model, resume)
    return Training(folder, TRAIN, VALIDATION, start, settings, report).run()


def log(folder: Path) -> list[dict[str, Any]]:
    """What was reported, without what the clock says."""
    entries = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    return [{k: v for k, v in entry.items() if k not in ("speed", "seconds")} for entry in entries]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(folder)
    return folder


def test_it_learns_to_reverse_what_it_has_not_seen(tmp_path: Path) -> None:
    pairs = reversals(3000, 0, longest=5)
    held_out = [pair for pair in reversals(900, 1, longest=5) if pair not in set(pairs)][:300]
    config = replace(TINY, size=64, inner=128, dropout=0.0)
    settings = Settings(
        tokens=500, rate=5e-3, warmup=60, cooldown=350, steps=900, every=450, smoothing=0.0
    )
    start = begin(tmp_path, pairs, config)
    Training(tmp_path, pairs, held_out[:50], start, settings).run()
    found = Translator.load(tmp_path).translate([source for source, _ in held_out], beam=1)
    right = [t.target == wanted for t, (_, wanted) in zip(found, held_out, strict=True)]
    assert sum(right) / len(right) >= 0.99


def test_a_resumed_run_has_the_losses_and_weights_of_an_uninterrupted_one(
    trained: Path, tmp_path: Path
) -> None:
    class KilledError(Exception):
        pass

    def kill(report: Report) -> None:
        if report.step == 16 and report.validation is None:
            raise KilledError

    with pytest.raises(KilledError):
        train(tmp_path, report=kill)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step-8.safetensors"]
    train(tmp_path, resume=True)
    assert log(tmp_path) == log(trained)
    for name in ("step-24.safetensors", MODEL):
        ours, theirs = checkpoint.read(tmp_path / name), checkpoint.read(trained / name)
        assert all(torch.equal(x, theirs.weights[n]) for n, x in ours.weights.items())


def test_a_run_that_was_killed_behind_its_first_checkpoint_is_resumed(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checkpoint.write

    def killed(path: Path, *args: Any, **options: Any) -> None:
        write(path, *args, **options)
        if path.stem == "step-8":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path)
    train(tmp_path, resume=True)
    assert log(tmp_path) == log(trained)


def test_a_run_without_its_log_is_resumed(trained: Path, tmp_path: Path) -> None:
    shutil.copy(trained / "step-16.safetensors", tmp_path)
    train(tmp_path, resume=True)
    assert log(tmp_path) == [entry for entry in log(trained) if entry["step"] > 16]


def test_a_killed_process_leaves_whole_files_and_is_resumed(tmp_path: Path) -> None:
    for name, pairs in (("text.tsv", TRAIN), ("held-out.tsv", VALIDATION)):
        (tmp_path / name).write_text("".join(f"{a}\t{b}\n" for a, b in pairs))
    code = "from regard.cli import main; main()"
    options = f"--out run --vocabulary {PIECES} --size 16 --heads 2 --inner 32 --every 1"
    command = f"translate train text.tsv --validation held-out.tsv --threads 1 {options}".split()
    process = subprocess.Popen(
        [sys.executable, "-c", code, *command], cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while len(checkpoint.checkpoints(tmp_path / "run")) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    found = checkpoint.checkpoints(tmp_path / "run")
    assert len(found) >= 3
    assert [checkpoint.read(path).progress["place"]["step"] for path in found] == [
        int(path.stem.removeprefix("step-")) for path in found
    ]
    config = Config(pieces=PIECES, size=16, heads=2, inner=32)
    last = checkpoint.read(found[-1]).progress["place"]["step"]
    start = begin(tmp_path / "run", TRAIN, config, resume=True)
    Training(tmp_path / "run", TRAIN, VALIDATION, start, Settings(every=1, steps=last + 1)).run()
    steps = [entry["step"] for entry in log(tmp_path / "run") if "validation" in entry]
    assert steps == list(range(1, last + 2))


@pytest.mark.deep
def test_two_processes_train_one_model_and_are_resumed(tmp_path: Path) -> None:
    text = tmp_path / "text.tsv"
    text.write_text("".join(f"{a}\t{b}\n" for a, b in reversals(300, 0, longest=20)))
    script = tmp_path / "script.py"  # Fabric starts the other process as this one was started
    script.write_text("from regard.cli import main\nmain()\n")
    options = f"--vocabulary {PIECES} --size 16 --heads 2 --inner 32 --every 4 --tokens 300"
    command = f"translate train text.tsv --validation text.tsv --processes 2 {options}".split()

    def run(out: str, *more: str) -> None:
        whole = [sys.executable, script, *command, "--threads", "1", "--out", out, *more]
        subprocess.run(whole, cwd=tmp_path, check=True, capture_output=True)

    run("whole", "--steps", "8")
    run("parts", "--steps", "4")
    run("parts", "--steps", "8", "--resume")
    assert log(tmp_path / "parts") == log(tmp_path / "whole")


def test_more_steps_go_on_from_where_the_run_ended(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    train(tmp_path / "run", replace(SHORT, steps=32, cooldown=8), resume=True)
    assert [entry["step"] for entry in log(tmp_path / "run")][-2:] == [32, 32]


def test_training_begins_with_another_models_weights(trained: Path, tmp_path: Path) -> None:
    first: list[Report] = []
    train(tmp_path, replace(SHORT, steps=8), model=str(trained), report=first.append)
    assert first[0].loss < log(trained)[0]["loss"] - 0.5


def test_a_checkpoint_is_safetensors_with_weights_optimizer_and_place(trained: Path) -> None:
    with safe_open(trained / "step-24.safetensors", framework="pt") as file:
        names = set(file.keys())
        progress = json.loads(file.metadata()["progress"])
    assert {"model.table.weight", "optimizer.table.weight.exp_avg", "vocabulary"} <= names
    assert progress["place"]["step"] == 24


def test_a_model_is_in_half_precision(trained: Path) -> None:
    with safe_open(trained / MODEL, framework="pt") as file:
        kinds = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert kinds.pop("vocabulary") == torch.uint8
    assert set(kinds.values()) == {torch.float16}


def test_training_ends_when_validation_does_not_improve(tmp_path: Path) -> None:
    told: list[Report] = []
    settings = replace(SHORT, rate=1e-9, steps=1000, every=1, patience=3)
    train(tmp_path, settings, report=told.append)
    assert told[-1].step < 40


def test_training_ends_after_some_minutes(tmp_path: Path) -> None:
    told: list[Report] = []
    train(tmp_path, replace(SHORT, steps=10**6, minutes=0.02), report=told.append)
    assert told[-1].validation is not None
    assert told[-1].step < 2000


def test_the_rate_rises_falls_with_the_root_and_cools_down() -> None:
    settings = Settings(rate=1.0, warmup=100, steps=1000, cooldown=99)
    rates = [settings.rate_at(step) for step in (50, 100, 400, 901, 1000)]
    assert rates == pytest.approx([0.5, 1.0, 0.5, (100 / 901) ** 0.5, 0.01 * 0.1**0.5])


@pytest.mark.parametrize("kind", ["additive", "fixed"])
def test_recurrent_kinds_train_and_translate(kind: str, tmp_path: Path) -> None:
    train(tmp_path, config=replace(TINY, kind=kind))
    assert log(tmp_path)[-1]["validation"] < log(tmp_path)[0]["loss"]
    translator = Translator.load(tmp_path)
    assert (translator.layer is None) == (kind == "fixed")


def test_batches_hold_no_more_tokens_than_they_may() -> None:
    lengths = [(len(a) + 1, len(b) + 1) for a, b in reversals(500, 2, longest=30)]
    found = groups(lengths, 64, range(500))
    assert sorted(place for batch in found for place in batch) == list(range(500))
    for batch in found:
        assert len(batch) * max(max(lengths[i]) for i in batch) <= 64 or len(batch) == 1


def test_processes_share_an_epoch_without_overlap() -> None:
    epochs = Epochs([([1] * n, [1] * n) for n in range(1, 50)], 60, seed=3)
    shares = [epochs.batches(5, process, 2) for process in (0, 1)]
    places = [place for share in shares for batch in share for place in batch]
    assert len(places) == len(set(places))
    assert len(shares[0]) == len(shares[1])
    assert epochs.batches(5) == epochs.batches(5) != epochs.batches(6)


def test_a_folder_with_a_run_is_not_overwritten(trained: Path) -> None:
    with pytest.raises(OptionError, match=r"holds a training run; resume it, or name another"):
        train(trained)


def test_a_checkpoint_of_another_model_is_refused(trained: Path) -> None:
    with pytest.raises(ModelError, match=r"is of another model: its size is 16, not 32"):
        train(trained, config=replace(TINY, size=32), resume=True)


def test_a_checkpoint_of_other_batches_is_refused(trained: Path) -> None:
    with pytest.raises(ModelError, match=r"was trained with tokens 200, not 300"):
        train(trained, replace(SHORT, tokens=300), resume=True)


def test_another_validation_set_is_refused(trained: Path) -> None:
    start = begin(trained, TRAIN, TINY, resume=True)
    training = Training(trained, TRAIN, VALIDATION[:10], start, replace(SHORT, steps=32))
    with pytest.raises(ModelError, match=r"was trained with validation \w+, not \w+; needs the"):
        training.run()


def test_a_finished_model_is_not_replaced(trained: Path, tmp_path: Path) -> None:
    shutil.copy(trained / MODEL, tmp_path)
    for resume in (False, True):
        with pytest.raises(OptionError, match=r"holds a model without its training run, which"):
            train(tmp_path, resume=resume)


def test_a_run_is_resumed_or_begun_from_a_model(trained: Path) -> None:
    with pytest.raises(OptionError, match=r"from: excludes resume"):
        train(trained, resume=True, model=str(trained))


def test_weights_that_are_nan_are_not_saved(tmp_path: Path) -> None:
    def spoil(report: Report) -> None:
        if report.step == 16 and report.validation is None:
            with torch.no_grad():
                training.model.table.weight[9, 0] = torch.nan

    training = Training(tmp_path, TRAIN, VALIDATION, begin(tmp_path, TRAIN, TINY), SHORT, spoil)
    with pytest.raises(ModelError, match=r"step 16: the validation loss is nan; needs a lower"):
        training.run()
    assert [path.stem for path in checkpoint.checkpoints(tmp_path)] == ["step-8"]


def test_a_gradient_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    training = Training(tmp_path, TRAIN, VALIDATION, begin(tmp_path, TRAIN, TINY), SHORT)
    training.model.table.weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(ModelError, match=r"step 1: the gradient's norm is (nan|inf); needs a"):
        training.run()


def test_a_model_is_no_checkpoint_of_a_run(trained: Path, tmp_path: Path) -> None:
    shutil.copy(trained / MODEL, tmp_path / "step-8.safetensors")
    with pytest.raises(ModelError, match=r"is a model, not a checkpoint"):
        train(tmp_path, resume=True)


def test_something_else_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "step-8.safetensors").write_bytes(b"not this")
    with pytest.raises(FileError, match=r"is not a translation model of regard"):
        train(tmp_path, resume=True)


def test_a_long_validation_pair_is_named(tmp_path: Path) -> None:
    long = [("a" * 50, "a")]
    start = begin(tmp_path, TRAIN, TINY)
    with pytest.raises(TextError, match=r"validation: pair 1 has 52 tokens; the model takes 40"):
        Training(tmp_path, TRAIN, long, start, SHORT)


def test_long_training_pairs_are_left_out_and_counted(tmp_path: Path) -> None:
    start = begin(tmp_path, TRAIN, TINY)
    training = Training(tmp_path, [*TRAIN, ("a" * 50, "a")], VALIDATION, start, SHORT)
    assert training.left_out == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps: got 0; needs a whole number, at least 1"),
        ({"cooldown": -1}, "cooldown: got -1; needs a whole number, at least 0"),
        ({"patience": -1}, "patience: got -1; needs a whole number, at least 0"),
        ({"seed": 2**63}, f"seed: got {2**63}; needs a whole number, at least 0 and at most"),
        ({"rate": -1.0}, "rate: got -1.0; needs a number above 0"),
        ({"rate": float("nan")}, "rate: got nan; needs a number above 0"),
        ({"clip": float("inf")}, "clip: got inf; needs a number above 0"),
        ({"minutes": -1.0}, "minutes: got -1.0; needs a number above 0"),
        ({"smoothing": 2.0}, "smoothing: got 2.0; needs 0 or more, and less than 1"),
        ({"smoothing": -0.5}, "smoothing: got -0.5; needs 0 or more, and less than 1"),
        ({"precision": "float8"}, "precision: got 'float8'; needs float32 or bfloat16"),
    ],
)
def test_settings_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        replace(SHORT, **change)
