"""The command line: a thin face over `regard.draw`.

What a user got wrong becomes one line on the error stream, and the exit code 2.
"""

import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from regard import __version__
from regard._errors import ModelError, OptionError, RegardError, TextError

try:
    import typer
except ModuleNotFoundError:
    print("regard: the command line needs typer: pip install 'regard[look]'", file=sys.stderr)
    raise SystemExit(2) from None

from regard.translation.cli import app as translate  # imports no torch

if TYPE_CHECKING:
    from regard.draw.look import Look
    from regard.draw.page import Kept

PAGE = Path("regard-look.html")
MODEL = "smollm2"
LONG = 1000  # tokens: a longer text is shown as a whole, unless a word is named
TITLES = {"smollm2": "SmolLM2-135M-Instruct", "minilm": "all-MiniLM-L6-v2"}
OURS = ("regard", "typer")  # a missing module of these is a bug, not an extra

# Typer keeps its parser's errors to itself; what they have in common is the base of this one.
UsageError: Any = typer.BadParameter.__base__

# Help without Rich's boxes: in them Typer shows the type of every option, even of a flag.
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
app.add_typer(translate, name="translate")


def main() -> None:
    """What the `regard` command runs."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        code = app(standalone_mode=False) or 0
        sys.stdout.flush()
        sys.exit(code)
    except RegardError as error:
        sys.exit(_say(str(error)))
    except OSError as error:  # of the output itself: files are opened where theirs is told
        _leave_output()
        sys.exit(1 if isinstance(error, BrokenPipeError) else _say(f"output: {error.strerror}"))
    except UsageError as error:
        command = error.ctx.command_path if error.ctx else "regard"
        sys.exit(_say(f"{error.format_message()} ({command} --help tells more)"))
    except typer.Abort:
        sys.exit(130)
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if not name or name in OURS:
            raise
        sys.exit(_say(f"look needs {name}, which is not installed: pip install 'regard[look]'"))


def _leave_output() -> None:
    """Nothing more is written to an output that failed, not even when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def regard(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Look at the attention of a model."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command(short_help="Print what a word attends to, and write a page to explore the rest.")
def look(
    text: Annotated[str | None, typer.Argument(hidden=True, metavar="TEXT")] = None,
    file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Read the text from a file; of a long one as much as fits."
        ),
    ] = None,
    trace: Annotated[
        str | None, typer.Option(metavar="FILE", help="Look at a saved run; no model is needed.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="smollm2, minilm, a folder, or a name on the Hugging Face hub.  "
            f"[default: {MODEL}]",
        ),
    ] = None,
    generate: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, help="Let the model add so many tokens, and look at all of it."
        ),
    ] = 0,
    word: Annotated[
        str | None,
        typer.Option(
            metavar="WORD",
            help='The word to look at; "it#2" is the second "it".  [default: the first that the '
            f"model added, else the last; of more than {LONG:,} tokens the text as a whole]",
        ),
    ] = None,
    layer: Annotated[
        list[int] | None,
        typer.Option(metavar="N", help="Only this layer, from 0 on; may be given several times."),
    ] = None,
    head: Annotated[
        int | None, typer.Option(metavar="N", help="Only this head of the one layer, from 0 on.")
    ] = None,
    html: Annotated[
        str | None, typer.Option(metavar="FILE", help=f"Write the page here.  [default: {PAGE}]")
    ] = None,
    save: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Keep the run, for --trace and regard.Trace.load."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print numbers alone; write no page unless --html.")
    ] = False,
) -> None:
    """Print what a word of a text attends to in a model, and write a page to explore the rest.

    TEXT is what the model reads; "-" stands for standard input. A long text is shown as a whole:
    the map of its weight, the words that get most, and what each layer does.

    \b
    Examples:
      regard look "The dog chased the ball because it was bouncing." --word it
      regard look "Once upon a time" --generate 40 --save run.safetensors
      regard look --trace run.safetensors --word time
      regard look --file book.txt
    """
    layers = tuple(layer or ())
    if head is not None and len(layers) != 1:
        got = len(layers) or "none"
        raise OptionError(f"head: needs the one layer that it is in, as --layer; got {got}")
    given = {"file": file, "trace": trace, "html": html, "save": save}
    paths = {name: _path(name, path) for name, path in given.items() if path is not None}
    if "html" not in paths and not as_json:
        paths["html"] = PAGE
    page, kept = paths.get("html"), paths.get("save")
    for name, path in paths.items():
        if name in ("html", "save"):
            _check_writable(name, path)
    others = [path.resolve() for name, path in paths.items() if name != "html"]
    if page is not None and page.resolve() in others:
        raise OptionError(f'html: "{page}" is named for something else too')
    if trace is not None:
        _check_alone(TEXT=text, file=file, model=model, generate=generate or None, save=save)
        found = _opened(paths["trace"])
    else:
        read = _text(text, paths.get("file"))
        found = _run(read, model or MODEL, word, layers, head, generate, file is not None, kept)
    if word is None and len(found.look.tokens) > LONG:
        _show_whole(found, layers, head, page, as_json)
    else:
        _show_word(found, word, layers, head, page, as_json)
    if kept is not None and not as_json:
        print(f"  Trace: {kept}")


