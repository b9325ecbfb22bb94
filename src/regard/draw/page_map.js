/*
 * The heat map: the matrix of the chosen heads, a pixel for each pair of tokens, or for each pair of
 * bins of a long text. Rows are computed in slices between frames and kept for the next time.
 */

const BINS = 320;
const LABELLED = 24; // a text of at most so many tokens has its words along both sides
const SLICE = 12; // milliseconds of computing between two frames

class HeatMap {
  constructor(canvas, look, names) {
    this.canvas = canvas;
    this.look = look;
    this.names = names;
    this.count = Math.min(look.size, BINS);
    this.known = new Map();
    this.pixels = document.createElement("canvas");
    this.pixels.width = this.pixels.height = this.count;
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      this.paint();
      this.draw();
    });
  }

  /** Show the mean of some heads, with the row or column of a word marked. */
  show(chosen, without, mark) {
    const key = [chosen, without.first, without.special].join();
    this.mark = mark;
    if (this.key !== key) {
      this.key = key;
      if (!this.known.has(key)) {
        if (this.known.size > 40) this.known.clear();
        this.known.set(key, { ...this.empty(), chosen, keys: this.keys(without), row: 0 });
      }
      this.matrix = this.known.get(key);
      clearTimeout(this.timer);
      this.advance();
    }
    this.draw();
  }

  empty() {
    const cells = this.count * this.count;
    return { weight: new Float32Array(cells), seen: new Uint8Array(cells), greatest: 0 };
  }

  bin(token) {
    return Math.floor((token * this.count) / this.look.size);
  }

  tokens(bin) {
    const edge = (b) => Math.ceil((b * this.look.size) / this.count);
    return [edge(bin), edge(bin + 1)];
  }

  /** Compute rows for one slice of time, draw, and go on after the next frame. */
  advance() {
    const until = performance.now() + SLICE;
    while (this.matrix.row < this.look.size && performance.now() < until) this.addRow(this.matrix);
    this.paint();
    this.draw();
    if (this.matrix.row < this.look.size) this.timer = setTimeout(() => this.advance());
  }

  addRow(matrix) {
    const { look, count } = this;
    const i = matrix.row++;
    const [from, to] = this.tokens(this.bin(i));
    const first = this.bin(i) * count;
    const each = 1 / (matrix.chosen.length * (to - from));
    const layers = new Set();
    for (const h of matrix.chosen) {
      const { layer, head } = look.heads[h];
      layers.add(layer.values);
      const row = layer.values.row(head, i);
      for (const j of matrix.keys) matrix.weight[first + this.bin(j)] += row[j] * each;
    }
    for (const values of layers) {
      for (const j of matrix.keys) if (values.sees(i, j)) matrix.seen[first + this.bin(j)] = 1;
    }
    for (let at = first; at < first + count; at++) {
      matrix.greatest = Math.max(matrix.greatest, matrix.weight[at]);
    }
  }

  /** The tokens that are not left out as keys. */
  keys(without) {
    const special = (t) => this.look.specials.some((word) => word.start <= t && t < word.stop);
    const every = Array.from({ length: this.look.size }, (_, token) => token);
    return every.filter((t) => (t === 0 ? !without.first : !(without.special && special(t))));
  }

  /** The matrix as pixels: shades of one colour, grey where nothing can be seen. */
  paint() {
    const style = getComputedStyle(document.documentElement);
    const glow = style.getPropertyValue("--glow").trim().split(" ").map(Number);
    const context = this.pixels.getContext("2d");
    context.clearRect(0, 0, this.count, this.count);
    context.fillStyle = style.getPropertyValue("--hidden");
    const image = new ImageData(this.count, this.count);
    const { weight, seen, greatest, row } = this.matrix;
    for (let at = 0; at < weight.length && at < this.bin(row) * this.count + this.count; at++) {
      if (!seen[at]) {
        context.fillRect(at % this.count, Math.floor(at / this.count), 1, 1);
        continue;
      }
      image.data.set([...glow, 255 * Math.sqrt(weight[at] / (greatest || 1))], at * 4);
    }
    const shades = document.createElement("canvas");
    shades.width = shades.height = this.count;
    shades.getContext("2d").putImageData(image, 0, 0);
    context.drawImage(shades, 0, 0);
  }

  draw() {
    if (!this.matrix) return;
    const { canvas, look } = this;
    const ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth;
    const context = canvas.getContext("2d");
    context.font = "11px system-ui, sans-serif";
    const labelled = look.size <= LABELLED;
    const longest = Math.max(...this.names.map((name) => context.measureText(name).width));
    this.left = labelled ? Math.min(longest + 8, width / 3) : 0;
    this.top = labelled ? Math.min(longest * 0.8 + 8, width / 4) : 0;
    this.side = Math.max(1, width - this.left - (labelled ? 12 : 0));
    canvas.style.height = `${this.top + this.side}px`;
    canvas.width = width * ratio;
    canvas.height = (this.top + this.side) * ratio;
    context.scale(ratio, ratio);
    context.imageSmoothingEnabled = false;
    context.drawImage(this.pixels, this.left, this.top, this.side, this.side);
    const style = getComputedStyle(document.documentElement);
    if (labelled) this.drawLabels(context, style);
    this.drawMark(context, style);
  }

  drawLabels(context, style) {
    const step = this.side / this.look.size;
    context.font = "11px system-ui, sans-serif";
    context.fillStyle = style.getPropertyValue("--quiet");
    context.textBaseline = "middle";
    this.look.words.forEach((word, index) => {
      const middle = ((word.start + word.stop) / 2) * step;
      context.textAlign = "right";
      context.fillText(this.names[index], this.left - 6, this.top + middle, this.left - 6);
      context.save();
      context.translate(this.left + middle, this.top - 5);
      context.rotate(-Math.PI / 3.2);
      context.textAlign = "left";
      context.fillText(this.names[index], 0, 0, this.top * 1.1);
      context.restore();
    });
  }

  drawMark(context, style) {
    const step = this.side / this.look.size;
    const { start, stop } = this.look.words[this.mark.index];
    const [at, size] = [start * step, Math.max(2, (stop - start) * step)];
    context.strokeStyle = style.getPropertyValue("--ink");
    context.lineWidth = 1.25;
    if (this.mark.away) context.strokeRect(this.left + 1, this.top + at, this.side - 2, size);
    else context.strokeRect(this.left + at, this.top + 1, size, this.side - 2);
  }

  /** The pair of tokens under a pointer, and the weight there; null outside. */
  at(event) {
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor(((event.clientX - box.left - this.left) / this.side) * this.count);
    const row = Math.floor(((event.clientY - box.top - this.top) / this.side) * this.count);
    if (Math.min(row, column) < 0 || Math.max(row, column) >= this.count) return null;
    const at = row * this.count + column;
    return {
      from: this.tokens(row)[0],
      to: this.tokens(column)[0],
      weight: this.matrix.weight[at],
      seen: this.matrix.seen[at] === 1,
    };
  }
}
