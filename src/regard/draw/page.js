/* The page itself: what is chosen, and how it is shown. */

const RANKED = 8;
const LONG = 60; // a text of more words is set smaller, below what is said of it
const FAINTEST = 0.04; // of the greatest share: below this a word is not shaded
const LISTED = 5; // hidden words named in a note; more are counted
const ASKED = "asked"; // the choice of several layers that were asked for

const $ = (id) => document.getElementById(id);
const look = new Look(JSON.parse($("data").textContent));
const opened = { ...look.data.open, layer: look.data.asked.length > 1 ? ASKED : look.data.open.layer };
const state = { ...opened, away: true, first: true, special: true, pointed: null };
const total = look.layers.length + look.data.left.length;
const held = look.data.left.length ? `${look.layers.length} of ${total} layers` : "";
const map = new HeatMap($("map"), look, look.words.map((_, index) => look.sign(index)));

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const name = (index) => look.name(index);
const sign = (index) => look.sign(index);
const quoted = (index) => (look.words[index].special ? name(index) : `“${name(index)}”`);

const counted = (count) => count.toLocaleString("en");

function percent(share) {
  const digits = share >= 0.0095 ? 0 : share >= 0.00095 ? 1 : 2;
  return `${(100 * share).toFixed(digits)}%`;
}

/** The heads that the means run over, as places in look.heads. */
function chosen() {
  return state.layer === null ? look.all : chosenSingle();
}

/** The real heads that are chosen, of those that the page holds. */
function chosenSingle() {
  const layers = state.layer === ASKED ? look.data.asked : [state.layer];
  return look.single.filter(
    (h) =>
      (state.layer === null || layers.includes(look.heads[h].layer.number)) &&
      (state.head === null || headNumber(h) === state.head),
  );
}

/** As the model counts: a run may hold some of its heads. */
const headNumber = (h) => look.heads[h].layer.names[look.heads[h].head];

/** Whether all is as the page opened, with a mean of layers that it does not hold. */
function isTold() {
  return look.told?.word === state.word && state.layer === opened.layer;
}

function without() {
  return { first: state.first, special: state.special && look.specials.length > 0 };
}

/** What is chosen, in words; of the mean of all, how much of it is shown. */
function chosenName(whole) {
  const count = chosen().length;
  if (state.head !== null) return `layer ${state.layer}, head ${state.head}`;
  if (state.layer === ASKED) {
    const here = look.data.asked.filter((n) => whole || look.layers.some((l) => l.number === n));
    return `mean of layers ${here.join(", ")}`;
  }
  if (state.layer !== null) return `mean of the ${count} heads of layer ${state.layer}`;
  return whole || !look.partial ? "mean of all layers and heads" : `mean of only ${held}`;
}

/** Change what is chosen and show it. */
function choose(changes) {
  Object.assign(state, changes);
  show();
}

function show() {
  const told = isTold() ? look.told : null;
  const means = told ?? look.means(state.word, chosen());
  const seen = look.shares(state.word, state.away, means, without());
  const layers = [...new Set(chosen().map((h) => look.heads[h].layer))];
  const hides = (_, w) =>
    state.away ? !look.sees(state.word, w, layers) : !look.sees(w, state.word, layers);
  const known = state.away ? told?.hiddenAway : told?.hiddenBack;
  seen.means = means;
  seen.hidden = known ?? look.words.map(hides);
  seen.absent = look.words.map((_, w) => absent(w));
  shown = seen;
  const verb = state.away ? "looks at" : "is looked at by";
  $("title").textContent = `${quoted(state.word)} ${verb} (${chosenName(told !== null)})`;
  showControls();
  showText(seen);
  showRanking(seen);
  showNotes(seen);
  showGrid();
  $("map-title").textContent = `Every token’s weights: ${chosenName(false)}`;
  map.show(chosen(), without(), { index: state.word, away: state.away });
}

let shown = null;

/** Whether a word is left out: as a key, or in the other direction as a query. */
function absent(index) {
  if (state.away) return look.absentKey(index, without());
  if (look.absentKey(state.word, without())) return false;
  return without().special && look.words[index].special;
}

// Controls

function buildControls() {
  const { layers } = look;
  $("layer").append(
    new Option("all", ""),
    ...(opened.layer === ASKED ? [new Option(look.data.asked.join(", "), ASKED)] : []),
    ...layers.map((n) => new Option(n.number, n.number)),
  );
  const first = look.words[0];
  const label = $("first").parentElement.querySelector(".token");
  label.textContent = first.stop === 1 ? quoted(0) : `of ${quoted(0)}`;
  const specials = [...new Set(look.specials.map((word) => word.text))];
  $("special").parentElement.hidden = specials.length === 0;
  $("special").parentElement.querySelector(".token").textContent = specials.join(" ");
  for (const radio of document.getElementsByName("direction")) {
    radio.addEventListener("change", () => choose({ away: radio.value === "away" }));
  }
  $("layer").addEventListener("change", (event) =>
    choose({ layer: choiceOf(event.target.value), head: null }),
  );
  $("head").addEventListener("change", (event) => choose({ head: choiceOf(event.target.value) }));
  for (const id of ["first", "special"]) {
    $(id).addEventListener("change", (event) => choose({ [id]: event.target.checked }));
  }
  $("controls").addEventListener("submit", (event) => event.preventDefault());
}

