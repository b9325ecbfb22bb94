/*
 * The map of a long text: a pixel for each pair of passages, drawn from the logarithms that the page
 * holds.
 */

const STEPS = 2000; // codes for a factor of e
const HIDDEN = 65535; // the code of a weight of zero
const LOWEST = 0.25; // quantiles between which the shades run
const HIGHEST = 0.998;

function numbers(base64, Kind) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  return new Kind(bytes.buffer);
}

/** The weights of one map, and how bright each is. */
class Passages {
  constructor(base64, count) {
    this.codes = numbers(base64, Uint16Array);
    this.count = count;
    const sorted = this.codes.filter((code) => code !== HIDDEN).sort();
    const at = (quantile) => sorted[Math.round((1 - quantile) * (sorted.length - 1))] ?? 0;
    this.high = at(HIGHEST);
    this.low = Math.max(at(LOWEST), this.high + 1);
  }

  weight(row, column) {
    const code = this.codes[row * this.count + column];
    return code === HIDDEN ? 0 : Math.exp(-code / STEPS);
  }

  /** The row and column of the greatest weight. */
  greatest() {
    let best = 0;
    this.codes.forEach((code, at) => (best = code < this.codes[best] ? at : best));
    return [Math.floor(best / this.count), best % this.count];
  }

  /** From 0 to 1 by the logarithm; null where nothing is seen. */
  level(row, column) {
    const code = this.codes[row * this.count + column];
    if (code === HIDDEN) return null;
    return Math.min(1, Math.max(0, (this.low - code) / (this.low - this.high)));
  }
}

class PassageMap {
  constructor(canvas) {
    this.canvas = canvas;
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  /** Show a map, with a row marked or none. */
  show(passages, row) {
    Object.assign(this, { passages, row });
    this.draw();
  }

  draw() {
    if (!this.passages) return;
    const { canvas, passages } = this;
    const { count } = passages;
    const style = getComputedStyle(document.documentElement);
    const glow = style.getPropertyValue("--glow").trim().split(" ").map(Number);
    const pixels = document.createElement("canvas");
    pixels.width = pixels.height = count;
    const image = new ImageData(count, count);
    for (let at = 0; at < count * count; at++) {
      const level = passages.level(Math.floor(at / count), at % count);
      if (level !== null) image.data.set([...glow, 20 + 235 * level], at * 4);
    }
    pixels.getContext("2d").putImageData(image, 0, 0);
    const side = canvas.clientWidth;
    const ratio = window.devicePixelRatio || 1;
    canvas.style.height = `${side}px`;
    canvas.width = canvas.height = side * ratio;
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    context.imageSmoothingEnabled = side < count;
    context.fillStyle = style.getPropertyValue("--hidden");
    context.fillRect(0, 0, side, side);
    context.drawImage(pixels, 0, 0, side, side);
    if (this.row === null) return;
    context.strokeStyle = style.getPropertyValue("--ink");
    const height = Math.max(3, side / count + 2);
    context.strokeRect(0.5, ((this.row + 0.5) / count) * side - height / 2, side - 1, height);
  }

  /** The pair of passages under a pointer. */
  at(event) {
    const box = this.canvas.getBoundingClientRect();
    const place = (x, size) =>
      Math.min(this.passages.count - 1, Math.max(0, Math.floor((x / size) * this.passages.count)));
    return [place(event.clientY - box.top, box.height), place(event.clientX - box.left, box.width)];
  }
}

if (typeof module !== "undefined") module.exports = { Passages };
