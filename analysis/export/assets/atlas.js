/* The page: takes the data, follows the address (#/ or #/latent/123), keeps theme and keys. */
"use strict";

let atlas = null;
const chunks = new Map();

/** Called by data/index.js. */
function atlasIndex(index) {
  const { columns, statuses, families } = index;
  const rows = columns.latent.map((latent, row) => ({
    row, latent, n_fired: columns.n_fired[row], density: columns.density[row], max_value: columns.max_value[row],
    token_r2: columns.token_r2[row], text: columns.text[row], f1: columns.f1[row], token_f1: columns.token_f1[row],
    auprc: columns.auprc[row], does: columns.does[row], status: statuses[columns.status[row]], family: families[columns.family[row]] ?? "",
    triggers: columns.triggers[row],
  }));
  index.order.forEach((row, place) => { rows[row].place = place; });
  atlas = { ...index, rows, byLatent: new Map(rows.map((row) => [row.latent, row])) };
  startHome();
  drawFooter();
  watchTokens();
  addEventListener("hashchange", route);
  document.addEventListener("keydown", onKey);
  route();
}

/** Called by data/latents-000.js and its like. */
function atlasChunk(number, chunk) {
  const waiting = chunks.get(number);
  waiting.arrived = true;
  waiting.arrive(chunk);
}

/** The chunk that holds `row`, loaded by a script element when it is first needed. */
function loadChunk(row) {
  const number = Math.floor(row / atlas.chunk);
  if (!chunks.has(number)) {
    const src = `data/latents-${String(number).padStart(3, "0")}.js`;
    const waiting = {};
    waiting.chunk = new Promise((arrive, fail) => {
      waiting.arrive = arrive;
      const missing = () => { chunks.delete(number); fail(new Error(src)); };
      document.head.append(el("script", { src, onerror: missing, onload: () => { if (!waiting.arrived) missing(); } }));
    });
    chunks.set(number, waiting);
  }
  return chunks.get(number).chunk;
}

function explainMissing(file) {
  document.getElementById("main").prepend(el("p", { class: "notice", role: "alert" },
    `${file} could not be read. Keep index.html and the folder data together.`));
}

/* ---- addresses ---- */

let homeScroll = 0;

function route() {
  hideTip();
  const match = /^#\/latent\/(\d+)$/.exec(location.hash);
  const row = match && atlas.byLatent.get(Number(match[1]));
  const home = document.getElementById("home"), feature = document.getElementById("feature");
  if (!home.hidden) homeScroll = scrollY;
  home.hidden = Boolean(match);
  feature.hidden = !match;
  document.getElementById("pager").hidden = !row;
  if (row) {
    showFeature(row);
  } else if (match) {
    feature.replaceChildren(el("p", { class: "notice" }, `There is no latent ${match[1]} in this dictionary. `,
      el("a", { href: "#/" }, "All features")));
  } else {
    document.title = `Feature atlas: ${atlas.model}, ${atlas.site}`;
    readAddress();
    scrollTo(0, homeScroll);
  }
}

const linkTo = (row) => `#/latent/${row.latent}`;

/** Neighbours of a row in the list as it is filtered and sorted now, else in the order of numbers. */
function neighboursInList(row) {
  const list = listed().includes(row) ? listed() : atlas.rows;
  const at = list.indexOf(row);
  return { before: list[at - 1], after: list[at + 1], at, n: list.length };
}

function randomRow() {
  const list = listed().length ? listed() : atlas.rows;
  return list[Math.floor(Math.random() * list.length)];
}

/* ---- keys, theme, footer ---- */

function onKey(event) {
  const busy = event.target instanceof Element && event.target.closest("input, select, textarea, .t");
  if (busy || event.ctrlKey || event.metaKey || event.altKey) return;
  const link = { ArrowLeft: "before", ArrowRight: "after", r: "random" }[event.key];
  if (link) document.querySelector(`#pager:not([hidden]) [data-go="${link}"][href]`)?.click();
  if (event.key === "/") {
    if (!document.getElementById("feature").hidden) location.hash = "#/";
    event.preventDefault();
    setTimeout(() => document.getElementById("search").focus());
  }
}

function remembered() {
  try { return localStorage.getItem("atlas-theme"); } catch { return null; }
}

function remember(theme) {
  try { localStorage.setItem("atlas-theme", theme); } catch { /* a page from a file may have no storage */ }
}

function startTheme() {
  const root = document.documentElement, button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const current = () => root.dataset.theme || (system.matches ? "dark" : "light");
  const draw = () => { button.textContent = current() === "dark" ? "☀ Light" : "☾ Dark"; };
  if (remembered()) root.dataset.theme = remembered();
  button.addEventListener("click", () => {
    root.dataset.theme = current() === "dark" ? "light" : "dark";
    remember(root.dataset.theme);
    draw();
  });
  system.addEventListener("change", draw);
  draw();
}

function drawFooter() {
  document.getElementById("footer").replaceChildren(
    el("dl", {}, atlas.provenance.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, visible(value))))),
    el("p", {}, "This page is complete in itself: it loads nothing from the network."));
}

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address belongs to the list and its features
  document.getElementById("main").focus();
});
startTheme();
