"""One word of a text in the terminal: the sentence shaded, the words ranked, what was left out.

Shading uses the 256 colours or more of a terminal. Without them (a pipe, NO_COLOR, a terminal of
16 colours) every word stands above its number instead.
"""

import unicodedata
from collections.abc import Iterable
from itertools import groupby

import numpy as np
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.style import Style
from rich.table import Table
from rich.text import Text

from regard._watch.words import sign
from regard.draw.look import Gaze, HeadWeight, Look, Seen

# Greyish to amber at one lightness, so that a chip stands out as little or as much on a dark
# terminal as on a light one; the text on it is always dark. oklch from 70% .035 75 to 75% .165 65.
RAMP = ("#ac9c87", "#b79c79", "#c19b6d", "#cb9b60", "#d59a52", "#df9843", "#e99630", "#f49411")
INK = "#14110d"
FAINTEST = 0.1  # of the greatest share: below this a word is not shaded

HEADS = "The heads that give most, and their weight: L2H5 is head 5 of layer 2."
BLANK = Text()
GENERATED = "▸"
MARGIN = 2
RANKED = 6  # words in a ranking
LISTED = 5  # hidden words named in a note; more are counted
WHOLE = 120  # a text of more words is shown in excerpts
AROUND = 7  # words on either side of one that an excerpt is about
LONGEST = 20  # cells of a word in a ranking


def show(gaze: Gaze, console: Console) -> None:
    """Print what a word looks at, and what looks at it."""
    page = _Page(gaze, console)
    parts: list[RenderableType] = [head(gaze.look)]
    for seen, away in ((gaze.looks_at(), True), (gaze.looked_at_by(), False)):
        parts += [BLANK, page.title(away), BLANK, page.sentence(seen), BLANK]
        if seen.share.any():
            parts += [page.ranking(seen, away), BLANK]
        parts += [Text(note, "dim") for note in page.notes(seen, away)]
    put(console, parts)


def put(console: Console, parts: Iterable[RenderableType]) -> None:
    """Print one below the other, with a margin; without blanks at line ends where nobody looks."""
    whole = Padding(Group(*parts), (1, MARGIN))
    if console.is_terminal:
        console.print(whole)
        return
    with console.capture() as captured:
        console.print(whole)
    for line in captured.get().splitlines():
        console.out(line.rstrip(), highlight=False)


def head(look: Look) -> Text:
    """The model, and what of it is shown."""
    kind = "causal" if look.causal else "bidirectional"
    tokens = "1 token" if len(look.tokens) == 1 else f"{len(look.tokens):,} tokens"
    made = len(look.tokens) - (look.given or len(look.tokens))
    generated = f", {made:,} of them generated" if made else ""
    facts = f"{held(look)}, {kind}, {tokens}{generated}"
    return Text.assemble((printable(look.model), "bold"), "   ", (facts, "dim"))


def shaded(console: Console) -> bool:
    """Whether it shows enough colours for shades."""
    return (
        console.is_terminal
        and not console.no_color
        and console.color_system in ("256", "truecolor")
    )