const choiceOf = (text) => (text === "" ? null : text === ASKED ? ASKED : Number(text));

function showControls() {
  const layer = look.layers.find((n) => n.number === state.layer);
  const numbers = layer ? layer.names : [];
  $("layer").options[0].text = look.partial && !isTold() ? "those here" : "all";
  $("layer").value = state.layer ?? "";
  $("head").replaceChildren(
    new Option("all", ""),
    ...numbers.map((head) => new Option(head, head)),
  );
  $("head").disabled = numbers.length === 0;
  $("head").value = state.head ?? "";
}

// Text

let words = [];

function buildText() {
  if (look.words.length > LONG) {
    $("reading").classList.add("long");
    $("reading").append($("keys"), $("text"));
  }
  words = look.words.map((word, index) => {
    const kind = `word${word.special ? " special" : ""}${word.text.trim() ? "" : " blank"}`;
    return element("span", { role: "option", class: kind, tabindex: -1 }, sign(index));
  });
  look.words.forEach((word, index) => {
    // A line break that is a word of its own is shown as a sign, and breaks the line after it.
    const mark = index === look.data.generated ? [" ", element("span", { class: "mark" }, "▸"), " "] : [];
    $("text").append(word.gap, ...mark, words[index], ...(sign(index) === "↵" ? ["\n"] : []));
  });
  words.forEach((word, index) => {
    word.addEventListener("click", () => pick(index));
    word.addEventListener("pointerenter", () => point(index));
    word.addEventListener("pointerleave", () => point(null));
    word.addEventListener("focus", () => point(index));
    word.addEventListener("blur", () => point(null));
  });
  $("text").addEventListener("keydown", moveInText);
}

function pick(index) {
  choose({ word: index });
  words[index].focus({ preventScroll: true });
}

/** Scrolls a long text, not the page. */
function reveal(word) {
  const [box, own] = [$("text").getBoundingClientRect(), word.getBoundingClientRect()];
  $("text").scrollTop += own.top - box.top - box.height / 3;
}

function moveInText(event) {
  const index = words.indexOf(document.activeElement);
  if (index < 0) return;
  const forward = /[\p{Script=Arabic}\p{Script=Hebrew}]/u.test(sign(index)) ? -1 : 1;
  const moves = {
    ArrowRight: () => index + forward,
    ArrowLeft: () => index - forward,
    ArrowDown: () => inLine(index, 1),
    ArrowUp: () => inLine(index, -1),
    Home: () => 0,
    End: () => words.length - 1,
  };
  if (event.key === "Enter" || event.key === " ") pick(index);
  else if (moves[event.key]) words[moves[event.key]()]?.focus();
  else return;
  event.preventDefault();
}

/** The word above or below another: the nearest of the next line. */
function inLine(index, direction) {
  const centre = (box) => box.left + box.width / 2;
  const here = words[index].getBoundingClientRect();
  let best = index;
  let line = null;
  for (let at = index + direction; at >= 0 && at < words.length; at += direction) {
    const box = words[at].getBoundingClientRect();
    if (Math.abs(box.top - here.top) < here.height / 2) continue;
    line ??= box.top;
    if (Math.abs(box.top - line) > here.height / 2) break;
    const nearer = (other) => Math.abs(centre(box) - centre(here)) < Math.abs(other - centre(here));
    if (best === index || nearer(centre(words[best].getBoundingClientRect()))) best = at;
  }
  return best;
}

function showText(seen) {
  const greatest = Math.max(...seen.share) || 1;
  words.forEach((word, index) => {
    const part = seen.share[index] / greatest;
    word.style.backgroundColor = part > FAINTEST ? `rgb(var(--amber) / ${part})` : "";
    word.classList.toggle("absent", seen.absent[index]);
    word.classList.toggle("hidden", seen.hidden[index]);
    word.setAttribute("aria-selected", index === state.word);
    word.setAttribute("aria-label", `${name(index)}, ${told(index, seen)}`);
    word.tabIndex = index === state.word ? 0 : -1;
  });
}

/** What is known of one word, in words. */
function told(index, seen) {
  if (seen.hidden[index]) return state.away ? "cannot be seen" : "cannot see it";
  if (seen.absent[index]) return `left out, weight ${percent(seen.weight[index])}`;
  return `${percent(seen.share[index])} (weight ${percent(seen.weight[index])})`;
}

/** Point at a word: its numbers beside it, and its weight in every head. */
function point(index) {
  state.pointed = index;
  showGrid();
  if (index === null) $("tip").hidden = true;
  else tip(words[index], `${pair(index)}: ${told(index, shown)}`);
}