class _Found(NamedTuple):
    """A look, and how many tokens the text had if the model read its beginning alone."""

    look: "Look"
    whole: int | None


def _show_word(
    found: _Found,
    word: str | None,
    layers: Sequence[int],
    head: int | None,
    page: Path | None,
    as_json: bool,
) -> None:
    from regard._watch import find
    from regard.draw.page import write
    from regard.draw.run import telling_word

    whole = found.look
    index = telling_word(whole) if word is None else find(whole.words, word)
    gaze = whole.only(layers or None, head).gaze(index)
    # The page first: whoever reads the rest may close the pipe early.
    kept = write(whole, page, word=index, layers=layers, head=head) if page is not None else None
    if as_json:
        from regard.draw.numbers import numbers

        _print_json(numbers(gaze))
        return
    from rich.console import Console

    from regard.draw.terminal import beginning, show

    console = Console(highlight=False)
    show(gaze, console)
    if word is None:
        which = "first word that the model added" if index in whole.generated else "last word"
        console.print(f"  This is the {which}; choose another with --word.", style="dim")
    if found.whole is not None:
        print(f"  {beginning(whole, found.whole)}")
    if page is not None and kept is not None:
        print(_told(whole, kept, page, layers))


def _show_whole(
    found: _Found, layers: Sequence[int], head: int | None, page: Path | None, as_json: bool
) -> None:
    from rich.console import Console

    from regard.draw.overview import Overview

    with Console(stderr=True).status("Looking at the whole"):
        overview = Overview.of(found.look.only(layers or None, head), found.whole)
    if page is not None:
        from regard.draw.overview_page import write

        write(overview, page)
    if as_json:
        from regard.draw.numbers import numbers_of_whole

        _print_json(numbers_of_whole(overview))
        return
    from regard.draw.overview_terminal import show

    show(overview, Console(highlight=False))
    if page is not None:
        print(f"  Page: {page}")


def _print_json(numbers: dict[str, Any]) -> None:
    print(json.dumps(numbers, indent=2, allow_nan=False))


def _path(name: str, given: str) -> Path:
    """What was given as a file's name, which typer's own paths would change."""
    if given == "-" or given.endswith("/") or not given:
        hint = ' (standard input is read for "-" as TEXT)' if (name, given) == ("file", "-") else ""
        raise OptionError(f'{name}: got "{given}"; needs the name of a file{hint}')
    return Path(given)


def _check_writable(name: str, path: Path) -> None:
    """Whether a file can be written there, as far as that can be said before a model is loaded."""
    reason = f'there is no folder "{path.parent}"' if not path.parent.is_dir() else ""
    reason = "it is a folder" if path.is_dir() else reason
    if reason:
        raise OptionError(f'{name}: cannot write "{path}": {reason}')


