"""BLEU by length of the source as SVG, by hand: its colours follow the reader's theme."""

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 560, 320
LEFT, RIGHT, TOP, BOTTOM = 48, 16, 28, 84
COLOURS = ("#b35900", "#0a6ed1", "#1a7f37")
STYLE = """\
text { font: 12px system-ui, sans-serif; fill: #57606a }
.axis { stroke: #8c959f; stroke-opacity: .4 }
@media (prefers-color-scheme: dark) { text { fill: #9198a1 } }"""

Points = Sequence[tuple[float, float, float]]  # words, BLEU, half an interval


def drawn(series: Sequence[tuple[str, Points]]) -> str:
    """Lines with an interval at every point."""
    points = [point for _, of in series for point in of]
    most = max((words for words, _, _ in points), default=1.0)
    top = max((bleu + around for _, bleu, around in points), default=1.0)
    step = 10 if top > 20 else 5 if top > 10 else 1
    limit = step * (int(top / step) + 1)

    def place(words: float, bleu: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * words / (most + 5)
        return x, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * max(bleu, 0.0) / limit

    body = [f'<text x="{LEFT}" y="16">BLEU, with 95% intervals</text>']
    for tick in range(0, limit + 1, step):
        y = place(0, tick)[1]
        body.append(f'<path class="axis" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        body.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick}</text>')
    for tick in range(0, int(most) + 6, 10):
        x, y = place(tick, 0)
        body.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{tick}</text>')
    foot = HEIGHT - BOTTOM + 36
    body.append(
        f'<text x="{WIDTH - RIGHT}" y="{foot}" text-anchor="end">words of the source</text>'
    )
    for number, ((name, of), colour) in enumerate(zip(series, COLOURS, strict=True)):
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(w, b) for w, b, _ in of))
        body.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for words, bleu, around in of:
            x, low = place(words, bleu - around)
            high = place(words, bleu + around)[1]
            body.append(f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="{colour}"/>')
        y = foot + 14 * number
        body.append(f'<path d="M{LEFT} {y - 4}h20" stroke="{colour}" stroke-width="2"/>')
        body.append(f'<text x="{LEFT + 28}" y="{y}">{escape(name)}</text>')
    inside = "\n".join(body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}">\n<style>{STYLE}</style>\n{inside}\n</svg>\n'
    )
