"use strict";
// Text only ever becomes textContent: what a model was trained on, or what is typed, is never markup.

const find = (selector, within = document) => within.querySelector(selector);
const made = (tag, text, className = "") => {
  const element = document.createElement(tag);
  element.textContent = text;
  element.className = className;
  return element;
};
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(3);

const cards = [];
let round = 0; // answers to an earlier text come too late

async function ask(path, values) {
  let response;
  try {
    response = await fetch(path, values && {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(values),
    });
  } catch {
    throw new Error("The server does not answer. Is bakeoff try still running?");
  }
  const answer = await response.json().catch(() => ({ error: `HTTP status ${response.status}` }));
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

function texts() {
  const second = find("#second").value;
  return second.trim() ? [find("#first").value, second] : [find("#first").value];
}

function newCard(run, index) {
  const element = find("#card").content.firstElementChild.cloneNode(true);
  const title = find("h2", element);
  // A name may break where its options do.
  title.append(...run.name.split(/(?<=[:,=_])/).flatMap((part) => [part, document.createElement("wbr")]));
  title.id = `run-${index}`;
  element.setAttribute("aria-labelledby", title.id);
  find(".where", element).textContent = run.where;
  find("#cards").append(element);
  const card = { run, index, element };
  const select = find("select", element);
  for (let layer = 0; layer < run.layers; layer += 1) select.append(new Option(`${layer + 1} of ${run.layers}`, layer));
  select.value = run.layers - 1;
  select.addEventListener("change", () => look(card));
  find("details", element).addEventListener("toggle", () => look(card));
  listenToTokens(element);
  listenToPattern(card);
  return card;
}

function showAnswer(card, answer) {
  const { element, run } = card;
  find(".answer", element).className = "answer";
  find(".label", element).textContent = answer.label;
  find(".probability", element).textContent = percent(answer.probabilities[answer.label]);
  find(".bars", element).replaceChildren(...run.labels.map((label) => {
    const row = document.createElement("div");
    const name = made("dt", label);
    name.title = label;
    const bar = made("dd", "", "bar");
    bar.style.setProperty("--share", answer.probabilities[label]);
    row.append(name, bar, made("dd", percent(answer.probabilities[label])));
    return row;
  }));
  const cost = find(".cost", element);
  cost.textContent = `${answer.milliseconds.toFixed(1)} ms · ${answer.tokens.toLocaleString("en")} tokens`;
  if (answer.truncated) cost.append(" · ", made("span", `cut to ${run.most_tokens.toLocaleString("en")}`, "cut"));
}

function showFault(card, message) {
  const { element } = card;
  find(".answer", element).className = "answer fault";
  find(".label", element).textContent = "";
  find(".probability", element).textContent = message;
  find(".bars", element).replaceChildren();
  find(".cost", element).textContent = "";
}

function called({ run }) {
  const alone = cards.filter((card) => card.run.name === run.name).length === 1;
  return alone ? run.name : `${run.name}, ${run.where}`;
}

// How many say what, among runs that know the same labels.
function showVerdict(answers) {
  const said = new Map();
  answers.forEach(({ card, label }) => {
    const kind = JSON.stringify([...card.run.labels].sort());
    if (!said.has(kind)) said.set(kind, new Map());
    const labels = said.get(kind);
    labels.set(label, [...(labels.get(label) ?? []), card]);
  });
  const sentences = [...said.values()].map((labels) => {
    const byCount = [...labels].sort(([, a], [, b]) => b.length - a.length);
    const [most, second] = byCount.map(([, of]) => of.length);
    byCount.forEach(([, of]) => of.forEach(({ element }) => {
      element.classList.toggle("most", of.length === most && most !== second);
      element.classList.toggle("differs", of.length < most);
    }));
    if (byCount.length === 1) return most === 1 ? "" : `All ${most} say ${byCount[0][0]}.`;
    const parts = byCount.map(([label, of]) => `${of.length} say${of.length === 1 ? "s" : ""} ${label} (${of.map(called).join("; ")})`);
    return `They differ: ${parts.join("; ")}.`;
  });
  find("#verdict").textContent = sentences.filter(Boolean).join(" ");
}

function showAttribution(card, { label, tokens, values, total, gap }) {
  const element = find(".explained", card.element);
  const strongest = Math.max(...values.map(Math.abs), 1e-9);
  find("h3", element).textContent = `What speaks for “${label}”`;
  const whole = `In all ${signed(total)} log-odds; the tokens add up to ${signed(total + gap)}.`;
  const shown = find(".tokens", element);
  shown.replaceChildren();
  tokens.forEach((token, index) => {
    shown.append(token.before);
    const piece = made("span", token.text || "·", token.special ? "special" : values[index] < 0 ? "against" : "for");
    piece.style.setProperty("--share", Math.abs(values[index]) / strongest);
    piece.tabIndex = index ? -1 : 0;
    piece.dataset.said = token.special
      ? `${token.text}: the tokenizer's own, as in the text of padding`
      : `${token.text || "part of a character"}: ${signed(values[index])}`;
    piece.title = piece.dataset.said;
    shown.append(piece);
  });
  shown.dataset.whole = find(".readout", element).textContent = whole;
  element.hidden = false;
}

function listenToTokens(element) {
  const tokens = find(".tokens", element);
  const readout = find(".explained .readout", element);
  const say = (event) => { readout.textContent = event.target.dataset?.said ?? tokens.dataset.whole; };
  const leave = () => { readout.textContent = tokens.dataset.whole; };
  tokens.addEventListener("mouseover", say);
  tokens.addEventListener("focusin", say);
  tokens.addEventListener("mouseleave", leave);
  tokens.addEventListener("focusout", leave);
  tokens.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const pieces = [...tokens.querySelectorAll("span[tabindex]")];
    const next = pieces[pieces.indexOf(event.target) + step];
    if (!next) return;
    event.preventDefault();
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}

async function look(card) {
  const details = find("details", card.element);
  if (!details.open || !card.asked) return;
  const layer = Number(find("select", details).value);
  const { asked } = card;
  const key = JSON.stringify([round, layer]);
  if (card.looked === key) return;
  card.looked = key;
  const readout = find(".readout", details);
  readout.textContent = "…";
  try {
    const pattern = await ask("/pattern", { run: card.index, texts: asked, layer });
    if (card.looked !== key) return;
    card.pattern = pattern;
    card.cell = null;
    draw(card);
    readout.textContent = "Point at a cell, or use the arrow keys.";
  } catch (error) {
    if (card.looked !== key) return;
    card.looked = null; // asked again when the part is opened again
    find("canvas", card.element).width = 0;
    readout.textContent = error.message;
  }
}

function draw(card) {
  const canvas = find("canvas", card.element);
  const { weights, tokens } = card.pattern;
  const n = weights.length;
  // The square root shows small weights; a cell is some pixels wide, so that a cursor fits around it.
  const size = Math.max(2, Math.floor(640 / n));
  const largest = weights.flat().reduce((most, weight) => Math.max(most, Math.abs(weight)), 1e-9);
  canvas.width = canvas.height = n * size;
  canvas.setAttribute("aria-label", `Weights of ${n} times ${n} tokens; the arrow keys read them out.`);
  const context = canvas.getContext("2d");
  const style = getComputedStyle(document.documentElement);
  const [positive, negative] = ["--for", "--against"].map((name) => style.getPropertyValue(name).trim());
  weights.forEach((row, i) => row.forEach((weight, j) => {
    if (!weight) return;
    context.fillStyle = `rgb(${weight < 0 ? negative : positive} / ${Math.sqrt(Math.abs(weight) / largest)})`;
    context.fillRect(j * size, i * size, size, size);
  }));
  if (!card.cell) return;
  const [i, j] = card.cell;
  context.strokeStyle = style.getPropertyValue("--ink");
  context.lineWidth = Math.max(1, size / 8);
  context.strokeRect(j * size, i * size, size, size);
  const said = `${tokens[i]} (${i + 1}) looks at ${tokens[j]} (${j + 1}): ${weights[i][j].toPrecision(3)}`;
  find("details .readout", card.element).textContent = canvas.title = said;
}

function listenToPattern(card) {
  const canvas = find("canvas", card.element);
  canvas.addEventListener("pointermove", (event) => {
    if (!card.pattern) return;
    const n = card.pattern.weights.length;
    const box = canvas.getBoundingClientRect();
    const place = (at, start, length) => Math.min(n - 1, Math.max(0, Math.floor(((at - start) / length) * n)));
    card.cell = [place(event.clientY, box.top, box.height), place(event.clientX, box.left, box.width)];
    draw(card);
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] }[event.key];
    if (!step || !card.pattern) return;
    event.preventDefault();
    const n = card.pattern.weights.length;
    const [i, j] = card.cell ?? [0, 0];
    card.cell = card.cell ? [(i + step[0] + n) % n, (j + step[1] + n) % n] : [0, 0];
    draw(card);
  });
}