def _check_alone(**others: Any) -> None:
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise OptionError(f"trace: holds a run that is over; got {' and '.join(given)} beside it")


def _text(text: str | None, file: Path | None) -> str:
    if (text is None) == (file is None):
        raise TextError("text: needs either TEXT or --file" + (", got both" if file else ""))
    if file is not None:
        try:
            return file.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise TextError(f'file: cannot read "{file}": {reason}') from error
    if text == "-":
        try:
            return sys.stdin.buffer.read().decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise TextError("text: standard input is not UTF-8") from error
    return str(text).encode(errors="surrogateescape").decode(errors="replace")


def _run(
    text: str,
    model: str,
    word: str | None,
    layers: Sequence[int],
    head: int | None,
    generate: int,
    cut: bool,
    save: Path | None,
) -> _Found:
    """The text through the model; a spinner or a bar tells of it on a terminal.

    What the user got wrong is told before the model computes anything.
    """
    if not text.strip():  # told before a model is loaded
        raise TextError("text: is empty; needs at least one word")
    from rich.console import Console

    stderr = Console(stderr=True)
    with _warnings_in_a_line():
        with stderr.status(f"Loading {model}"):
            from regard._watch import find
            from regard.draw.run import prepare
            from regard.hf import load

            read, spelled = load(model)
            reading = prepare(read, spelled, text, name=_title(model), cut=cut, generate=generate)
            if word is not None and not generate:  # the model may yet say it
                find(reading.words, word)
            reading.check(layers, head)
        observe = None
        if word is None and reading.count > LONG:
            from regard.draw.overview import observed

            observe = observed(reading.count)
        if reading.count > LONG and stderr.is_terminal:
            found = reading.run(observe, progress=True)
        else:
            with stderr.status("Reading the text"):
                found = reading.run(observe)
        if save is not None:
            found.save(save)
        return _Found(reading.look(found), found.whole)


def _opened(path: Path) -> _Found:
    """A run from a file."""
    from regard._watch import Trace
    from regard.draw.look import Look, has_words

    found = Trace.load(path)
    if any(layer.kept is None for layer in found):
        raise ModelError(
            f'trace: "{path}" holds statistics alone, and a look needs queries and keys; save '
            "them with `regard look TEXT --save FILE`"
        )
    look = Look.of(found, model=_title(found.model.get("name") or found.model.get("class", "")))
    if not has_words(found):
        _say(f'trace: "{path}" tells no words; what is shown is named by its position')
    count = next(iter(found)).weights.shape[0]
    if count > 1:
        _say(f"trace: holds {count} texts; this is the first")
    return _Found(look, found.whole)


def _title(model: str) -> str:
    return TITLES.get(model, Path(model).name)


def _told(whole: "Look", kept: "Kept", page: Path, asked: Sequence[int]) -> str:
    """What was written, and what is not in it."""
    told, layers = f"  Page: {page}", kept.look.layers
    if len(layers) < len(whole.layers):
        numbers = ", ".join(str(layer.number) for layer in layers)
        told += (
            f"\n  It holds {len(layers)} of {len(whole.layers)} layers"
            f"{', those asked for before' if asked else ','} those that tell most: {numbers}."
        )
        over = "all" if kept.mean else "these alone, not over all"
        told += f"\n  Its mean runs over {over} {len(whole.layers)} layers"
        told += "." if kept.mean or asked else ", but for the word above over all."
    return told


@contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    """Warnings for the user without the line of code that they come from."""
    with warnings.catch_warnings(record=True) as caught:
        yield
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            _say(str(warning.message))


def _say(message: str) -> int:
    """One line on the error stream; the exit code of a mistake."""
    line = "".join(c if c.isprintable() else " " for c in message)
    print("regard:", " ".join(line.split()), file=sys.stderr)
    return 2
