"""English-French pairs from LibreOffice's help; no test sentence is nearly one of training.

    python models/en-fr/prepare.py FOLDER

fetches three Debian packages (the help in both languages, and the French user interface; apt-get
download, nothing is installed) and writes train, validation and test as FOLDER/*.en and *.fr, a
line a sentence or paragraph. The same packages give the same files, byte for byte. The script
needs NumPy and rapidfuzz.

A paragraph of the help has the same id in every language, which aligns it. The user interface is
taken from the compiled catalogues of gettext, for training only.
"""

import argparse
import gettext
import hashlib
import re
import shutil
import subprocess
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import fuzz, process

Pair = tuple[str, str]

HELP = ("libreoffice-help-en-us", "libreoffice-help-fr")
INTERFACE = "libreoffice-l10n-fr"
PAGES = "usr/share/libreoffice/help/{}/text"
CATALOGUES = "usr/lib/libreoffice/program/resource/fr/LC_MESSAGES"

TEST, VALIDATION = 2000, 1000
WORDS = 120  # a longer paragraph is left out
ALIKE = 0.6  # share of common word pairs from which two sentences are near-duplicates
LETTERS = 80  # per cent of their letters that are the same in order, from which they are too
PLAIN = 4  # words of a test sentence that are neither names nor numbers, at least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    roots = [fetch(package, folder / "packages") for package in (*HELP, INTERFACE)]
    pages = clean(paragraphs(roots[0] / PAGES.format("en-US"), roots[1] / PAGES.format("fr")))
    interface = clean(messages(roots[2] / CATALOGUES))
    train, validation, test = split(pages, interface)
    for name, pairs in (("train", train), ("validation", validation), ("test", test)):
        write(folder / name, pairs)
    print(f"help {len(pages):,}, interface {len(interface):,}")


def fetch(package: str, folder: Path) -> Path:
    """The files of a Debian package, unpacked and not installed."""
    root = folder / package
    if not root.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-qq", package], cwd=folder, check=True)
        (archive,) = folder.glob(f"{package}_*.deb")
        part = folder / f".{package}"  # takes its name when it is whole
        shutil.rmtree(part, ignore_errors=True)
        subprocess.run(["dpkg-deb", "-x", archive.resolve(), part.resolve()], check=True)
        part.rename(root)
    return root


class Page(HTMLParser):
    """The paragraphs and headings of a help page by their ids, and its notes, which have none."""

    BLOCKS = frozenset(["p", "h1", "h2", "h3", "h4", "h5", "h6"])

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self.notes = 0
        self.note = False
        self.id: str | None = None
        self.pieces: list[str] = []
        self.hidden: list[bool] = []  # of every open span: is it what another system would show?
        self.switch = 0  # open spans since a switch between applications
        self.mixed = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag == "div":
            self.note = given.get("class") == "notetext"
        elif tag in self.BLOCKS:
            self.id, self.pieces, self.hidden, self.mixed = given.get("id"), [], [], False
            if self.id is None and self.note:
                self.id = f"note {self.notes}"
            self.notes += self.note
            self.note = False
        elif tag == "span":
            kind = given.get("class") or ""
            self.hidden.append(kind == "MAC")
            # The text of one application among several: which of them is meant cannot be told.
            self.mixed |= "hidden" in given and kind not in ("", "MAC")
        elif tag == "br":
            self.pieces.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag == "span" and self.hidden:
            self.hidden.pop()
        elif tag in self.BLOCKS and self.id is not None:
            if not self.mixed:
                self.found.setdefault(self.id, "".join(self.pieces))
            self.id = None

    def handle_data(self, data: str) -> None:
        if self.id is not None and not any(self.hidden):
            self.pieces.append(data)


def paragraphs(english: Path, french: Path) -> Iterator[Pair]:
    """What stands under the same id on the same page."""
    for path in sorted(english.rglob("*.html")):
        other = french / path.relative_to(english)
        if not other.is_file():
            continue
        pages = [Page(p.read_text(encoding="utf-8")) for p in (path, other)]
        for name, source in pages[0].found.items():
            numbered = name.startswith("note ")  # by their order, so there must be as many
            if name in pages[1].found and not (numbered and pages[0].notes != pages[1].notes):
                yield source, pages[1].found[name]


def messages(folder: Path) -> Iterator[Pair]:
    """The user interface: menus, dialogs, messages, without the marks of keyboard shortcuts."""
    for path in sorted(folder.glob("*.mo")):
        with path.open("rb") as stream:
            catalogue = gettext.GNUTranslations(stream)
        # gettext offers no list of its messages but this.
        for key, target in sorted(catalogue._catalog.items(), key=str):  # type: ignore[attr-defined]
            if isinstance(key, str) and isinstance(target, str) and key:
                source = key.rpartition("\x04")[2]
                yield re.sub("[_~]", "", source), re.sub("[_~]", "", target)


