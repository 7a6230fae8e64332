/* Charts: small inline SVG, and bars of one line. Each says in words what it shows. */
"use strict";

const SUPERSCRIPT = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
const powerOfTen = (n) => `10${[...String(n)].map((c) => SUPERSCRIPT[c]).join("")}`;

/** A bar from 0 to 1, with a tick where a baseline stands. */
function scoreBar(value, baseline) {
  const words = baseline == null ? `${score(value)}` : `${score(value)}; best single token ${score(baseline)}`;
  return el("span", { class: "scorebar", role: "img", "aria-label": words, title: words },
    el("span", { class: "fill", "--x": value ?? 0 }),
    baseline != null && el("span", { class: "tick", "--x": baseline }));
}

/** Columns over a labelled axis. `bars`: [{height 0..1, heat 0..1 or null, title}]. */
function columns({ bars, ticks, lines, label, height = 205, width = 360 }) {
  const left = 34, bottom = 20, top = 6, inner = height - bottom - top, step = (width - left) / bars.length;
  const y = (share) => top + inner * (1 - share);
  const text = (x, at, anchor, words) => svg("text", { x, y: at, "text-anchor": anchor }, words);
  return svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
    lines.map(([share, words]) => [
      svg("line", { class: "grid", x1: left, x2: width, y1: y(share), y2: y(share) }),
      text(left - 6, y(share) + 4, "end", words),
    ]),
    bars.map((bar, i) => svg("rect", {
      class: bar.heat == null ? "column" : "column warm", "--a": bar.heat,
      x: left + i * step + 0.75, width: Math.max(1, step - 1.5), y: y(bar.height), height: inner * bar.height, rx: 1.5,
    }, svg("title", {}, bar.title))),
    ticks.map(([share, words], i) => text(left + share * (width - left), height - 5,
      share === 0 ? "start" : share === 1 ? "end" : "middle", words)));
}

/** Heights on a logarithmic axis on which 1 is just visible, and its gridlines at powers of ten. */
function logScale(counts) {
  const top = Math.log10(Math.max(10, ...counts)) + 0.1;
  const height = (count) => (count > 0 ? (Math.log10(count) + 0.1) / top : 0);
  const powers = Array.from({ length: Math.floor(top) + 1 }, (_, i) => i);
  const every = Math.ceil(powers.length / 4);
  const lines = powers.filter((i) => i % every === 0).map((i) => [height(10 ** i), i < 4 ? whole(10 ** i) : powerOfTen(i)]);
  return { height, lines };
}

/** How strongly a latent fires: counts of equal-width bins from 0 to its maximum. */
function activationHistogram(counts, max) {
  const { height, lines } = logScale(counts);
  const n = counts.length;
  return columns({
    bars: counts.map((count, i) => ({
      height: height(count), heat: (i + 0.5) / n,
      title: `${short((max * i) / n)} to ${short((max * (i + 1)) / n)}: ${whole(count)} tokens`,
    })),
    ticks: [[0, "0"], [0.5, short(max / 2)], [1, `max ${short(max)}`]],
    lines,
    label: `Histogram of activations from 0 to ${short(max)}, tokens on a logarithmic axis`,
  });
}

/** How often latents fire: number of latents by log10 of density, four bins a decade. */
function densityHistogram(densities) {
  const live = densities.filter((d) => d > 0).map(Math.log10);
  const low = Math.floor(Math.min(-1, ...live)), n = -low * 4;
  const counts = new Array(n).fill(0);
  live.forEach((d) => { counts[Math.min(n - 1, Math.floor((d - low) * 4))] += 1; });
  const top = Math.max(1, ...counts);
  return columns({
    bars: counts.map((count, i) => ({
      height: count / top, heat: null,
      title: `${percent(10 ** (low + i / 4))} to ${percent(10 ** (low + (i + 1) / 4))} of tokens: ${whole(count)} features`,
    })),
    ticks: Array.from({ length: -low + 1 }, (_, i) => [i / -low, i === -low ? "1" : powerOfTen(low + i)]),
    lines: [[1, whole(top)], [0, "0"]],
    label: "Histogram of feature densities on a logarithmic axis",
    height: 96, width: 420,
  });
}

/** One line of a score card: a value on an axis from 0 to `top`, with its interval if there is one. */
function scoreLine({ name, hint, value, low, high, main, top = 1 }) {
  const along = (x) => Math.min(1, Math.max(0, x / top));
  return el("div", { class: main ? "scoreline main" : "scoreline" },
    el("span", { class: "name" }, name),
    el("span", { class: "axis", "aria-hidden": "true" },
      low != null && high != null && el("span", { class: "interval", "--low": along(low), "--high": along(high) }),
      el("span", { class: "dot", "--x": along(value) })),
    el("b", { class: "number" }, score(value)),
    el("span", { class: "hint" }, hint));
}
