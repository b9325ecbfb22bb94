/* The grid of heads, the frame of the heat map, and what the page says about itself. */

let cells = [];

/** One column for each layer; the mean in the first row, then the heads. */
function buildGrid() {
  const { layers } = look;
  const most = Math.max(...layers.map((layer) => layer.heads));
  const { names } = layers.find((layer) => layer.heads === most);
  const size = `minmax(8px, ${layers.length > 40 ? 12 : 18}px)`;
  $("grid").style.gridTemplateColumns = `max-content repeat(${layers.length}, ${size})`;
  const every = Math.ceil(layers.length / 12);
  const numbers = layers.map((layer, at) =>
    element("span", { class: "axis", role: "columnheader" }, at % every ? "" : `${layer.number}`),
  );
  $("grid").append(element("div", { role: "row" }, element("span", { class: "axis" }), ...numbers));
  for (let head = -1; head < most; head++) {
    const side = head < 0 ? "mean" : `${names[head]}`;
    const row = element("div", { role: "row" });
    row.append(element("span", { class: "axis side", role: "rowheader" }, side));
    cells.push(layers.map((layer) => cell(layer, head)));
    row.append(...cells[head + 1]);
    $("grid").append(row);
  }
  $("grid").addEventListener("keydown", moveInGrid);
}

function cell(layer, head) {
  const kind = head < 0 ? "cell mean" : head < layer.heads ? "cell" : "cell none";
  const made = element("span", { role: "gridcell", class: kind, tabindex: -1 });
  if (head >= layer.heads) return made;
  const number = head < 0 ? null : layer.names[head];
  made.addEventListener("click", () => pickHead(layer.number, number));
  const say = () => tip(made, made.getAttribute("aria-label"));
  const hush = () => ($("tip").hidden = true);
  made.addEventListener("pointerenter", say);
  made.addEventListener("focus", say);
  made.addEventListener("pointerleave", hush);
  made.addEventListener("blur", hush);
  return made;
}

/** A head; chosen once more, all heads. */
function pickHead(layer, head) {
  const again = state.layer === layer && state.head === head;
  choose(again ? { layer: null, head: null } : { layer, head });
}

function moveInGrid(event) {
  const at = document.activeElement;
  const row = cells.findIndex((line) => line.includes(at));
  if (row < 0) return;
  const column = cells[row].indexOf(at);
  const moves = {
    ArrowRight: [row, column + 1],
    ArrowLeft: [row, column - 1],
    ArrowDown: [row + 1, column],
    ArrowUp: [row - 1, column],
    Home: [row, 0],
    End: [row, cells[row].length - 1],
  };
  if (event.key === "Enter" || event.key === " ") at.click();
  else if (event.key === "Escape") choose({ layer: null, head: null });
  else if (moves[event.key]) focusCell(...moves[event.key]);
  else return;
  event.preventDefault();
}

function focusCell(row, column) {
  const next = cells[row]?.[column];
  if (next && !next.classList.contains("none")) next.focus();
}

/** What each head gives: to the word pointed at, or to all that is not left out. */
function headValues() {
  const gaze = look.gaze(state.word);
  const weights = state.away ? gaze.gives : gaze.gets;
  if (state.pointed !== null) return look.single.map((h) => weights[h][state.pointed]);
  const { first } = look.aside;
  return look.single.map((h) => {
    const row = weights[h];
    let total = 0;
    row.forEach((x, w) => (total += absent(w) ? 0 : x));
    if (!state.away) return total / row.length;
    const partly = state.first && !absent(0) ? first[h][state.word] : 0;
    return Math.max(0, total - partly);
  });
}