class _Page:
    def __init__(self, gaze: Gaze, console: Console) -> None:
        self.gaze, self.look = gaze, gaze.look
        self.width = console.width - 2 * MARGIN
        self.chosen = quoted(self.name(gaze.index) + self.repeat(gaze.index))
        self.shaded = shaded(console)

    def name(self, index: int) -> str:
        return printable(self.look.words[index].text)

    def repeat(self, index: int) -> str:
        """What tells a word from those before it that are written alike: "#2" for the second."""
        number = self.look.repeats[index]
        return f"#{number}" if number > 1 else ""

    def title(self, away: bool) -> Text:
        return Text.assemble((self.chosen, "bold"), " looks at" if away else " is looked at by")

    def sentence(self, seen: Seen) -> Text:
        """The text with every word shaded, or above its number; a long one in excerpts."""
        greatest = float(seen.share.max())
        pieces: list[tuple[str, Text, str]] = []
        for index in self.excerpt(seen):
            gap = " " if pieces and (index is None or self.look.gaps[index]) else ""
            if index is None:
                pieces.append((gap, Text("…", "dim"), ""))
                continue
            if index == self.look.generated.start:
                gap = " "
                pieces.append((gap, Text(GENERATED, "dim"), ""))
            pieces.append((gap, self.word(index, seen, greatest), self.number(index, seen)))
        if self.shaded:
            return Text("").join(Text(gap) + word for gap, word, _ in pieces)
        return _stacked(pieces, self.width)

    def excerpt(self, seen: Seen) -> list[int | None]:
        """The words to show; None where some are passed over."""
        count = len(self.look.words)
        if count <= WHOLE:
            return list(range(count))
        near = np.zeros(count, bool)
        for index in (self.gaze.index, *_ranked(seen)):
            near[max(0, index - AROUND) : index + AROUND + 1] = True
        shown: list[int | None] = []
        for visible, run in groupby(range(count), key=lambda index: bool(near[index])):
            shown += run if visible else [None]
        return shown

    def word(self, index: int, seen: Seen, greatest: float) -> Text:
        part = seen.share[index] / greatest if greatest else 0.0
        style = Style()
        if seen.unseen[index] or seen.absent[index]:
            style = Style(dim=True, italic=bool(seen.unseen[index]))
        elif self.shaded and part > FAINTEST:
            style = Style(color=INK, bgcolor=colour(part))
        if index == self.gaze.index:
            style += Style(bold=True, underline=True)
        return Text(self.name(index), style)

    def number(self, index: int, seen: Seen) -> str:
        if seen.unseen[index]:
            return "·"
        return "-" if seen.absent[index] else f"{100 * seen.share[index]:.0f}"

    def ranking(self, seen: Seen, away: bool) -> Table:
        """The words of the greatest shares, a bar each, and the heads that give most."""
        ranked = _ranked(seen)
        cells, columns = self.cells(), self.columns()
        table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="dim")
        table.add_column("", max_width=LONGEST, overflow="ellipsis", no_wrap=True)
        table.add_column("", width=cells, no_wrap=True)
        table.add_column("share", justify="right", no_wrap=True)
        for title in ("heads", "", "")[:columns]:
            table.add_column(title, no_wrap=True)
        greatest = float(seen.share[ranked[0]])
        for index in ranked:
            share = float(seen.share[index])
            table.add_row(
                self.ranked(index),
                self.bar(share / greatest, cells),
                percent(share),
                *(map(_head, self.gaze.strongest(columns, index, away)) if columns else ()),
            )
        return table

    def ranked(self, index: int) -> Text:
        """A word's name, shortened before what tells it apart."""
        apart = Text(self.repeat(index))
        apart.append(" itself" if index == self.gaze.index else "", "dim")
        name = Text(self.name(index))
        name.truncate(LONGEST - apart.cell_len, overflow="ellipsis")
        return name + apart

    def bar(self, part: float, cells: int) -> Text:
        halves = max(1, round(part * cells * 2))
        text = "━" * (halves // 2) + "╸" * (halves % 2)
        return Text(text, Style(color=colour(part)) if self.shaded else "")

    def notes(self, seen: Seen, away: bool) -> list[str]:
        aside = self.aside(seen) if away else self.kept(seen)
        heads = HEADS if away and seen.share.any() and self.columns() else ""
        notes = (heads, aside, self.hidden(seen, away), *self.legend(seen))
        return [note for note in notes if note]

    def cells(self) -> int:
        """Of a whole bar."""
        return min(24, max(6, self.width // 4))

    def columns(self) -> int:
        """How many heads there is room for in a ranking; a single one needs no telling."""
        if self.look.heads == 1:
            return 0
        return max(0, min(3, (self.width - LONGEST - self.cells() - 8) // 14))

    def aside(self, seen: Seen) -> str:
        """What the word gives to keys that were left out."""
        out, words = self.gaze.left_out, self.look.words
        parts = [f"{percent(out.first)} to the first token ({self.first()})"]
        if out.special:
            names = {printable(w.text) for w in words[1:] if w.special}
            parts.append(f"{percent(out.special)} to {', '.join(sorted(names))}")
        if out.learned:
            parts.append(f"{percent(out.learned)} to the learned sinks")
        told = " and ".join(parts)
        if not seen.share.any():
            return f"{self.chosen} gives {told}, nothing to other words."
        return f"Left out: {told}. Shares are of the rest."

    def kept(self, seen: Seen) -> str:
        if not seen.without:
            return f"{self.chosen} is a token that is left out elsewhere: shares of all weights."
        return f"Each share is of what that word gives beyond {self.sinks()}."

    def sinks(self) -> str:
        others = any(word.special for word in self.look.words[1:])
        return "the first and the special tokens" if others else "the first token"

    def first(self) -> str:
        word, name = self.look.words[0], self.name(0)
        whole = name if word.special else quoted(name)
        return whole if word.stop == 1 else f"the beginning of {whole}"

    def hidden(self, seen: Seen, away: bool) -> str:
        """The words that cannot be seen, or cannot see, in one line."""
        unseen, index = np.flatnonzero(seen.unseen), self.gaze.index
        if not len(unseen):
            return ""
        beyond = range(index + 1, len(self.look.words)) if away else range(index)
        causal = unseen.tolist() == list(beyond)
        place = ("after it" if away else "before it") if causal else "that the mask hides"
        several = f"the {len(unseen):,} words {place}"
        which = several if len(unseen) > LISTED else self.listed(unseen)
        if not away:
            return f"Cannot see {self.chosen}: {which}."
        reason = ", as a causal model only looks back" if causal else ""
        return f"Cannot be seen: {which}{reason}."

    def listed(self, words: np.ndarray) -> str:
        pieces = [(" " if self.look.gaps[i] else "") + self.name(i) for i in words]
        return quoted("".join(pieces).strip())

    def legend(self, seen: Seen) -> Iterable[str]:
        count = len(self.look.words)
        shown = sum(index is not None for index in self.excerpt(seen))
        if shown < count:
            yield f"Shown: {shown:,} of {count:,} words."
        if self.look.generated:
            yield f"{GENERATED} what follows was generated."
        if self.shaded:
            return
        signs = "Below each word its share in percent"
        signs += "; - left out" if seen.absent.any() else ""
        signs += "; · hidden" if seen.unseen.any() else ""
        yield signs + "."


def printable(text: str) -> str:
    """A word as one line: control characters, which a terminal would obey, made visible."""
    return "".join("�" if unicodedata.category(c) == "Cc" else c for c in sign(text))


def head_name(layer: int, head: int) -> str:
    return f"L{layer}H{head}"


def beginning(look: Look, whole: int) -> str:
    """That the model read the beginning of a text of so many tokens."""
    read = len(look.tokens) if look.given is None else look.given
    return f"The beginning of the text: {read:,} of its {whole:,} tokens."


def percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share >= 0.0095 else f"{100 * share:.1f}%"


def held(look: Look) -> str:
    """The layers and heads that the means run over."""
    layers = look.layers
    sizes = {len(layer.heads) for layer in layers}
    if len(layers) > 1:
        each = f" x {sizes.pop()} heads" if len(sizes) == 1 else f", {look.heads:,} heads"
        return f"mean of {len(layers)} layers{each}"
    heads = layers[0].heads
    if len(heads) > 1:
        return f"mean of the {len(heads)} heads of layer {layers[0].number}"
    return f"layer {layers[0].number}, head {heads[0]}"


def _ranked(seen: Seen) -> list[int]:
    order = np.argsort(-seen.share, kind="stable")[:RANKED]
    return [int(index) for index in order if seen.share[index] > 0]


def _head(found: HeadWeight) -> Text:
    return Text.assemble((head_name(found.layer, found.head), "dim"), f" {percent(found.weight)}")


def colour(part: float) -> str:
    step = int((part - FAINTEST) / (1 - FAINTEST) * len(RAMP))
    return RAMP[min(max(step, 0), len(RAMP) - 1)]


def quoted(text: str) -> str:
    return f"“{text}”"


def _stacked(pieces: list[tuple[str, Text, str]], width: int) -> Text:
    """Words with a number under each, wrapped at the width."""
    lines: list[tuple[Text, Text]] = [(Text(), Text())]
    for gap, word, number in pieces:
        above, below = lines[-1]
        size = max(cell_len(word.plain), len(number))
        if above.cell_len + 1 + size > width and above:
            lines.append((Text(), Text()))
            above, below = lines[-1]
        elif above:
            above.append(" " if gap or number else gap)
            below.append(" ")
        above.append(word).append(" " * (size - cell_len(word.plain)))
        below.append(number.rjust(size), "dim")
    return Text("\n").join(part for pair in lines for part in pair)
