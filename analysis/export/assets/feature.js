/* One feature: its label, how well the label holds, the text it fires on, what it does. */
"use strict";

let aligned = true;
let current = null;

/** Show `row`; its details arrive with their chunk. */
async function showFeature(row) {
  current = row;
  const main = document.getElementById("feature");
  const title = row.text || `Feature ${row.latent}`;
  document.title = `${row.latent}: ${visible(title)}`;
  drawPager(row);
  main.replaceChildren(hero(row), el("p", { class: "sub" }, "Loading …"));
  scrollTo(0, 0);
  main.querySelector("h1").focus({ preventScroll: true });
  try {
    const chunk = await loadChunk(row.row);
    if (current !== row) return;
    const details = chunk.latents[row.row % atlas.chunk];
    main.replaceChildren(hero(row), ...body(row, details, chunk.documents));
    main.querySelector("h1").focus({ preventScroll: true });
  } catch (error) {
    explainMissing(error.message);
  }
}

function drawPager(row) {
  const { before, after, at, n } = neighboursInList(row);
  const go = (to, name, words) => el("a", { class: "quiet", "data-go": name, href: to && linkTo(to), "aria-disabled": String(!to), "aria-label": name === "before" ? "Previous feature" : "Next feature" }, words);
  document.getElementById("pager").replaceChildren(
    go(before, "before", "←"), el("span", {}, `${whole(at + 1)} of ${whole(n)}`), go(after, "after", "→"),
    el("a", { class: "quiet", "data-go": "random", href: linkTo(randomRow()) }, "Random"));
}

function hero(row) {
  const fact = (value, words, hint) => el("div", { class: "fact", title: hint }, el("b", {}, value), el("span", {}, words));
  const silent = row.n_fired === 0;
  const heading = row.text ? el("bdi", {}, visible(row.text)) : el("span", { class: "muted" }, silent ? "Never fires" : "No label");
  return el("section", { class: "hero" },
    el("p", { class: "over" },
      el("a", { href: listAddress() }, "← All features"),
      el("a", { href: linkTo(row), title: "Permanent link to this feature" }, `Feature ${row.latent}`),
      el("span", { class: `status ${row.status}` }, row.status), row.family && el("span", {}, row.family)),
    el("h1", { tabindex: "-1", class: row.text.length > 90 && "long" }, heading),
    row.does && el("p", { class: "does" }, el("bdi", {}, visible(row.does))),
    STATUS_NOTES[row.status] && el("p", { class: "sub" }, STATUS_NOTES[row.status]),
    !silent && el("div", { class: "facts" },
      fact(`1 in ${whole(Math.round(1 / row.density))}`, "tokens make it fire", `density ${percent(row.density)}, ${whole(row.n_fired)} firings`),
      fact(short(row.max_value), "strongest activation", "the maximum over the indexed tokens"),
      fact(score(row.token_r2), "token R²", "1: the current token alone decides; 0: context decides")));
}

const STATUS_NOTES = {
  abstained: "No rule predicted this feature well enough to be worth a sentence.",
  rare: "It fires too seldom for a label to be fitted and chosen.",
  silent: "It never fires in the text that labels are made from.",
  unlabelled: "Labels have not been made for this feature.",
};

function body(row, details, documents) {
  if (row.n_fired === 0) return [];
  const panel = (name, note, ...content) => el("section", { class: "panel" }, el("h2", {}, name), note && el("p", { class: "sub" }, note), ...content);
  const strength = panel("How strongly it fires", "Tokens by activation; note the logarithmic axis.", activationHistogram(details.histogram, row.max_value));
  const triggers = panel("Fires on", "Tokens it fires on most often, and how often it fires when the token occurs.", triggerTable(details.triggers));
  const lens = details.promoted[0].length > 0 &&
    panel("Promotes and suppresses", "Next tokens that the feature makes more or less likely, by its direct path to the output, as the weights have it.", lensTables(details));
  const follows = details.next[0].length > 0 &&
    panel("Is followed by", "Next tokens in the text where it fires, and how many times as often as anywhere.", nextTable(details.next));
  const together = details.cofiring[0].length > 0 &&
    panel("Fires together with", "Features that are active on the same tokens beyond chance, and on what share of them.", neighbourList(details.cofiring));
  const neighbours = panel("Points the same way", "Features with the most similar decoder direction, by cosine.", neighbourList(details.neighbours));
  const card = scoreCard(details.scores), does = effectCard(details.does), hasEffect = Boolean(details.does.text);
  return [
    el("div", { class: "band" }, card || triggers, strength),
    hasEffect && el("div", { class: lens ? "band" : "" }, does, lens),
    el("div", { class: "split" },
      exampleSection(row, details, documents),
      el("aside", {}, card && triggers, !hasEffect && [does, lens], follows, together, neighbours)),
  ].filter(Boolean);
}

/* ---- score card ---- */

