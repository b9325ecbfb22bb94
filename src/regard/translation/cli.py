"""`regard translate`: a thin face over the translator, its training and its measurements.

What a user got wrong is raised as an error of regard, which `regard.cli` tells in one line. torch
and the rest are imported by the commands, so that help is quick.
"""

import json
import os
import sys
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from regard._errors import ModelError, OptionError, TextError

if TYPE_CHECKING:
    from regard.translation.translator import Translation, Translator

TEXT = "text"  # the command that is meant where none is named
EXTRA = "pip install 'regard[translation]'"


class TextOrCommand(TyperGroup):
    """`regard translate "Some text."` beside `regard translate train ...`.

    What does not name a command is a text, or an option of the command that takes one. A text that
    is named like a command goes after "--".
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        args = args or ([TEXT] if _piped() else ["--help"])
        if args[0] not in (*self.commands, "--help"):
            args = [TEXT, *args]
        return list(super().parse_args(ctx, args))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            name = (error.name or "").partition(".")[0]
            if not name or name == "regard":
                raise
            raise ModelError(f"translate: needs {name}, which is not installed: {EXTRA}") from error


app = typer.Typer(
    cls=TextOrCommand,
    add_completion=False,
    rich_markup_mode=None,
    short_help="Translate, and see how words align; train translators, and compare them.",
    help="""Translate a text: regard translate "Press Shift+F1 to learn more." --align

    The options of this are listed by: regard translate text --help. What else there is has a
    command of its own.
    """,
)

Files = Annotated[
    list[Path],
    typer.Argument(metavar="FILES", help="Two line-aligned files, or one with tabs."),
]
ModelName = Annotated[
    str, typer.Option(metavar="MODEL", help="en-fr, or a file or folder that was trained.")
]
Beam = Annotated[
    int, typer.Option(min=1, metavar="N", help="Translations kept in the search; 1: greedy.")
]


@app.command(TEXT, short_help="Translate a text; the command's name may be left out.")
def text_(
    text: Annotated[str | None, typer.Argument(hidden=True, metavar="TEXT")] = None,
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Translate a file, line by line.")
    ] = None,
    model: ModelName = "en-fr",
    beam: Beam = 4,
    align: Annotated[
        bool, typer.Option("--align", help="Show which source words each word looked at.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the alignments as a page.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print tokens, weights and scores as JSON.")
    ] = False,
) -> None:
    """Translate a text, a line at a time; an empty line stays one.

    TEXT is what is translated; "-", or nothing after a pipe, stands for standard input.

    \b
    Examples:
      regard translate "Press Shift+F1 to learn more." --align
      regard translate --file manual.txt --model my-translator --beam 1
      man ls | regard translate
    """
    lines = _lines(text, file)
    if file is not None and html is not None and html.exists() and html.samefile(file):
        raise OptionError(f'html: "{html}" is the text itself; needs another file')
    translator = _load(model)
    if html is not None and translator.layer is None:
        raise OptionError("html: this model has no attention; needs one that has")
    weighed = align or html is not None or (as_json and translator.layer is not None)
    try:
        translations = translator.translate(lines, beam=beam, align=weighed)
    except TextError as error:
        raise TextError(f'"{file}": {error}' if file else str(error)) from error
    if html is not None:
        from regard.translation.show import write_page

        write_page(translations, html, _caption(translator))
    if as_json:
        told = [_numbers(translation) for translation in translations]
        print(json.dumps({"model": model, "translations": told}, ensure_ascii=False, indent=2))
    else:
        _print(translations, translator, align)
    for number, translation in enumerate(translations, 1):
        if not translation.finished:
            print(f"regard: line {number}: the translation ran into its limit", file=sys.stderr)


def _lines(text: str | None, file: Path | None) -> list[str]:
    from regard.translation.corpus import lines_of, read_lines

    if text is not None and file is not None:
        raise TextError("text: needs either TEXT or --file, got both")
    if file is not None:
        return read_lines(file)
    if text is None and not _piped():
        raise TextError("text: needs TEXT, --file, or text from a pipe")
    if text in (None, "-"):
        try:
            return lines_of(sys.stdin.buffer.read().decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise TextError("text: standard input is not UTF-8") from error
    try:
        given = str(text).encode(errors="surrogateescape").decode()
    except UnicodeError as error:
        raise TextError("text: is not UTF-8") from error
    if not given.strip():
        raise TextError("text: is empty; needs at least one word")
    if os.path.isfile(given):  # as a Path, too long a name is an error
        print(f'regard: the name "{given}" is translated; its lines, by --file', file=sys.stderr)
    return lines_of(given)


def _piped() -> bool:
    return sys.stdin is not None and not sys.stdin.isatty()


def _load(model: str) -> "Translator":
    from regard.translation.translator import Translator

    return Translator.load(model)


def _caption(translator: "Translator") -> str:
    from regard.translation.alignment import cross_attentions
    from regard.translation.show import told

    assert translator.layer is not None
    return told(translator.layer, len(cross_attentions(translator.model)))


def _print(translations: "list[Translation]", translator: "Translator", align: bool) -> None:
    if not align:
        for translation in translations:
            print(_line(translation))
        return
    from rich.console import Console

    from regard.translation.show import print_alignment

    console = Console(highlight=False, soft_wrap=True)
    for translation in translations:
        print(_line(translation))
        if translation.tokens[0]:
            print()
            print_alignment(translation, console)
            print()
    print(_caption(translator))


def _line(translation: "Translation") -> str:
    """The translation as one line: a model may write a line's end, or what a terminal obeys."""
    return "".join(
        "\ufffd" if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in translation.target
    )


