/* The page of a long text: what is chosen, and how it is shown. */

const FAINTEST = 0.04; // of the greatest: below this nothing is shaded

const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const count = data.edges.length;
const shares = numbers(data.shares, Float32Array);
const maps = new Map();
const map = new PassageMap($("map"));
const state = { layer: null, row: null, pointed: null };
let passages = []; // the text, cut as the map is
let words = [];

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
const counted = (count) => count.toLocaleString("en");
const sign = (text) => (text.trim() ? text : text.includes("\n") ? "↵" : "␣");

function percent(share) {
  if (share === 0) return "0%";
  const digits = share >= 0.0095 ? 0 : share >= 0.00095 ? 1 : share >= 0.000095 ? 2 : 3;
  return `${(100 * share).toFixed(digits)}%`;
}

/** The map of the chosen layer, or that of all. */
function chosenMap() {
  if (!maps.has(state.layer)) {
    const layer = data.layers.find(({ number }) => number === state.layer);
    maps.set(state.layer, new Passages(layer ? layer.map : data.map, count));
  }
  return maps.get(state.layer);
}

function choose(changes) {
  Object.assign(state, changes);
  show();
}

function show() {
  const all = data.layers.length === 1 ? "the layer" : `all ${data.layers.length} layers`;
  const which = state.layer === null ? `mean of ${all}` : `layer ${state.layer}`;
  $("map-title").textContent = `Where the text looks (${which})`;
  map.show(chosenMap(), state.row);
  showPointed();
  for (const line of $("layers").tBodies[0].rows) {
    line.setAttribute("aria-selected", Number(line.dataset.layer) === state.layer);
  }
  showText();
}

// Text

function buildText() {
  passages = data.edges.map((_, bin) => element("span", { class: "passage", "data-bin": bin }));
  words = data.words.map(({ text, special }) => {
    const kind = `word${special ? " special" : ""}${text.trim() ? "" : " blank"}`;
    return element("span", { class: kind }, sign(text));
  });
  data.words.forEach((word, index) => {
    const mark = index === data.generated ? [" ", element("span", { class: "mark" }, "▸"), " "] : [];
    const broken = sign(word.text) === "↵" ? ["\n"] : [];
    passages[bin(word.start)].append(word.gap, ...mark, words[index], ...broken);
  });
  $("text").append(...passages);
  $("text").addEventListener("click", (event) => {
    const passage = event.target.closest(".passage");
    if (passage) pin(Number(passage.dataset.bin));
  });
}

const bin = (token) => data.edges.findIndex(([, stop]) => token < stop);

/** A passage whose looks are shown in the text; chosen once more, none. */
function pin(row) {
  choose({ row: state.row === row ? null : row });
  if (state.row !== null) reveal(passages[row]);
}

/** Scrolls the text, not the page. */
function reveal(part) {
  const [box, own] = [$("text").getBoundingClientRect(), part.getBoundingClientRect()];
  $("text").scrollTop += own.top - box.top - box.height / 3;
}

function showText() {
  const { row } = state;
  $("text-title").textContent =
    row === null
      ? "Words are shaded by what they get; click a passage to see what it looks at"
      : "What the framed passage looks at; click it again to let go";
  const greatest = row === null ? Math.log(Math.max(...shares) / floor()) : 1;
  words.forEach((word, index) => {
    const part = row === null ? Math.log(shares[index] / floor()) / greatest : 0;
    word.style.backgroundColor = part > FAINTEST ? `rgb(var(--amber) / ${part})` : "";
  });
  passages.forEach((passage, column) => {
    const level = row === null ? 0 : (chosenMap().level(row, column) ?? 0);
    passage.style.backgroundColor = level > FAINTEST ? `rgb(var(--amber) / ${level})` : "";
    passage.classList.toggle("from", column === row);
  });
}

/** The share from which on words are shaded: three times an even one. */
const floor = () => 3 / words.length;

