"""The picture in the terminal: what it says, how it wraps, and what it never prints."""

import io
import re
from typing import Any

import pytest
from looks import CAUSAL, SIZES, make_look, run
from rich.cells import cell_len
from rich.console import Console

from regard._watch import Word
from regard.draw import terminal
from regard.draw.look import Look

pytestmark = pytest.mark.once

TROPHY = "The trophy would not fit in the suitcase because it was too large."


def printed(look: Look, word: int, width: int = 80, **options: Any) -> str:
    file = io.StringIO()
    terminal.show(look.gaze(word), Console(file=file, width=width, highlight=False, **options))
    return file.getvalue()


def coloured(look: Look, word: int, width: int = 80, system: Any = "truecolor") -> str:
    return printed(look, word, width, force_terminal=True, color_system=system, no_color=False)


def test_smollm2(smollm2: Any) -> None:
    look = run(*smollm2, TROPHY, name="SmolLM2")
    text = printed(look, 9)
    assert "SmolLM2   mean of 30 layers x 9 heads, causal, 15 tokens" in text
    away, back = text.split("“it” is looked at by")
    assert re.search(r"because +━+╸? +24%   L1H2 97%", away)
    assert re.search(r"it itself +━+╸? +15%", away)
    assert "Left out: 45% to the first token (“The”). Shares are of the rest." in away
    assert "Cannot be seen: “was too large.”, as a causal model only looks back." in away
    assert "Cannot see “it”: the 9 words before it." in back


def test_minilm(minilm: Any) -> None:
    look = run(*minilm, TROPHY, name="MiniLM")
    text = printed(look, 10, width=90)
    assert "bidirectional" in text
    assert "Left out: 32% to the first token ([CLS]) and 4% to [SEP]." in text
    assert "annot" not in text


def test_repeated_words_are_named_as_on_the_command_line() -> None:
    long = "uncharacteristically-unbelievable"
    look = make_look((1,) * 6, f"it {long} it {long} it .")
    text = printed(look, 2)
    assert "“it#2” looks at" in text
    assert "“it#2” is looked at by" in text
    rows = re.findall(r"^  (\S+(?: itself)?) +━", text, re.MULTILINE)
    assert {"it#2 itself", "it#3", f"{long[:19]}…", f"{long[:17]}…#2", "."} <= set(rows)
    assert "it#2 itself  " in printed(look, 2, 40)
    sentence = next(line for line in text.splitlines() if line.startswith("  it "))
    assert "#" not in sentence


def test_the_first_token_is_told_in_letters(smollm2: Any, minilm: Any) -> None:
    chinese = printed(run(*smollm2, "我喜欢猫", name="SmolLM2"), 3)
    assert "to the first token (the beginning of “我”)." in chinese
    assert "to the first token (“Été”)." in printed(
        run(*smollm2, "Été", name="SmolLM2"), 0
    ).replace("the beginning of ", "")
    assert "to the first token ([CLS])" in printed(run(*minilm, "猫🙂", name="MiniLM"), 1)


def test_numbers_stand_under_words() -> None:
    look = make_look(mask=CAUSAL)
    lines = printed(look, 3).splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("  Here are"))
    share = look.gaze(3).looks_at().share
    for name, number in zip(lines[at].split(), lines[at + 1].split(), strict=True):
        index = [word.text for word in look.words].index(name)
        expected = {0: "-"}.get(index, "·" if index > 3 else f"{100 * share[index]:.0f}")
        assert number == expected
        end = lines[at].index(name) + max(len(name), len(number))
        assert lines[at + 1][:end].endswith(number)


@pytest.mark.parametrize("width", [24, 40, 80, 200])
@pytest.mark.parametrize("shaded", [False, True])
def test_nothing_is_wider_than_the_terminal(width: int, shaded: bool) -> None:
    look = make_look((2,) * 24, "word " * 23 + "漢字漢字", mask=CAUSAL, special=(0,))
    text = (coloured if shaded else printed)(look, 12, width)
    lines = re.sub(r"\x1b\[[\d;]*m", "", text).splitlines()
    assert max(map(cell_len, lines)) <= width
    assert shaded or all(line == line.rstrip() for line in lines)


def test_shades_follow_the_shares() -> None:
    look = make_look(mask=CAUSAL)
    share = look.gaze(5).looks_at().share
    text = coloured(look, 5).split("is looked at by")[0]
    chips = dict(re.findall(r"\x1b\[[\d;]*48;2;(\d+;\d+;\d+)m([\w,]+)\x1b", text))
    steps = [";".join(str(int(c[i : i + 2], 16)) for i in (1, 3, 5)) for c in terminal.RAMP]
    shown = {name: steps.index(colour) for colour, name in chips.items()}
    best = look.words[int(share.argmax())].text
    assert shown[best] == len(steps) - 1
    order = sorted(shown, key=lambda name: share[[w.text for w in look.words].index(name)])
    assert [shown[name] for name in order] == sorted(shown.values())


def test_without_colour_there_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    look = make_look()
    plain = "Below each word its share in percent"
    assert plain in printed(look, 2)
    assert plain in coloured(look, 2, system="standard")
    assert plain not in coloured(look, 2)
    assert plain not in coloured(look, 2, system="256")
    monkeypatch.setenv("NO_COLOR", "1")
    text = printed(look, 2, force_terminal=True, color_system="truecolor")
    assert plain in text
    assert "38;2" not in text
    assert "48;2" not in text


def test_control_characters_are_not_obeyed() -> None:
    words = (Word("\x1b[31mred", 0, 1), Word("\r", 1, 2), Word("\n", 2, 3), Word("\x9b2J", 3, 4))
    plain = make_look((1,) * 4, "a b c d")
    look = Look("m\x1b]0;title\x07", "", plain.tokens, words, plain.layers)
    text = printed(look, 0)
    assert "�[31mred" in text
    assert "↵" in text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)


def test_markup_is_text() -> None:
    look = make_look((1, 1, 1), "[bold]x[/bold] :smile: [/red]")
    assert "[bold]x[/bold]" in coloured(look, 1)
    assert ":smile:" in coloured(look, 1)


def test_a_long_text_is_shown_in_excerpts() -> None:
    look = make_look((1,) * 200, " ".join(f"w{i}" for i in range(200)), layers=1)
    text = printed(look, 100)
    assert "…" in text
    assert "w99 w100 w101" in text
    shown = [int(n) for n in re.findall(r"Shown: (\d+) of 200 words\.", text)]
    assert len(shown) == 2
    assert all(15 <= n < 110 for n in shown)
    assert "Shown" not in printed(make_look(), 2)


def test_the_sink_itself() -> None:
    text = printed(make_look(mask=CAUSAL), 0)
    assert "“Here” gives 100% to the first token (“Here”), nothing to other words." in text
    assert "“Here” is a token that is left out elsewhere: shares of all weights." in text


def test_one_layer_and_one_head() -> None:
    look = make_look(SIZES)
    assert "mean of the 4 heads of layer 1," in printed(look.only([1]), 2)
    one = printed(look.only([1], head=3), 2)
    assert "layer 1, head 3," in one
    assert not re.search(r"L\dH\d", one)
    assert "causal, 1 token\n" in printed(make_look((1,), "a", mask=CAUSAL), 0)


def test_learned_sinks_and_other_masks_are_told() -> None:
    import regard

    text = printed(make_look(mask=regard.window(1, 1), sinks=True), 4)
    assert re.search(r"and \d+% to the learned sinks\.", text)
    assert "Cannot be seen: “Here are eight , all" not in text
    assert re.search(r"Cannot be seen: “Here are eight\W+made up”\.", text)
