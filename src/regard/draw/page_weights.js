"use strict";
/*
 * What the page knows, in numbers: the weights of any row or column of any kept head.
 *
 * A layer holds either its weights, as logarithms, or its queries and keys, from which a weight is
 * exp(query · key - lse) when it is asked for. Rows of tokens become words as in look.py: weights
 * on the tokens of a word are summed, the rows of its tokens averaged.
 */

const HIDDEN = 65535; // the code of a weight of zero
const STEPS = 2000; // codes for a factor of e
const SMALLEST = 1e-6; // a rest below this is rounding, and is not blown up to shares

function decode(base64, Kind) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return new Kind(bytes.buffer);
}

/** The weights of one layer, (heads, size, size), stored as round(-log(weight) * STEPS). */
class StoredLayer {
  constructor(spec, size) {
    this.size = size;
    this.codes = decode(spec.weights, Uint16Array);
  }

  weight(at) {
    const code = this.codes[at];
    return code === HIDDEN ? 0 : Math.exp(-code / STEPS);
  }

  row(head, i) {
    const first = (head * this.size + i) * this.size;
    return Float64Array.from({ length: this.size }, (_, j) => this.weight(first + j));
  }

  column(head, j) {
    const first = head * this.size * this.size + j;
    return Float64Array.from({ length: this.size }, (_, i) => this.weight(first + i * this.size));
  }

  sees(i, j) {
    for (let at = i * this.size + j; at < this.codes.length; at += this.size * this.size) {
      if (this.codes[at] !== HIDDEN) return true;
    }
    return false;
  }
}

/** Queries and keys of one layer; `unit` turns products of their stored numbers into scores. */
class ProductLayer {
  constructor(spec, size, mask) {
    const Kind = spec.bits === 16 ? Int16Array : Float32Array;
    this.size = size;
    this.width = spec.width;
    this.group = spec.heads / spec.kvHeads;
    this.query = decode(spec.query, Kind);
    this.key = decode(spec.key, Kind);
    this.unit = decode(spec.unit, Float32Array);
    this.lse = decode(spec.lse, Float32Array);
    this.softcap = spec.softcap;
    this.mask = mask;
  }

  weight(head, i, product) {
    const score = this.softcap ? this.softcap * Math.tanh(product / this.softcap) : product;
    return Math.exp(score - this.lse[head * this.size + i]);
  }

  /** One stored vector in units of the score. */
  scaled(vectors, first, head) {
    return Float64Array.from(
      { length: this.width },
      (_, c) => vectors[first + c] * this.unit[head * this.width + c],
    );
  }

  row(head, i) {
    const { width, key, size } = this;
    const query = this.scaled(this.query, (head * size + i) * width, head);
    const first = Math.floor(head / this.group) * size * width;
    const row = new Float64Array(size);
    for (let j = this.mask.start[i]; j < this.mask.stop[i]; j++) {
      let product = 0;
      for (let c = 0, at = first + j * width; c < width; c++, at++) product += query[c] * key[at];
      row[j] = this.weight(head, i, product);
    }
    return row;
  }

  column(head, j) {
    const { width, query, size } = this;
    const kv = Math.floor(head / this.group);
    const key = this.scaled(this.key, (kv * size + j) * width, head);
    const column = new Float64Array(size);
    for (let i = 0; i < size; i++) {
      if (!this.sees(i, j)) continue;
      let product = 0;
      for (let c = 0, at = (head * size + i) * width; c < width; c++, at++) {
        product += key[c] * query[at];
      }
      column[i] = this.weight(head, i, product);
    }
    return column;
  }

  sees(i, j) {
    return this.mask.start[i] <= j && j < this.mask.stop[i];
  }
}

/**
 * One text seen through one model. Heads of all layers stand in one list, `heads`; the mean of all
 * that the model has is the last of them if the page does not hold every layer. `single` are the
 * places of the real ones, and `all` of those whose mean is the mean of all; `partial` tells if even
 * that knows no more than the layers that the page holds. What the page opens with may be the mean of
 * more than it holds: `told`, which knows one word.
 */
class Look {
  constructor(data) {
    this.data = data;
    this.size = data.size;
    this.words = data.words;
    const masks = data.masks.map((mask) => ({
      start: decode(mask.start, Int32Array),
      stop: decode(mask.stop, Int32Array),
    }));
    const layerOf = (spec) => ({
      number: spec.number,
      heads: spec.heads,
      names: spec.names, // the model's numbers of them
      values: spec.weights
        ? new StoredLayer(spec, data.size)
        : new ProductLayer(spec, data.size, masks[spec.mask]),
      learned: spec.learned ? decode(spec.learned, Float32Array) : null,
    });
    this.layers = data.layers.map(layerOf);
    this.heads = this.layers.flatMap((layer) =>
      Array.from({ length: layer.heads }, (_, head) => ({ layer, head })),
    );
    this.single = this.heads.map((_, h) => h);
    this.all = this.single;
    this.partial = data.left.length > 0 && !data.mean;
    if (data.mean) this.all = [this.heads.push({ layer: layerOf(data.mean), head: 0 }) - 1];
    this.specials = this.words.slice(1).filter((word) => word.special);
    this.gazes = new Map();
    this.told = data.told ? this.decodedMeans(data.told) : null;
  }