async function askAll(event) {
  event.preventDefault();
  const mine = (round += 1);
  const asked = texts();
  const button = find("#ask button");
  button.disabled = true;
  find("#verdict").textContent = "…";
  find("#cards").setAttribute("aria-busy", "true");
  const answers = [];
  for (const card of cards) {
    card.element.classList.remove("most", "differs");
    find(".explained", card.element).hidden = true;
    find("details", card.element).hidden = true;
    card.asked = card.pattern = null;
    try {
      const { texts: wanted } = card.run;
      if (wanted && wanted !== asked.length) throw new Error(`Takes ${["one text", "two texts"][wanted - 1]}.`);
      const answer = await ask("/classify", { run: card.index, texts: asked });
      if (mine !== round) return;
      showAnswer(card, answer);
      card.asked = asked;
      answers.push({ card, label: answer.label, read: Math.min(answer.tokens, card.run.most_tokens) });
    } catch (error) {
      if (mine !== round) return;
      showFault(card, error.message);
    }
  }
  showVerdict(answers);
  find("#how").hidden = !answers.length;
  find("#cards").removeAttribute("aria-busy");
  button.disabled = false; // explaining takes longer, and gives way to another text
  for (const { card, read } of answers) {
    try {
      const most = card.run.most_explained;
      if (read > most) throw new Error(`explained up to ${most} tokens only`);
      const attribution = await ask("/attribute", { run: card.index, texts: asked });
      if (mine !== round) return;
      showAttribution(card, attribution);
      find("details", card.element).hidden = false;
      await look(card);
    } catch (error) {
      if (mine !== round) return;
      find(".cost", card.element).append(` · ${error.message}`);
    }
  }
}

async function start() {
  const runs = await ask("/runs");
  const whole = runs.map((run, index) => ({ run, index })).filter(({ run }) => !run.fault);
  cards.push(...whole.map(({ run, index }) => newCard(run, index)));
  const faults = runs.filter((run) => run.fault);
  find("#faults").hidden = !faults.length;
  find("#faults ul").append(...faults.map((run) => made("li", `${run.name} (${run.where}): ${run.fault}`)));
  const several = whole.length === 1 ? "1 trained model" : `${whole.length} trained models`;
  find("#about").textContent = `${several} on this machine. What you type stays on it.`;
  if (whole.some(({ run }) => run.texts !== 1)) {
    find("#pair").hidden = false;
    const both = whole.every(({ run }) => run.texts === 2);
    find("#first-label").textContent = "First text";
    find("#second-label").textContent = both ? "Second text" : "Second text, for tasks of pairs";
    find("#second").required = both;
  }
  find("#ask").addEventListener("submit", askAll);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find("#ask").requestSubmit();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    cards.filter((card) => card.pattern).forEach(draw);
  });
}

start().catch((error) => { find("#verdict").textContent = error.message; });
