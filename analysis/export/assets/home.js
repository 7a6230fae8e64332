/* The index: what this is, the health of the run, features to start with, and the table of all. */
"use strict";

const PAGE_ROWS = 50;
const FRESH = { q: "", sort: "place", down: false, hide: "silent", family: "", page: 1 };
let view = { ...FRESH };
let list = [];

const COLUMNS = [
  { key: "latent", title: "No.", hint: "Number of the latent", draw: (row) => String(row.latent) },
  { key: "text", title: "Label", hint: "What it fires on, and below it what it does to the output",
    draw: (row) => [labelCell(row), row.does && el("span", { class: "does" }, el("bdi", {}, visible(row.does)))] },
  { key: "family", title: "Family", hint: "Kind of rule behind the label", draw: (row) => row.family || "–" },
  { key: "f1", title: "F1", down: true, hint: "F1 of the label on held-out text; the tick is the best single-token rule",
    draw: (row) => (row.f1 == null ? "–" : [score(row.f1), scoreBar(row.f1, row.token_f1)]) },
  { key: "auprc", title: "AUPRC", down: true, hint: "Area under the precision-recall curve, held out", draw: (row) => score(row.auprc) },
  { key: "density", title: "Density", down: true, hint: "Share of tokens on which it fires", draw: (row) => percent(row.density) },
  { key: "max_value", title: "Max", down: true, hint: "Largest activation", draw: (row) => digits3(row.max_value) },
  { key: "token_r2", title: "Token R²", hint: "How much of the activation the current token alone explains: 1 is a pure token detector",
    draw: (row) => score(row.token_r2) },
];

function labelCell(row) {
  const link = (...words) => el("a", { href: linkTo(row) }, ...words);
  if (row.text) return link(el("bdi", {}, visible(row.text)));
  if (row.n_fired === 0) return link(el("span", { class: "muted" }, "never fires"));
  return link(el("span", { class: "muted" }, "no label · fires on "), row.triggers.slice(0, 4).map(chip));
}

const listed = () => list;

/** A label of several parts names the family of each, as in token+context. */
const kinds = (family) => family.split("+");

/* ---- drawing, once ---- */

function startHome() {
  document.getElementById("home").append(introduction(), health(), exemplars(), table());
  drawRows();
}

function introduction() {
  const active = atlas.k == null ? "" : `, ${atlas.k} active at a time`;
  return el("section", { class: "intro" },
    el("h1", {}, `${whole(atlas.rows.length)} features of a language model`),
    el("p", { class: "lead" },
      `A sparse dictionary (${atlas.architecture}, ${whole(atlas.rows.length)} latents${active}) splits what `,
      el("code", {}, atlas.model), " computes at ", el("code", {}, atlas.site),
      ` into parts that tend to mean one thing each. Here is the text that makes each part fire, over ${millions(atlas.n_tokens)} tokens.`),
    howToRead());
}

function howToRead() {
  const line = (term, words) => [el("dt", {}, term), el("dd", {}, words)];
  return el("details", { class: "howto" },
    el("summary", {}, "How to read this page"),
    el("dl", {},
      line("Feature", "One unit (latent) of the dictionary. At each token of the text it is silent, or it fires with some strength. What it fires on is what it seems to stand for."),
      line("Colour", ["The deeper the ", el("span", { class: "t on", "--a": 0.75 }, "colour"), " behind a token, the more strongly the feature fires there. The token in question is ", el("span", { class: "t on at", "--a": 0.4 }, "underlined"), "."]),
      line("Label", "A sentence made from a rule that predicts where the feature fires. The rule was fitted on some documents, chosen on others, and scored once on a third set."),
      line("Promotes, suppresses", "What the feature does to the next token, tested by taking it away where it fires and adding it where it is silent. Nats say how far the named tokens’ log-probability moves beyond that of tokens as common."),
      line("F1", ["How well that rule finds the firings of the held-out text: 1 is perfect. The tick ", scoreBar(0.8, 0.5), " marks the best rule that looks at one token only. A label is worth its distance from the tick."]),
      line("Abstained", "No rule predicted it well enough, so it is shown without a label rather than with a poor one. Rare: too few firings to fit or to choose by. Silent: it never fires in the text that labels are made from."),
      line("Density", "The share of tokens on which the feature fires."),
      line("Token R²", "How much of the activation is explained by the current token alone. Near 1: a token detector. Near 0: context decides."),
      line("Keys", ["/ searches; on a feature, ← and → go through the list and r picks at random. On a token, ← and → walk through the text."])));
}