def _numbers(translation: "Translation") -> dict[str, Any]:
    weights = translation.weights
    return {
        "source": translation.source,
        "target": translation.target,
        "tokens": {"source": translation.tokens[0], "target": translation.tokens[1]},
        "weights": None
        if weights is None
        else [[round(w, 5) for w in r] for r in weights.tolist()],
        "score": translation.score,
        "finished": translation.finished,
    }


@app.command(short_help="Train a translator on parallel text.")
def train(
    files: Files,
    validation: Annotated[
        list[Path],
        typer.Option(metavar="FILE", help="Held-out text; twice for two line-aligned files."),
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="For checkpoints and the model.")],
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="MODEL", help="Begin with a trained model's weights."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the folder's last checkpoint.")
    ] = False,
    kind: Annotated[
        str, typer.Option(metavar="KIND", help="transformer; recurrent: additive, or fixed.")
    ] = "transformer",
    vocabulary: Annotated[
        int, typer.Option(metavar="N", help="Pieces that both languages share.")
    ] = 6000,
    size: Annotated[int, typer.Option(metavar="N", help="Of the vectors.")] = 256,
    heads: Annotated[int, typer.Option(metavar="N", help="Of each attention.")] = 4,
    encoder_layers: Annotated[int, typer.Option(metavar="N")] = 3,
    decoder_layers: Annotated[int, typer.Option(metavar="N")] = 2,
    inner: Annotated[
        int, typer.Option(metavar="N", help="Of feed-forward layers, or of recurrent states.")
    ] = 768,
    dropout: Annotated[float, typer.Option(metavar="CHANCE")] = 0.1,
    length: Annotated[int, typer.Option(metavar="N", help="Tokens of a sentence, at most.")] = 256,
    tokens: Annotated[int, typer.Option(metavar="N", help="Of a batch, per process.")] = 4096,
    rate: Annotated[float, typer.Option(metavar="X", help="The greatest learning rate.")] = 1e-3,
    warmup: Annotated[int, typer.Option(metavar="STEPS", help="Until that rate.")] = 400,
    cooldown: Annotated[
        int, typer.Option(metavar="STEPS", help="Last steps, in which the rate falls to zero.")
    ] = 0,
    steps: Annotated[int, typer.Option(metavar="STEPS", help="When to end.")] = 10_000,
    minutes: Annotated[
        float | None, typer.Option(metavar="MINUTES", help="Of training, after which it ends.")
    ] = None,
    every: Annotated[
        int, typer.Option(metavar="STEPS", help="From a checkpoint and validation to the next.")
    ] = 500,
    patience: Annotated[
        int, typer.Option(metavar="N", help="End after so many validations without a better one.")
    ] = 0,
    keep: Annotated[
        int, typer.Option(metavar="N", help="Checkpoints, whose average is tried at the end.")
    ] = 5,
    smoothing: Annotated[float, typer.Option(metavar="SHARE", help="Of the labels.")] = 0.1,
    seed: Annotated[int, typer.Option(metavar="N")] = 0,
    precision: Annotated[str, typer.Option(metavar="DTYPE", help="float32 or bfloat16.")] = (
        "float32"
    ),
    processes: Annotated[
        int, typer.Option(metavar="N", help="That train together, a GPU each where there are some.")
    ] = 1,
    threads: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Of each process.  [default: PyTorch's]"),
    ] = None,
) -> None:
    """Train a translator, and write FOLDER/model.safetensors.

    Killed at any moment, it goes on with --resume from the last checkpoint, with the numbers that
    it would have had. Other --steps, --minutes, --cooldown, --rate, --warmup, --smoothing,
    --precision, --every, --patience and --keep may be given then, and hold from there on.

    \b
    Example:
      regard translate train train.en train.fr --validation validation.en \\
        --validation validation.fr --out my-translator
    """
    import torch

    from regard.translation.corpus import read_pairs
    from regard.translation.model import Config
    from regard.translation.progress import shown, stopped
    from regard.translation.start import begin
    from regard.translation.train import Settings, Training

    settings = Settings(
        tokens=tokens,
        rate=rate,
        warmup=warmup,
        cooldown=cooldown,
        steps=steps,
        minutes=minutes,
        every=every,
        patience=patience,
        keep=keep,
        smoothing=smoothing,
        seed=seed,
        precision=precision,
        processes=processes,
    )
    config = Config(
        kind, vocabulary, size, heads, encoder_layers, decoder_layers, inner, dropout, length
    )
    if threads is not None:
        torch.set_num_threads(threads)
    pairs, held_out = read_pairs(files), read_pairs(validation)
    begun = begin(out, pairs, config, start, resume)
    with shown(steps) as report:
        training = Training(out, pairs, held_out, begun, settings, report)
        first = training.fabric.is_global_zero
        if resume and first:
            where = f'goes on from "{begun.checkpoint}"'
            anew = f'"{out}": holds no checkpoint; training begins anew'
            print(f"regard: {where if begun.checkpoint else anew}", file=sys.stderr)
        report.told(training)
        try:
            path = training.run()
        except KeyboardInterrupt:
            if first:
                print(f"regard: {stopped(training)}", file=sys.stderr)
            raise
    if first:
        print(f'The model: "{path}"')