function showGrid() {
  const values = headValues();
  const greatest = Math.max(...values) || 1;
  $("grid-title").textContent = gridTitle();
  look.layers.forEach((layer, column) => {
    const own = values.filter((_, h) => look.heads[h].layer === layer);
    const average = own.reduce((a, b) => a + b, 0) / own.length;
    [average, ...own].forEach((value, row) => {
      const made = cells[row][column];
      const head = row === 0 ? null : layer.names[row - 1];
      const selected = state.layer === layer.number && state.head === head;
      made.style.setProperty("--shade", (value / greatest).toFixed(3));
      made.setAttribute("aria-selected", selected);
      const which = head === null ? "mean of its heads" : `head ${head}`;
      made.setAttribute("aria-label", `layer ${layer.number}, ${which}: ${percent(value)}`);
    });
  });
  const column = Math.max(0, look.layers.findIndex((layer) => layer.number === state.layer));
  const row = state.head === null ? 0 : look.layers[column].names.indexOf(state.head) + 1;
  for (const line of cells) for (const made of line) made.tabIndex = -1;
  cells[row][column].tabIndex = 0;
}

function gridTitle() {
  if (state.pointed !== null) return `${pair(state.pointed)} in each head`;
  if (!state.away) return `What each head gives ${quoted(state.word)}, from a word on average`;
  const beyond = state.first ? "beyond the first token" : "to all tokens";
  return `What ${quoted(state.word)} gives ${beyond} in each head`;
}

function buildMap() {
  const word = (token) => look.words.findIndex((w) => w.start <= token && token < w.stop);
  $("map").addEventListener("pointermove", (event) => {
    const at = map.at(event);
    if (!at) {
      $("tip").hidden = true;
      return;
    }
    const value = at.seen ? percent(at.weight) : "hidden or left out";
    const place = { left: event.clientX + 12, top: event.clientY, bottom: event.clientY + 12 };
    tip(place, `${quoted(word(at.from))} → ${quoted(word(at.to))}: ${value}`);
  });
  $("map").addEventListener("pointerleave", () => ($("tip").hidden = true));
  $("map").addEventListener("click", (event) => {
    const at = map.at(event);
    if (!at) return;
    choose({ word: word(state.away ? at.from : at.to) });
    reveal(words[state.word]);
  });
}

/** What the means of a page that lacks some layers run over. */
function meansHere() {
  if (!look.partial) return "The mean of all runs over the others too";
  if (!look.told) return "Its means run over these alone";
  const all = opened.layer === ASKED ? "that were asked for" : `${total} layers`;
  return `Its means run over these alone, but for ${quoted(look.told.word)} over all ${all}`;
}

function buildFrame() {
  const { data, layers } = look;
  const sizes = [...new Set(layers.map((layer) => layer.heads))];
  const count = look.partial ? held : `${total} layers`;
  const each = sizes.length === 1 ? `${count} × ${sizes[0]} heads` : count;
  const kind = data.causal ? "causal" : "bidirectional";
  const made = data.words[data.generated] ? data.size - data.words[data.generated].start : 0;
  const tokens = data.size === 1 ? "1 token" : `${counted(data.size)} tokens`;
  const generated = made ? `, ${counted(made)} of them generated` : "";
  $("facts").textContent = `${each}, ${kind}, ${tokens}${generated}`;
  const notes = [
    "Computed on this page, offline. Weights above 0.01% are within 1% of the model’s. " +
      "They say where a head gathers information, not why the model decides as it does.",
  ];
  if (held) {
    const kept = layers.map((layer) => layer.number).join(", ");
    const those = data.asked.length ? "Those asked for come first; the others are those" : "They are those";
    notes.unshift(
      `This page holds the heads of ${held}, so as not to grow too large: ${kept}. ` +
        `${those} whose weights tell most: the mean share of a row’s weight that is on no sink ` +
        "and no special token, times how far that part is from even, in bits. " +
        meansHere() +
        "; regard look --layer keeps other layers.",
    );
  }
  $("foot").replaceChildren(...notes.map((note) => element("p", {}, note)));
  for (const part of [$("controls"), document.querySelector("main")]) part.hidden = false;
}