function health() {
  const s = atlas.summary;
  const tile = (value, name, note) => value != null &&
    el("div", { class: "tile" }, el("b", {}, value), el("span", { class: "name" }, name), note && el("span", { class: "hint" }, note));
  const given = (x, write) => (x == null ? null : write(x));
  return el("section", { class: "health", "aria-label": "Health of the run" },
    el("div", { class: "tiles" },
      tile(given(s.l0, short), "features per token", "L0, the mean number that fire"),
      tile(given(s.fvu, score), "variance missed", s.pca_fvu == null ? "FVU" : `FVU; PCA of the same size ${score(s.pca_fvu)}`),
      tile(given(s.ce_recovered, percent), "loss recovered", "with the reconstruction put back in"),
      tile(given(s.kl, short), "nats of KL", "how far predictions move"),
      tile(given(s.dead_fraction, percent), "dead", "latents silent on the test documents"),
      tile(given(s.labelled_fraction, percent), "labelled", "of the features that fire"),
      tile(given(s.median_f1, score), "median F1", s.median_token_f1 == null ? "held out" : `held out; single token ${score(s.median_token_f1)}`),
      tile(given(s.beats_token_fraction, percent), "beat one token", "labels above the best single token"),
      tile(given(s.does_beats_nulls_fraction, percent), "do what they say", "of the features that fire: it beats its nulls"),
      tile(given(s.median_effect, short), "nats of effect", "median, on the tokens named")),
    el("figure", {}, el("figcaption", {}, "Features by density, the share of tokens on which they fire"),
      densityHistogram(atlas.columns.density)));
}

function exemplars() {
  if (!atlas.exemplars.length) return "";
  const card = ({ row: number, examples, documents }) => {
    const row = atlas.rows[number];
    return el("a", { class: "card", href: linkTo(row) },
      el("span", { class: "over" }, el("span", {}, row.family || "feature"), el("span", {}, `No. ${row.latent}`)),
      el("strong", {}, el("bdi", {}, visible(row.text))),
      exampleText(exampleAt(examples, documents, 0), row.max_value, { aligned: true, focusable: false }),
      el("span", { class: "under" }, `F1 ${score(row.f1)}`, scoreBar(row.f1, row.token_f1),
        row.token_f1 != null && `single token ${score(row.token_f1)}`));
  };
  return el("section", {}, el("h2", {}, "Start with these"),
    el("p", { class: "sub" }, "A well-labelled feature of each kind, with the text that it fires on most strongly."),
    el("div", { class: "cards" }, atlas.exemplars.map(card)));
}

function table() {
  const head = COLUMNS.map((column) => el("th", { scope: "col", class: column.key, "data-key": column.key },
    el("button", { type: "button", title: column.hint, onclick: () => sortBy(column) }, column.title)));
  const families = [...new Set(atlas.families.flatMap(kinds))].sort();
  return el("section", { class: "index" },
    el("h2", {}, "All features"),
    el("div", { class: "tools" },
      el("input", { id: "search", type: "search", placeholder: "Search labels and tokens", "aria-label": "Search labels, tokens and numbers",
        autocomplete: "off", spellcheck: "false", oninput: (event) => change({ q: event.target.value }) }),
      el("div", { id: "statuses", role: "group", "aria-label": "Show" }),
      families.length > 0 && el("select", { id: "family", "aria-label": "Family", onchange: (event) => change({ family: event.target.value }) },
        el("option", { value: "" }, "All families"), families.map((name) => el("option", { value: name }, name)))),
    el("p", { id: "found", class: "sub", role: "status" }),
    el("table", {}, el("thead", {}, el("tr", {}, head)), el("tbody", { id: "rows" })),
    el("nav", { id: "pages", "aria-label": "Pages of the table" }));
}

/* ---- what is shown now ---- */

/** Words of a query must each be in a label, begin one of its trigger tokens, or be its number. */
function matches(row, words) {
  const label = `${row.text} ${row.does} ${row.family}`.toLowerCase();
  const tokens = row.triggers.map((token) => (atlas.tokens[token] ?? "").trim().toLowerCase());
  return words.every((word) => label.includes(word) || String(row.latent) === word || tokens.some((token) => token.startsWith(word)));
}