  decodedMeans(told) {
    const names = ["gives", "gets", "first", "special", "learned"];
    const arrays = names.map((name) => [name, Float64Array.from(decode(told[name], Float32Array))]);
    return { ...told, ...Object.fromEntries(arrays) };
  }

  /** A word in its sentence. */
  sign(index) {
    const { text } = this.words[index];
    return text.trim() ? text : text.includes("\n") ? "↵" : "␣";
  }

  /** A word outside of its sentence, as the command line names it: "it#2" is the second "it". */
  name(index) {
    const { repeat } = this.words[index];
    return this.sign(index) + (repeat > 1 ? `#${repeat}` : "");
  }

  /** Tokens' numbers summed over the tokens of each word. */
  byWord(numbers) {
    return Float64Array.from(this.words, (word) => {
      let sum = 0;
      for (let t = word.start; t < word.stop; t++) sum += numbers[t];
      return sum;
    });
  }

  averaged(numbers) {
    return this.byWord(numbers).map((sum, w) => sum / (this.words[w].stop - this.words[w].start));
  }

  /** For each head: what each word's rows give to keys start to stop. */
  columns(start, stop) {
    return this.heads.map(({ layer, head }) => {
      const total = new Float64Array(this.size);
      for (let j = start; j < stop; j++) add(total, layer.values.column(head, j));
      return this.averaged(total);
    });
  }

  /** For each head: what each word gives to the first token, special tokens, learned sinks. */
  get aside() {
    if (!this._aside) {
      const special = this.heads.map(() => new Float64Array(this.words.length));
      for (const word of this.specials) {
        this.columns(word.start, word.stop).forEach((column, h) => add(special[h], column));
      }
      const learned = this.heads.map(({ layer, head }) =>
        layer.learned
          ? this.averaged(layer.learned.subarray(head * this.size, (head + 1) * this.size))
          : new Float64Array(this.words.length),
      );
      this._aside = { first: this.columns(0, 1), special, learned };
    }
    return this._aside;
  }

  /** For each head: what a word gives to, and gets from, every word. */
  gaze(index) {
    if (!this.gazes.has(index)) {
      const { start, stop } = this.words[index];
      const gives = this.heads.map(({ layer, head }) => {
        const total = new Float64Array(this.size);
        for (let i = start; i < stop; i++) add(total, layer.values.row(head, i));
        return this.byWord(total).map((sum) => sum / (stop - start));
      });
      if (this.gazes.size > 20) this.gazes.clear();
      this.gazes.set(index, { gives, gets: this.columns(start, stop) });
    }
    return this.gazes.get(index);
  }

  /** Whether a word is left out altogether as something to look at. */
  absentKey(index, without) {
    if (index === 0) return without.first && this.words[0].stop === 1;
    return without.special && this.words[index].special;
  }

  /** The means over heads of what a word gives and gets, and of what each gives to sinks. */
  means(index, chosen) {
    const gaze = this.gaze(index);
    const arrays = { ...this.aside, gives: gaze.gives, gets: gaze.gets };
    return Object.fromEntries(Object.entries(arrays).map(([name, x]) => [name, mean(x, chosen)]));
  }

  /**
   * What a word gives (away) or gets, by such means: the weight, and the share of what is not left
   * out. If the word itself would be left out, nothing is.
   */
  shares(index, away, means, without) {
    const { first, special, learned } = means;
    const weight = away ? means.gives : means.gets;
    if (away) {
      const kept = Float64Array.from(weight, (x, w) => (this.absentKey(w, without) ? 0 : x));
      if (without.first && kept[0] > 0) kept[0] = Math.max(0, kept[0] - first[index]);
      const rest = kept.reduce((a, b) => a + b, 0);
      return { weight, share: kept.map((x) => (rest > SMALLEST ? x / rest : 0)) };
    }
    if (this.absentKey(index, without)) without = { first: false, special: false };
    const gone = Float64Array.from(learned);
    const kept = Float64Array.from(weight);
    if (without.first) {
      add(gone, first);
      if (this.words[index].start === 0) first.forEach((x, w) => (kept[w] -= x));
    }
    if (without.special) add(gone, special);
    const share = kept.map((x, w) => {
      const rest = 1 - gone[w];
      const absent = without.special && this.words[w].special;
      return absent || rest <= SMALLEST ? 0 : Math.max(0, x / rest);
    });
    return { weight, share };
  }

  /** Whether any token of word `from` may see any of word `to`, in any of some layers. */
  sees(from, to, layers) {
    const [a, b] = [this.words[from], this.words[to]];
    return layers.some(({ values }) => {
      for (let i = a.start; i < a.stop; i++) {
        for (let j = b.start; j < b.stop; j++) if (values.sees(i, j)) return true;
      }
      return false;
    });
  }
}

function add(total, more) {
  for (let i = 0; i < total.length; i++) total[i] += more[i];
}

/** The mean of some of the arrays. */
function mean(arrays, chosen) {
  const total = new Float64Array(arrays[0].length);
  for (const h of chosen) add(total, arrays[h]);
  return total.map((x) => x / chosen.length);
}

if (typeof module !== "undefined") module.exports = { Look, HIDDEN, STEPS };