/** Point at a word from the ranking, which has its numbers: show where it stands. */
function locate(index) {
  state.pointed = index;
  words.forEach((word, at) => word.classList.toggle("pointed", at === index));
  showGrid();
}

function pair(index) {
  const [from, to] = state.away ? [state.word, index] : [index, state.word];
  return `${quoted(from)} → ${quoted(to)}`;
}

/** A line of text above an element, or at a place on the screen. */
function tip(target, text) {
  const box = target.getBoundingClientRect ? target.getBoundingClientRect() : target;
  const note = $("tip");
  note.textContent = text;
  note.hidden = false;
  const left = Math.min(box.left, window.innerWidth - note.offsetWidth - 8);
  const above = box.top - note.offsetHeight - 8;
  note.style.left = `${Math.max(8, left)}px`;
  note.style.top = `${above > 4 ? above : box.bottom + 8}px`;
}

// Ranking and notes

function showRanking(seen) {
  const order = look.words.map((_, w) => w).filter((w) => seen.share[w] > 0);
  order.sort((a, b) => seen.share[b] - seen.share[a]);
  const weights = state.away ? look.gaze(state.word).gives : look.gaze(state.word).gets;
  const items = order.slice(0, RANKED).map((index) => {
    const best = chosenSingle().reduce((a, b) => (weights[b][index] > weights[a][index] ? b : a));
    const { layer } = look.heads[best];
    const bar = element("span", { class: "bar", "aria-hidden": "true" });
    bar.style.width = `${(100 * seen.share[index]) / seen.share[order[0]]}%`;
    bar.style.opacity = 0.35 + (0.65 * seen.share[index]) / seen.share[order[0]];
    const most = `up to ${percent(weights[best][index])} in L${layer.number}H${headNumber(best)}`;
    const line = element(
      "li",
      {},
      element("span", { class: "name" }, name(index)),
      bar,
      element("span", { class: "share" }, percent(seen.share[index])),
      element("span", { class: "best" }, state.head === null ? most : ""),
    );
    line.addEventListener("pointerenter", () => locate(index));
    line.addEventListener("pointerleave", () => locate(null));
    return line;
  });
  $("ranking").replaceChildren(...items);
}

function showNotes(seen) {
  const beyond = isTold() || (held && !look.partial && state.layer === null);
  const single = beyond ? `Single heads are those of ${held}.` : "";
  const notes = [state.away ? leftOut(seen) : basis(), hiddenWords(seen), single].filter(Boolean);
  $("notes").replaceChildren(...notes.map((note) => element("p", {}, note)));
}

/** What the word gives to tokens that are left out. */
function leftOut(seen) {
  const { first, special, learned } = seen.means;
  const share = (means) => means[state.word];
  const parts = [];
  if (state.first) parts.push(`${percent(share(first))} to the first token (${firstToken()})`);
  if (without().special) parts.push(`${percent(share(special))} to other special tokens`);
  if (share(learned) > 0) parts.push(`${percent(share(learned))} to learned sinks`);
  if (parts.length === 0) return "Shares are of all weights.";
  if (!seen.share.some((x) => x > 0)) {
    return `${quoted(state.word)} gives ${parts.join(" and ")}, and nothing to other words.`;
  }
  return `Left out: ${parts.join(" and ")}. Shares are of the rest.`;
}

const firstToken = () =>
  look.words[0].stop === 1 ? quoted(0) : `the beginning of ${quoted(0)}`;

function basis() {
  if (look.absentKey(state.word, without())) {
    return `${quoted(state.word)} is a token that is left out elsewhere: shares of all weights.`;
  }
  const parts = [state.first && "the first token", without().special && "special tokens"];
  const beyond = parts.filter(Boolean).join(" and ");
  return beyond
    ? `Each share is of what that word gives beyond ${beyond}.`
    : "Each share is of all that word gives.";
}

function hiddenWords(seen) {
  const hidden = look.words.map((_, w) => w).filter((w) => seen.hidden[w]);
  if (hidden.length === 0) return "";
  const beyond = (w) => (state.away ? w > state.word : w < state.word);
  const all = look.words.filter((_, w) => beyond(w)).length;
  const causal = hidden.every(beyond) && hidden.length === all;
  const place = causal ? (state.away ? "after it" : "before it") : "that the mask hides";
  const text = hidden.map((w) => (look.words[w].gap ? " " : "") + sign(w)).join("");
  const which =
    hidden.length > LISTED ? `the ${counted(hidden.length)} words ${place}` : `“${text.trim()}”`;
  if (!state.away) return `Cannot see ${quoted(state.word)}: ${which}.`;
  return `Cannot be seen: ${which}${causal ? ", as a causal model only looks back" : ""}.`;
}

buildControls();
buildText();
buildGrid();
buildMap();
buildFrame();
show();
reveal(words[state.word]);