function scoreCard(s) {
  if (s.f1 == null) return "";
  const lines = [
    { name: "This label", value: s.f1, low: s.f1_low, high: s.f1_high, main: true,
      hint: s.f1_low == null ? "F1 on held-out text" : `F1 on held-out text, 95% interval ${score(s.f1_low)} to ${score(s.f1_high)}` },
    { name: "Best single token", value: s.token_f1, hint: s.token_text ? `always and only on ${visible(s.token_text)}` : "a rule that looks at one token only" },
    { name: "Best set of tokens", value: s.token_set_f1, hint: "any number of tokens, no context" },
    { name: "Another’s label", value: s.other_f1, hint: otherLabel(s.other_latent) },
    { name: "Shuffled", value: s.shuffled_f1, hint: "as many predictions, at random places" },
  ].filter((line) => line.value != null);
  const part = (value, name, words, more) => value != null &&
    el("div", { class: "part" }, el("b", {}, score(value)), el("span", { class: "name" }, name), more, el("span", { class: "hint" }, words));
  const counts = s.n_test == null ? "" : `Firings: ${[[s.n_fit, "to fit"], [s.n_select, "to choose"], [s.n_test, "to score"]]
    .filter(([n]) => n != null).map(([n, words]) => `${whole(n)} ${words}`).join(", ")}.`;
  return el("section", { class: "panel" },
    el("h2", {}, "Does the label hold?"),
    el("p", { class: "sub" }, verdict(s)),
    el("div", { class: "scorelines" }, lines.map(scoreLine)),
    el("div", { class: "parts" },
      part(s.precision, "precision", "when the label says so, how often it fires"),
      part(s.recall, "recall", "of its firings, how many the label finds", s.decile_recall && deciles(s.decile_recall)),
      part(s.auprc, "AUPRC", "precision averaged over all thresholds")),
    counts && el("p", { class: "hint" }, counts));
}

const otherLabel = (latent) => (latent == null
  ? "the label of another feature that fires as often"
  : ["the label of ", el("a", { href: `#/latent/${latent}` }, `feature ${latent}`), ", which fires as often"]);

/** Recall by tenths of the firings: a label that finds only the strongest shows it here. */
function deciles(shares) {
  const words = `recall by tenths of the firings, weakest to strongest: ${shares.map(score).join(", ")}`;
  return el("span", { class: "deciles", role: "img", title: words, "aria-label": words },
    shares.map((share) => el("i", { "--x": share ?? 0 })));
}

function verdict(s) {
  if (s.token_f1 == null) return "Scored once, on documents that had no part in making the label.";
  const margin = s.f1 - s.token_f1;
  if (margin >= 0.02) return `Yes, and better than any single token by ${score(margin)}.`;
  return margin > -0.02 ? "About as well as the best single token does." : `Less well than the best single token, by ${score(-margin)}.`;
}

/* ---- what it does ---- */

const DOES_NOTES = {
  abstained: "No measurable effect on single tokens: taking it away changes none of them reliably, and more than random directions change some.",
  rare: "It fires too seldom for its effect on the output to be told.",
  unmeasured: "It was not measured what the features of this run do to the output.",
};

/** The label of what it does, by intervention, beside its nulls. */
function effectCard(does) {
  if (!does.status || does.status === "silent") return "";
  const panel = (title, ...content) => el("section", { class: "panel" }, el("h2", {}, title), ...content);
  const kl = does.kl != null && el("p", { class: "hint" }, `Without it, where it fires, the next-token distribution changes by ${short(does.kl)} nats (KL).`);
  if (!does.text) return panel("What it does to the output", el("p", { class: "sub" }, DOES_NOTES[does.status]), kl);
  const kinds = [
    ["Taken away", "where it fires", does.removed],
    ["Added", `where it is silent, as much as ${short(does.amount)} of activation`, does.added],
  ].filter(([, , effect]) => effect);
  const top = Math.max(0.01, ...kinds.flatMap(([, , e]) => [e.nats, e.high, e.other_label, e.chance].filter((x) => x != null)));
  return panel("Does the effect hold?",
    el("p", { class: "sub" }, doesVerdict(kinds.map(([, , effect]) => effect))),
    el("p", { class: "chips" }, `${does.verb === "promotes" ? "Promotes" : "Suppresses"} `, does.tokens.map(chip)),
    el("div", { class: "scorelines" }, kinds.flatMap(([name, where, effect]) => effectLines(name, where, effect, does.other_latent, top))),
    el("p", { class: "hint foot" }, "Nats by which the named tokens’ log-probability moves as the label says, beyond that of tokens as common, on documents that had no part in making the label."),
    kl);
}