// Words and layers

function buildWords() {
  const lines = data.ranked.map(([index, before, after]) => {
    const name = element("b", {}, sign(data.words[index].text));
    const line = element(
      "li",
      {},
      element("span", { class: "share" }, percent(shares[index])),
      element("span", { class: "where" }, before, name, after),
      element("span", { class: "token" }, `token ${counted(data.words[index].start)}`),
    );
    line.addEventListener("click", () => {
      reveal(words[index]);
      words[index].classList.add("pointed");
      setTimeout(() => words[index].classList.remove("pointed"), 2500);
    });
    return line;
  });
  $("words").append(...lines);
}

function buildLayers() {
  const lines = data.layers.map((layer) => {
    const parts = ["aside", "near", "far"].map((name) => [name, mean(layer[name])]);
    const bar = element("div", { class: "shares", role: "img" });
    bar.setAttribute("aria-label", parts.map(([name, x]) => `${name} ${percent(x)}`).join(", "));
    for (const [name, share] of parts) {
      const part = element("span", { class: name });
      part.style.width = `${100 * share}%`;
      bar.append(part);
    }
    bar.title = bar.getAttribute("aria-label");
    const far = layer.far.indexOf(Math.max(...layer.far));
    const farthest = `L${layer.number}H${layer.heads[far]} ${percent(layer.far[far])}`;
    const number = element("button", { type: "button" }, `${layer.number}`);
    const cells = [number, bar, mean(layer.bits).toFixed(1), farthest];
    const line = element("tr", { "data-layer": layer.number });
    line.append(...cells.map((cell) => element("td", {}, cell)));
    line.addEventListener("click", () =>
      choose({ layer: state.layer === layer.number ? null : layer.number }),
    );
    return line;
  });
  $("layers").tBodies[0].append(...lines);
  const rest = data.special ? "the first and special tokens" : "the first token";
  $("layers-note").textContent =
    `Set aside: ${rest}, and learned sinks, where heads rest that have nothing to look at. ` +
    `Near: the ${data.near} tokens on either side. Bits: the entropy of a row. ` +
    "L2H5 is head 5 of layer 2. Click a layer to see its map.";
}

// Map

function buildMap() {
  const point = (event) => {
    state.pointed = map.at(event);
    showPointed();
  };
  $("map").addEventListener("pointermove", point);
  $("map").addEventListener("click", (event) => {
    point(event);
    pin(state.pointed[0]);
  });
}

/** The pair of passages last pointed at; that of the greatest weight before. */
function showPointed() {
  const [row, column] = state.pointed ?? chosenMap().greatest();
  $("from").textContent = passages[row].textContent;
  $("to").textContent = passages[column].textContent;
  const hidden = chosenMap().level(row, column) === null;
  const most = state.pointed ? "" : ", the greatest of this map";
  $("weight").textContent = hidden
    ? "cannot be seen"
    : percent(chosenMap().weight(row, column)) + most;
}

function buildFrame() {
  const heads = data.layers.reduce((total, layer) => total + layer.heads.length, 0);
  const made = data.words[data.generated] ? data.size - data.words[data.generated].start : 0;
  const cut = `the first ${counted(data.size - made)} of ${counted(data.whole ?? 0)} tokens`;
  const read = data.whole ? cut : `${counted(data.size)} tokens`;
  const kind = data.causal ? "causal" : "bidirectional";
  const of = data.whole ? "generated behind them" : "of them generated";
  const generated = made ? `, ${counted(made)} ${of}` : "";
  $("facts").textContent = `${data.layers.length} layers, ${counted(heads)} heads in all, ${kind}, ${read}${generated}`;
  $("foot").textContent =
    "Drawn by regard, from the weights of one run. Weights say where information was gathered, " +
    "not why a decision was made.";
  document.querySelector("main").hidden = false;
}

buildText();
buildWords();
buildLayers();
buildMap();
buildFrame();
show();