def tidy(text: str) -> str:
    """One line, with single spaces; no invisible characters."""
    text = unicodedata.normalize("NFC", text).replace("\u200b", "").replace("\u00ad", "")
    return " ".join(text.split())


def clean(pairs: Iterable[Pair]) -> list[Pair]:
    """Without repetitions, untranslated text, and pairs that cannot be translations."""
    kept: dict[Pair, None] = {}
    for source, target in ((tidy(a), tidy(b)) for a, b in pairs):
        lengths = len(source), len(target)
        if not all(any(map(str.isalpha, text)) for text in (source, target)):
            continue
        if max(len(source.split()), len(target.split())) > WORDS:
            continue
        if source == target and len(source.split()) > 2:
            continue
        if max(lengths) > 20 and not 0.4 < lengths[0] / lengths[1] < 2.0:
            continue
        kept[source, target] = None
    return list(kept)


def masked(text: str) -> tuple[str, ...]:
    """The words in lower case, with "#" for numbers, and for names: any capital but the first."""
    words = re.findall(r"\w+", text)
    return tuple(
        "#" if re.search(r"\d|_", word) or (place and word != word.lower()) else word.lower()
        for place, word in enumerate(words)
    )


def shingles(words: tuple[str, ...]) -> frozenset[tuple[str, ...]]:
    """Neighbouring words, the ends included; runs of masked words count as one."""
    runs = [w for i, w in enumerate(words) if w != "#" or i == 0 or words[i - 1] != "#"]
    return frozenset(zip(["<", *runs], [*runs, ">"], strict=True))


class Neighbours:
    """Finds the sentences that share most of their shingles with a given one."""

    def __init__(self, sentences: Iterable[str]) -> None:
        self.sets = [shingles(masked(sentence)) for sentence in sentences]
        self.holders: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        for index, held in enumerate(self.sets):
            for shingle in held:
                self.holders[shingle].append(index)

    def of(self, sentence: str) -> set[int]:
        own = shingles(masked(sentence))
        common = Counter(i for shingle in own for i in self.holders.get(shingle, ()))
        return {i for i, n in common.items() if n >= ALIKE * (len(own) + len(self.sets[i]) - n)}


def spelt_alike(sentences: list[str], drawn: list[str]) -> NDArray[np.bool_]:
    """Which of the sentences have nearly the letters of one that was drawn, in upper or lower."""
    lower = [sentence.lower() for sentence in sentences]
    alike = np.zeros(len(sentences), bool)
    for start in range(0, len(drawn), 256):  # a table of all pairs would be large
        part = [sentence.lower() for sentence in drawn[start : start + 256]]
        common = process.cdist(part, lower, scorer=fuzz.ratio, score_cutoff=LETTERS, workers=-1)
        alike |= common.any(axis=0)
    return alike


def split(pages: list[Pair], interface: list[Pair]) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """Training, validation and test: nothing of the one is nearly the same in another.

    Sentences are drawn in the order of a hash for test, then for validation, unless one of those
    before is nearly the same. What is nearly the same as one of them, in either language, by its
    words or by its letters, is then left out of training. Headings and labels, which are mostly
    names, are not drawn.
    """
    plain = [p for p in pages if sum(w != "#" for w in masked(p[0])) >= PLAIN]
    plain.sort(key=lambda pair: hashlib.sha256("\t".join(pair).encode()).digest())
    everything = list(dict.fromkeys([*pages, *interface]))
    finders = [Neighbours(pair[side] for pair in everything) for side in (0, 1)]
    taken: set[int] = set()
    drawn: list[Pair] = []
    places = {pair: place for place, pair in enumerate(everything)}
    for pair in plain:
        if len(drawn) == TEST + VALIDATION:
            break
        if places[pair] not in taken:
            drawn.append(pair)
            taken |= finders[0].of(pair[0]) | finders[1].of(pair[1])
    train = [pair for place, pair in enumerate(everything) if place not in taken]
    for side in (0, 1):
        alike = spelt_alike([pair[side] for pair in train], [pair[side] for pair in drawn])
        train = [pair for pair, left_out in zip(train, alike, strict=True) if not left_out]
    return train, drawn[TEST:], drawn[:TEST]


def write(stem: Path, pairs: list[Pair]) -> None:
    """Two files with a line a pair, and their fingerprint on the terminal."""
    for side, language in enumerate(("en", "fr")):
        text = "".join(pair[side] + "\n" for pair in pairs)
        path = stem.with_suffix(f".{language}")
        part = path.with_name(f".{path.name}")  # a file that has its name is whole
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    digest = hashlib.sha256("".join("\t".join(p) + "\n" for p in pairs).encode()).hexdigest()
    words = sum(len(source.split()) for source, _ in pairs)
    print(f"{stem.name:<11}{len(pairs):>7,} pairs {words:>9,} words  {digest[:16]}")


if __name__ == "__main__":
    main()