function effectLines(name, where, effect, other, top) {
  const interval = effect.low == null ? "" : `, 95% interval ${score(effect.low)} to ${score(effect.high)}`;
  const another = other == null ? "another feature" : el("a", { href: `#/latent/${other}` }, `feature ${other}`);
  return [
    { name, value: effect.nats, low: effect.low, high: effect.high, main: true, top,
      hint: `${where}; right in ${percent(effect.right)} of ${whole(effect.n)} places${interval}` },
    { name: "Another’s label", value: effect.other_label, top, hint: ["the tokens of ", another, " instead"] },
    { name: "Random directions", value: effect.chance, top, hint: "of its size, with labels of their own; 95% stay below" },
  ].filter((line) => line.value != null).map(scoreLine);
}

function doesVerdict(effects) {
  const isAbove = (effect) => effect.nats > Math.max(0, effect.other_label ?? 0, effect.chance ?? 0);
  const n = effects.filter(isAbove).length;
  if (effects.length === 2 && n === 2) return "Yes, both when it is taken away and when it is added.";
  return n === 0 ? "No, not more than its nulls do." : "In part: one of the two interventions moves them no more than its nulls do, or could not be made.";
}

/* ---- examples ---- */

function exampleSection(row, details, documents) {
  const section = el("section", { class: "examples" });
  const draw = () => section.replaceChildren(
    el("div", { class: "headline" }, el("h2", {}, "Text it fires on"), widthToggle(draw)),
    ...strata(row, details, documents));
  draw();
  return section;
}

function widthToggle(draw) {
  const choice = (words, value) => el("button", { type: "button", "aria-pressed": String(aligned === value), onclick: () => { aligned = value; draw(); } }, words);
  return el("div", { class: "toggle", role: "group", "aria-label": "Width of the examples" }, choice("Short", true), choice("Full", false));
}

function strata(row, details, documents) {
  let first = 0;
  return details.strata.map((stratum) => {
    const numbers = Array.from({ length: stratum.n }, (_, i) => first + i);
    first += stratum.n;
    return el("section", { class: "stratum" }, stratumTitle(stratum, row.max_value),
      el("ol", {}, numbers.map((i) => exampleLine(exampleAt(details.examples, documents, i), row.max_value))));
  });
}

function stratumTitle(stratum, max) {
  if (stratum.name === "top") return el("h3", {}, "Strongest activations");
  if (stratum.name === "silent") {
    return el("h3", {}, "Near misses", el("span", {}, "its commonest tokens, where it is silent"));
  }
  if (stratum.low == null) return el("h3", {}, stratum.name);
  return el("h3", {}, el("span", { class: "swatch", "--a": (stratum.low + stratum.high) / 2 }),
    `${short(stratum.low * max)} to ${short(stratum.high * max)}`,
    el("span", {}, `${stratum.name.replace("-", "–")} of the maximum, ${percent(stratum.share)} of its firings`));
}

function exampleLine(example, max) {
  return el("li", { class: "example" },
    el("span", { class: "value", title: "activation at the underlined token" }, digits3(example.value)),
    exampleText(example, max, { aligned, focusable: true }),
    el("cite", { title: visible(`${example.title} — ${example.source}`) }, el("bdi", {}, visible(example.title || example.source))));
}

/* ---- tokens and neighbours ---- */

function triggerTable([tokens, counts, rates]) {
  return el("table", { class: "triggers" },
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Token"), el("th", { scope: "col" }, "Times"), el("th", { scope: "col", title: "P(fire | token)" }, "Fires when it occurs"))),
    el("tbody", {}, tokens.map((token, i) => el("tr", {},
      el("td", {}, chip(token)), el("td", {}, whole(counts[i])), el("td", {}, meter(rates[i], 1), el("span", {}, percent(rates[i])))))));
}

function nextTable([tokens, counts, lifts]) {
  return el("table", { class: "triggers" },
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Token"), el("th", { scope: "col" }, "Times"), el("th", { scope: "col", title: "P(next | fires) / P(next)" }, "As often as anywhere"))),
    el("tbody", {}, tokens.map((token, i) => el("tr", {},
      el("td", {}, chip(token)), el("td", {}, whole(counts[i])), el("td", {}, el("span", {}, `${short(lifts[i])}×`))))));
}

const meter = (value, top) => el("span", { class: "meter", "aria-hidden": "true", "--x": top ? Math.min(1, Math.abs(value) / top) : 0 });

function lensTables({ promoted, suppressed }) {
  const top = Math.max(...[...promoted[1], ...suppressed[1]].map(Math.abs));
  const side = (name, [tokens, logits]) => el("div", {}, el("h3", {}, name),
    el("ol", {}, tokens.map((token, i) => el("li", {}, chip(token), meter(logits[i], top), el("span", {}, score(logits[i]))))));
  return el("div", { class: "lens" }, side("Promotes", promoted), side("Suppresses", suppressed));
}

function neighbourList([latents, cosines]) {
  const line = (latent, i) => {
    const row = atlas.byLatent.get(latent);
    return row && el("li", {}, el("span", { class: "value" }, score(cosines[i])), labelCell(row));
  };
  return el("ol", { class: "neighbours" }, latents.map(line));
}