function compare(a, b) {
  const x = a[view.sort], y = b[view.sort];
  const missing = (value) => value == null || value === "";
  if (missing(x) || missing(y)) return missing(x) - missing(y) || a.place - b.place;
  const sign = typeof x === "string" ? x.localeCompare(y, "en") : x - y;
  return (view.down ? -sign : sign) || a.place - b.place;
}

function change(changes) {
  view = { ...view, page: 1, ...changes };
  history.replaceState(null, "", listAddress());
  drawRows();
}

/** The address of the list as it is filtered and sorted now. */
function listAddress() {
  const changed = Object.entries(view).filter(([name, value]) => value !== FRESH[name]);
  return changed.length ? `#/?${new URLSearchParams(changed)}` : "#/";
}

function sortBy(column) {
  const again = view.sort === column.key;
  change({ sort: column.key, down: again ? !view.down : Boolean(column.down) });
}

function readAddress() {
  const given = Object.fromEntries(new URLSearchParams(location.hash.split("?")[1] ?? ""));
  const sorts = ["place", ...COLUMNS.map((column) => column.key)];
  view = { ...FRESH, ...given, down: given.down === "true", page: Math.max(1, Number(given.page) || 1) };
  if (!sorts.includes(view.sort)) view.sort = FRESH.sort;
  drawRows();
}

function drawRows() {
  const hidden = view.hide.split(" "), words = view.q.toLowerCase().split(/\s+/).filter(Boolean);
  list = atlas.rows
    .filter((row) => !hidden.includes(row.status) && (!view.family || kinds(row.family).includes(view.family)) && matches(row, words))
    .sort(compare);
  const pages = Math.max(1, Math.ceil(list.length / PAGE_ROWS)), page = Math.min(view.page, pages);
  const shown = list.slice((page - 1) * PAGE_ROWS, page * PAGE_ROWS);
  const tr = (row) => el("tr", { class: row.status, onclick: (event) => { if (!event.target.closest("a")) location.hash = linkTo(row); } },
    COLUMNS.map((column) => el("td", { class: column.key }, column.draw(row))));
  document.getElementById("rows").replaceChildren(...shown.map(tr));
  drawTools(hidden, page, pages);
}

function drawTools(hidden, page, pages) {
  const search = document.getElementById("search"), family = document.getElementById("family");
  if (search.value !== view.q) search.value = view.q;
  if (family) family.value = view.family;
  const toggle = (status) => (hidden.includes(status) ? hidden.filter((s) => s !== status) : [...hidden, status]).filter(Boolean).join(" ");
  const count = (status) => atlas.rows.filter((row) => row.status === status).length;
  document.getElementById("statuses").replaceChildren(...atlas.statuses.filter(count).map((status) => el("button", {
    type: "button", "aria-pressed": String(!hidden.includes(status)), onclick: () => change({ hide: toggle(status) }),
  }, status, el("span", {}, whole(count(status))))));
  const sort = COLUMNS.find((column) => column.key === view.sort);
  const order = sort ? `by ${sort.title}, ${view.down ? "high to low" : "low to high"}` : "most instructive first";
  const reset = JSON.stringify(view) !== JSON.stringify({ ...FRESH, page: view.page });
  document.getElementById("found").replaceChildren(
    list.length ? `${whole(list.length)} of ${whole(atlas.rows.length)} features, ${order}. ` : "No feature matches. ",
    reset ? el("button", { class: "link", type: "button", onclick: () => change({ ...FRESH }) }, "Reset") : "");
  document.querySelectorAll(".index th").forEach((th) => {
    const direction = view.down ? "descending" : "ascending";
    th.setAttribute("aria-sort", th.dataset.key === view.sort ? direction : "none");
  });
  const go = (to, words) => el("button", { type: "button", class: "quiet", disabled: to < 1 || to > pages, onclick: () => turn(to) }, words);
  document.getElementById("pages").replaceChildren(go(page - 1, "← Previous"), `Page ${whole(page)} of ${whole(pages)}`, go(page + 1, "Next →"));
}

function turn(page) {
  change({ page });
  document.querySelector(".index").scrollIntoView();
}
