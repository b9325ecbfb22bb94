"""Parallel text: two files whose lines are translations of each other, or one with tabs."""

from collections.abc import Sequence
from pathlib import Path

from regard._errors import FileError, TextError

Pair = tuple[str, str]


def read_lines(path: Path) -> list[str]:
    r"""The lines of a UTF-8 file. Only "\n" and "\r\n" end one: a text may hold other separators.

    Raises:
        FileError: it cannot be read, or is not UTF-8.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise FileError(f'"{path}": cannot be read: {error.strerror}') from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise FileError(f'"{path}": line {line} is not UTF-8') from error
    return lines_of(text)


def lines_of(text: str) -> list[str]:
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()  # the end of the last line, not one more
    return [line.removesuffix("\r") for line in lines]


def read_pairs(files: Sequence[Path]) -> list[Pair]:
    """Sentence pairs from one file with a tab in each line, or from two line-aligned files.

    Raises:
        FileError: as `read_lines`.
        TextError: no file or more than two, no lines, files of different length, a line without
            exactly one tab, or a side without text.
    """
    if len(files) == 1:
        pairs = [_parted(line, number, files[0]) for number, line in _numbered(files[0])]
    elif len(files) == 2:
        source, target = map(read_lines, files)
        if len(source) != len(target):
            raise TextError(
                f'"{files[0]}" has {len(source):,} lines and "{files[1]}" {len(target):,}; needs '
                "a line for a line"
            )
        pairs = list(zip(source, target, strict=True))
    else:
        raise TextError(f"parallel text: got {len(files)} files; needs one TSV, or two aligned")
    named = " and ".join(f'"{file}"' for file in files)
    if not pairs:
        raise TextError(f"{named}: empty; needs at least one pair")
    for number, pair in enumerate(pairs, 1):
        if not all(side.strip() for side in pair):
            raise TextError(f"{named}: line {number} has no text on one side")
    return pairs


def _numbered(path: Path) -> enumerate[str]:
    return enumerate(read_lines(path), 1)


def _parted(line: str, number: int, path: Path) -> Pair:
    source, *targets = line.split("\t")
    if len(targets) != 1:
        raise TextError(f'"{path}": line {number} has {len(targets)} tabs; needs one')
    return source, targets[0]