@app.command(short_help="BLEU and chrF of a model on a test set.")
def score(
    files: Files,
    model: ModelName = "en-fr",
    beam: Beam = 4,
    as_json: Annotated[bool, typer.Option("--json", help="Print numbers as JSON.")] = False,
) -> None:
    """Translate the source of a test set, and compare with its target by sacreBLEU."""
    from regard.translation.corpus import read_pairs
    from regard.translation.measure import measure

    found = measure(_load(model), read_pairs(files), beam)
    if as_json:
        print(json.dumps(found.numbers(), indent=2))
    else:
        print(found.text())


@app.command(short_help="Three kinds of translators on the same text, by length of sentence.")
def compare(
    files: Files,
    validation: Annotated[
        list[Path],
        typer.Option(metavar="FILE", help="Held-out text; twice for two line-aligned files."),
    ],
    test: Annotated[list[Path], typer.Option(metavar="FILE", help="Test text, likewise.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="For models and results.")],
    vocabulary: Annotated[
        int, typer.Option(metavar="N", help="Pieces that both languages share.")
    ] = 6000,
    size: Annotated[int, typer.Option(metavar="N", help="Of the vectors.")] = 256,
    steps: Annotated[int, typer.Option(metavar="STEPS", help="Of each model.")] = 10_000,
    minutes: Annotated[
        float | None, typer.Option(metavar="MINUTES", help="Of each model, at the most.")
    ] = None,
    tokens: Annotated[int, typer.Option(metavar="N", help="Of a batch.")] = 4096,
    rate: Annotated[float, typer.Option(metavar="X", help="The greatest learning rate.")] = 1e-3,
    cooldown: Annotated[
        int, typer.Option(metavar="STEPS", help="Last steps, in which the rate falls to zero.")
    ] = 0,
    every: Annotated[
        int, typer.Option(metavar="STEPS", help="From a checkpoint and validation to the next.")
    ] = 500,
    beam: Beam = 4,
    seed: Annotated[int, typer.Option(metavar="N")] = 0,
) -> None:
    """Train a recurrent model with one fixed summary of the source, one with additive attention,
    and a Transformer, all of the same size, and measure them on sentences of every length.

    Models that are there already are not trained again. Writes FOLDER/comparison.json,
    comparison.md, comparison.svg, and alignments of ten sentences.
    """
    from regard.translation.compare import compare as run
    from regard.translation.corpus import read_pairs
    from regard.translation.progress import shown
    from regard.translation.train import Settings

    settings = Settings(
        tokens=tokens,
        steps=steps,
        minutes=minutes,
        rate=rate,
        cooldown=cooldown,
        every=every,
        seed=seed,
    )
    sets = read_pairs(files), read_pairs(validation), read_pairs(test)
    print(run(out, sets, settings, vocabulary=vocabulary, size=size, beam=beam, shown=shown))
