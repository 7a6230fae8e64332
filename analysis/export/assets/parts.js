/* Small building blocks: elements, numbers, tokens, examples. Data becomes text nodes only. */
"use strict";

const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

/** Give a node attributes (`onclick` listens, `--x` is a style property) and children. */
function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) node.style.setProperty(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.flat(2).filter((child) => child != null && child !== false && child !== ""));
  return node;
}

/* ---- numbers ---- */

const whole = (x) => x.toLocaleString("en-US");
const score = (x) => (x == null ? "–" : x.toFixed(2));
const short = (x) => (x == null ? "–" : Number(x.toPrecision(3)).toLocaleString("en-US", { maximumFractionDigits: 6 }));

function percent(x) {
  if (x == null) return "–";
  const value = 100 * x;
  if (value === 0) return "0%";
  if (value < 0) return `−${percent(-x)}`;
  if (value < 0.001) return "<0.001%";
  return `${value >= 99.5 ? short(value) : value.toPrecision(2)}%`;
}

const digits3 = (x) => (x == null ? "–" : x >= 1000 ? whole(Math.round(x)) : x.toPrecision(3));

function millions(n) {
  if (n >= 1e9) return `${short(n / 1e9)} billion`;
  return n >= 1e6 ? `${short(n / 1e6)} million` : whole(n);
}

/* ---- tokens ---- */

const NAMED = { "\n": "⏎", "\t": "⇥", "\r": "␍", "\x7f": "␡" };
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;

/** Text with every character that could not be seen, or that turns the line around, made visible. */
function visible(text) {
  return text.replace(UNSEEN, (c) => {
    const code = c.codePointAt(0);
    return NAMED[c] ?? (code < 32 ? String.fromCharCode(0x2400 + code) : `⟨${code.toString(16).toUpperCase()}⟩`);
  });
}

/** A token by itself, its leading and trailing spaces shown. */
function chip(token) {
  const text = visible(atlas.tokens[token] ?? `#${token}`);
  const [, before, core, after] = /^( *)(.*?)( *)$/s.exec(text);
  const space = (spaces) => spaces && el("i", {}, "␣".repeat(spaces.length));
  return el("span", { class: "chip", title: `token ${token}` }, space(before), el("bdi", {}, core), space(after));
}

/* ---- examples ---- */

/** Example `i` of the columns that a chunk holds, its activations spread over the window. */
function exampleAt(columns, documents, i) {
  const tokens = columns.tokens[i];
  const activations = new Array(tokens.length).fill(0);
  columns.where[i].forEach((place, j) => { activations[place] = columns.values[i][j]; });
  const [split, source, title, length] = documents[columns.document[i]];
  return {
    tokens, activations, split, source, title, length,
    at: columns.at[i], offset: columns.offset[i], position: columns.position[i], value: columns.value[i],
  };
}

const tokenFacts = new WeakMap();

/** One token of an example: background by activation, the firing one emphasised and in the tab order. */
function tokenSpan(example, i, max, focusable) {
  const activation = example.activations[i];
  const offset = example.offset + i - example.at;
  const elsewhere = offset < 0 || offset >= example.length;
  const kind = [activation > 0 && "on", i === example.at && "at", elsewhere && "out"].filter(Boolean);
  const span = el("span", { class: ["t", ...kind].join(" ") }, visible(atlas.tokens[example.tokens[i]] ?? ""));
  if (activation > 0) span.style.setProperty("--a", Math.min(1, activation / max).toFixed(3));
  if (focusable) span.tabIndex = i === example.at ? 0 : -1;
  tokenFacts.set(span, { example, i, max, elsewhere, offset });
  return span;
}

/** The window of an example; `aligned` puts the firing token in the middle of one line. */
function exampleText(example, max, { aligned, focusable }) {
  const spans = example.tokens.map((_, i) => tokenSpan(example, i, max, focusable));
  if (!aligned) return el("div", { class: "window", dir: "ltr" }, spans);
  const { at } = example;
  return el("div", { class: "window aligned", dir: "ltr" },
    el("span", { class: "left" }, el("span", {}, spans.slice(0, at))),
    spans[at],
    el("span", { class: "right" }, spans.slice(at + 1)));
}

/* ---- tooltip ---- */

function tokenTip({ example, i, max, elsewhere, offset }) {
  const activation = example.activations[i];
  const place = elsewhere ? "in the neighbouring document" : `${example.title || "untitled"} — ${example.source}`;
  const fires = activation > 0 ? `fires at ${short(activation)}` : "does not fire";
  const share = activation > 0 ? `${percent(activation / max)} of the feature’s maximum` : "activation 0";
  const where = elsewhere ? "" : `, token ${whole(offset)} of its document`;
  return [
    el("p", { class: "tip-head" }, chip(example.tokens[i]), el("b", {}, fires)),
    el("p", {}, share),
    el("p", {}, el("bdi", {}, visible(place))),
    el("p", {}, `${example.split} position ${whole(example.position + i - example.at)}${where}`),
  ];
}

function showTip(target) {
  const tip = document.getElementById("tip");
  const facts = tokenFacts.get(target);
  if (!facts) return;
  tip.replaceChildren(...tokenTip(facts));
  tip.hidden = false;
  target.setAttribute("aria-describedby", "tip");
  const box = target.getBoundingClientRect();
  const left = Math.min(Math.max(8, box.left + box.width / 2 - tip.offsetWidth / 2), innerWidth - tip.offsetWidth - 8);
  const above = box.top - tip.offsetHeight - 8;
  tip.style.left = `${left}px`;
  tip.style.top = `${above > 8 ? above : box.bottom + 8}px`;
}

function hideTip() {
  document.getElementById("tip").hidden = true;
}

/** ← and → walk through the tokens of an example. */
function walkTokens(event) {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const spans = step ? [...event.target.closest(".window").querySelectorAll(".t")] : [];
  const next = spans[spans.indexOf(event.target) + step];
  if (!next) return;
  event.preventDefault();
  event.target.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

function watchTokens() {
  const token = (event) => (event.target instanceof Element ? event.target.closest(".t") : null);
  for (const name of ["pointerover", "focusin"]) {
    document.addEventListener(name, (event) => (token(event) ? showTip(token(event)) : hideTip()));
  }
  document.addEventListener("scroll", hideTip, { passive: true });
  document.addEventListener("focusout", hideTip);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hideTip();
    if (token(event)) walkTokens(event);
  });
}
