"use strict";

const all = (root, selector) => [...root.querySelectorAll(selector)];

/* An element with properties, `data-` and `aria-` attributes, and children. Texts stay texts. */
function made(tag, { className = "", text = null, ...more } = {}, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== null) element.textContent = text;
  for (const [name, value] of Object.entries(more)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

const few = (value) =>
  value === null ? "none" : value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(4)));

const labelled = (text, input) => made("label", {}, made("span", { text }), input);
const swatch = (color) => made("span", { className: `swatch c${color % 8}`, "aria-hidden": "true" });

/* --- what all charts share --- */

const view = { hidden: new Set(), smooth: 0, log: false, spread: true, pointed: null, query: "" };
const coarse = matchMedia("(pointer: coarse)");
const dark = matchMedia("(prefers-color-scheme: dark)");
let library = null; // once it is unpacked

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/* Means that follow a series: each new value counts for 1 - weight, as in TensorBoard. */
function smoothed(values, weight) {
  let last = 0;
  let count = 0;
  return values.map((value) => {
    if (value === null || weight === 0) return value;
    last = last * weight + (1 - weight) * value;
    count += 1;
    return last / (1 - weight ** count);
  });
}

/* Stretches of a line that have no gap. */
function stretches(line) {
  const found = [];
  line.y.forEach((value, i) => {
    if (value === null) found.push([]);
    else if (found.length) found[found.length - 1].push(i);
    else found.push([i]);
  });
  return found.filter((stretch) => stretch.length);
}

function bandOf(line, color, log) {
  const x = [];
  const y = [];
  const floor = log ? Math.min(...line.y.filter((value) => value > 0)) : -Infinity;
  const [low, high] = [0, 1].map((side) => smoothed(line.band.map((ends) => ends[side]), view.smooth));
  for (const stretch of stretches(line)) {
    const back = [...stretch].reverse();
    x.push(...stretch.map((i) => line.x[i]), ...back.map((i) => line.x[i]), null);
    y.push(...stretch.map((i) => high[i]), ...back.map((i) => Math.max(low[i], floor)), null);
  }
  return { x, y, fill: "toself", fillcolor: color, opacity: 0.16, mode: "none", hoverinfo: "skip" };
}

const nearest = (xs, x) => xs.reduce((best, one, i) => (best < 0 || Math.abs(one - x) < Math.abs(xs[best] - x) ? i : best), -1);

/* Whether a line is seen: of a stack by its own name, otherwise by its run. */
const seen = (panel, line) => !(panel.stacked ? panel.off.has(line.label) : view.hidden.has(line.color));

function tracesOf(panel) {
  const bands = [];
  const lines = [];
  panel.lines.forEach((line, number) => {
    if (!seen(panel, line)) return;
    const color = css(`--c${line.color % 8}`);
    const dim = !panel.stacked && view.pointed !== null && view.pointed !== line.color;
    const style = { color, width: line.x.length <= 100 ? 2 : 1.5, dash: line.color > 7 ? "dash" : "solid" };
    const y = panel.stacked ? line.y : smoothed(line.y, view.smooth);
    const common = { x: line.x, hoverinfo: "none", opacity: dim ? 0.2 : 1 };
    if (panel.stacked) {
      lines.push({ ...common, y, meta: number, mode: "none", stackgroup: "one", hoveron: "points", fillcolor: color });
      return;
    }
    const shown = view.spread ? !dim : view.pointed === line.color;
    if (line.band && shown) bands.push(bandOf(line, color, view.log));
    if (view.smooth) lines.push({ ...common, y: line.y, mode: "lines", opacity: dim ? 0.08 : 0.3, line: { ...style, width: 1 }, hoverinfo: "skip" });
    const mode = line.x.length <= 40 ? "lines+markers" : "lines";
    lines.push({ ...common, y, meta: number, mode, line: style, marker: { color, size: 5, symbol: line.color } });
    const place = line.best == null ? -1 : nearest(line.x, line.best);
    if (place >= 0 && line.y[place] !== null) {
      const star = { color, size: 15, symbol: "star", line: { color: css("--paper"), width: 1.5 } };
      lines.push({ x: [line.x[place]], y: [line.y[place]], mode: "markers", marker: star, hoverinfo: "skip", opacity: dim ? 0.2 : 1 });
    }
  });
  return [...bands, ...lines];
}

/* The range of lines that are all at one value, which would be drawn from -1 to 1 whatever it is. */
function flatRange(panel) {
  const values = panel.stacked ? [] : panel.lines.filter((line) => seen(panel, line)).flatMap((line) => (line.band ? line.band.flat() : line.y));
  const known = values.filter((value) => value !== null);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  if (!known.length || view.log || high - low > 1e-9 * Math.max(Math.abs(low), Math.abs(high))) return null;
  const around = Math.abs(high) / 2 || 0.5;
  return [low - around, high + around];
}

/* Marks between which no epoch is, of a run of few, would only be read. */
const ofFewEpochs = (panel) => {
  const epochs = panel.lines.flatMap((line) => line.x);
  return Math.max(...epochs) - Math.min(...epochs) <= 8 ? { dtick: 1 } : {};
};

function layoutOf(panel, large) {
  const flat = flatRange(panel);
  const axis = { gridcolor: css("--rule"), linecolor: css("--faint"), zeroline: false, tickcolor: css("--rule"), fixedrange: false };
  const spike = { showspikes: true, spikemode: "across", spikethickness: 1, spikedash: "dot", spikecolor: css("--faint"), spikesnap: "hovered data" };
  const exponents = { exponentformat: "e", minexponent: 4, automargin: true };
  return {
    autosize: true,
    showlegend: false,
    margin: { l: 48, r: 14, t: 8, b: 38 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: css("--faint") },
    hovermode: "x",
    hoverdistance: -1,
    spikedistance: -1,
    dragmode: coarse.matches ? (large ? "pan" : false) : "zoom",
    uirevision: view.log ? "log" : "linear",
    xaxis: { ...axis, ...spike, title: { text: "epoch", standoff: 4 }, tickformat: ",~r", ...ofFewEpochs(panel) },
    yaxis: { ...axis, ...exponents, title: panel.unit ? { text: panel.unit } : undefined, type: view.log ? "log" : "linear", rangemode: panel.stacked ? "tozero" : "normal", ...(flat ? { range: flat } : { autorange: true }) },
  };
}

/* --- one chart --- */

/* Say the values of the seen lines at an epoch. */
function tell(figure, epoch) {
  const { panel, told } = figure;
  const rows = panel.lines.flatMap((line) => {
    const place = line.x.indexOf(epoch);
    if (!seen(panel, line) || place < 0 || line.y[place] === null) return [];
    const band = line.band && line.band[place];
    const spread = band && view.spread ? ` ${few(band[0])} … ${few(band[1])}` : "";
    const best = line.best != null && nearest(line.x, line.best) === place ? " best" : "";
    const name = panel.lines.length > 1 || panel.stacked ? [swatch(line.color), made("span", { text: line.label })] : [made("span", { text: line.label })];
    return [made("div", {}, ...name, " ", made("b", { text: few(line.y[place]) }), made("span", { className: "small", text: `${spread}${best}` }))];
  });
  told.replaceChildren(made("div", { text: `epoch ${few(epoch)}` }), ...rows);
  told.hidden = rows.length === 0;
}

/* Step the reading from epoch to epoch, with the keys of arrows. */
function stepReading(figure, step) {
  const epochs = [...new Set(figure.panel.lines.filter((line) => seen(figure.panel, line)).flatMap((line) => line.x))].sort((a, b) => a - b);
  if (!epochs.length || library === null) return;
  const place = epochs.indexOf(figure.at);
  const last = epochs.length - 1;
  const from = place < 0 ? (step > 0 ? -1 : last + 1) : place;
  const next = step === -Infinity ? 0 : Math.min(last, Math.max(0, from + step));
  figure.at = epochs[next];
  const points = figure.plot.data.flatMap((trace, curveNumber) => {
    const pointNumber = trace.meta === undefined ? -1 : trace.x.indexOf(figure.at);
    return pointNumber < 0 ? [] : [{ curveNumber, pointNumber }];
  });
  library.Fx.hover(figure.plot, points);
  tell(figure, figure.at);
}

function summary(panel) {
  const ends = panel.lines.map((line) => {
    const known = line.x.map((x, i) => [x, line.y[i]]).filter(([, y]) => y !== null);
    if (!known.length) return `${line.label}: no values`;
    const [[first, before], [last, after]] = [known[0], known[known.length - 1]];
    return `${line.label}: ${few(before)} at epoch ${first}, ${few(after)} at epoch ${last}`;
  });
  return `${panel.title}. ${ends.join("; ")}. Arrow keys read the values.`;
}

function draw(figure) {
  if (library === null || figure.panel === null) return;
  figure.stale = false;
  const { panel, plot } = figure;
  plot.setAttribute("aria-label", summary(panel));
  const config = { displayModeBar: false, responsive: true, scrollZoom: figure.large && coarse.matches, doubleClick: "reset" };
  const first = !plot.classList.contains("js-plotly-plot");
  library.react(plot, tracesOf(panel), layoutOf(panel, figure.large), config);
  if (!first) return;
  plot.on("plotly_hover", ({ points }) => {
    figure.at = points[0].x;
    tell(figure, figure.at);
  });
  plot.on("plotly_unhover", () => (figure.told.hidden = true));
  plot.on("plotly_relayout", (changed) => {
    figure.reset.hidden = !Object.keys(changed).some((name) => name.includes("range["));
  });
}

/* A chart without its lines yet: title, buttons, the place to draw, the reading, the key. */
function chartOf(panel, large = false) {
  const plot = made("div", { className: "plot", role: "application", tabIndex: 0, "aria-roledescription": "chart", "aria-label": panel.title });
  const told = made("div", { className: "told", hidden: true, role: "status" });
  const reset = made("button", { type: "button", text: "Zoom out", hidden: true });
  const enlarge = made("button", { type: "button", text: "Enlarge", "aria-label": `Enlarge ${panel.title}` });
  const caption = made("figcaption", {}, made("h3", { text: panel.title }), reset, ...(large ? [] : [enlarge]));
  const keys = made("p", { className: "keys" });
  const element = made("figure", { className: large ? "chart large" : "chart" }, caption, made("div", { className: "place" }, plot, told), keys);
  const figure = { panel, plot, told, reset, keys, element, large, stale: true, at: null };
  reset.addEventListener("click", () => {
    const flat = flatRange(figure.panel);
    library.relayout(plot, { "xaxis.autorange": true, ...(flat ? { "yaxis.range": flat } : { "yaxis.autorange": true }) });
    reset.hidden = true;
  });
  enlarge.addEventListener("click", () => enlargeChart(figure));
  plot.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
    if (event.key in steps) stepReading(figure, steps[event.key]);
    else if (event.key === "Enter" && !large) enlargeChart(figure);
    else return;
    event.preventDefault();
  });
  plot.addEventListener("blur", () => (told.hidden = true));
  keysOf(figure);
  return figure;
}

const keyOf = (label, color, pressed) =>
  made("button", { type: "button", className: "key", "aria-pressed": String(pressed) }, swatch(color), made("span", { text: label }));

/* The key of a run, which hides it everywhere at once. */
function keyOfRun(label, color) {
  const button = keyOf(label, color, !view.hidden.has(color));
  button.dataset.run = color;
  button.addEventListener("click", () => {
    toggle(view.hidden, color);
    view.pointed = null;
    for (const one of all(document, `[data-run="${color}"]`)) one.setAttribute("aria-pressed", String(!view.hidden.has(color)));
    redrawAll();
  });
  pointing(button, color);
  return button;
}

/* The key of a part of a stack, which hides it in its chart. */
function keyOfPart(figure, { label, color }) {
  const button = keyOf(label, color, !figure.panel.off.has(label));
  button.addEventListener("click", () => {
    toggle(figure.panel.off, label);
    button.setAttribute("aria-pressed", String(!figure.panel.off.has(label)));
    redraw(figure);
  });
  return button;
}

function keysOf(figure) {
  const { panel, keys } = figure;
  panel.off = panel.off || new Set();
  if (panel.lines.length < 2 && !panel.stacked) return;
  const labels = panel.lines.map((line) => line.label);
  if (all(keys, "button").map((button) => button.textContent).join("\n") === labels.join("\n")) return;
  keys.replaceChildren(...panel.lines.map((line) => (panel.stacked ? keyOfPart(figure, line) : keyOfRun(line.label, line.color))));
}

const toggle = (set, value) => (set.has(value) ? set.delete(value) : set.add(value));

/* The run whose key is pointed at stands out, with its spread. */
function pointing(button, color) {
  const point = (run) => () => {
    if (view.pointed === run) return;
    view.pointed = run;
    redrawAll();
  };
  button.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && point(color)());
  button.addEventListener("pointerleave", point(null));
  button.addEventListener("focus", () => button.matches(":focus-visible") && point(color)());
  button.addEventListener("blur", point(null));
}

/* --- all charts --- */

const figures = [];
const near = new Set();
const watcher = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      const figure = figures.find((one) => one.element === target);
      if (!figure) continue;
      if (isIntersecting) near.add(figure);
      else near.delete(figure);
      if (isIntersecting && figure.stale) draw(figure);
    }
  },
  { rootMargin: "300px" },
);

/* At once where it is in sight, later where it is not. */
function redraw(figure) {
  figure.stale = true;
  if (near.has(figure)) draw(figure);
}

let due = 0;
function redrawAll() {
  cancelAnimationFrame(due);
  due = requestAnimationFrame(() => figures.forEach(redraw));
}

/* Put charts into their places; where the same are there already only their lines change. */
function showCharts(sections) {
  for (const place of all(document, "[data-charts]")) {
    const panels = sections[place.dataset.charts];
    const mine = figures.filter((figure) => figure.place === place);
    if (mine.length === panels.length && mine.every((figure, i) => figure.panel.title === panels[i].title)) {
      mine.forEach((figure, i) => {
        figure.panel = { ...panels[i], off: figure.panel.off };
        keysOf(figure);
        redraw(figure);
      });
      continue;
    }
    for (const figure of mine) {
      watcher.unobserve(figure.element);
      near.delete(figure);
      figures.splice(figures.indexOf(figure), 1);
    }
    const added = panels.map((panel) => chartOf(panel));
    for (const figure of added) figure.place = place;
    place.replaceChildren(...added.map((figure) => figure.element));
    place.classList.toggle("single", panels.length === 1);
    figures.push(...added);
    added.forEach((figure) => watcher.observe(figure.element));
  }
  search();
}

function search() {
  const words = view.query.toLowerCase().split(/\s+/).filter(Boolean);
  for (const figure of figures) figure.element.hidden = !words.every((word) => figure.panel.title.toLowerCase().includes(word));
  for (const place of all(document, "[data-charts]")) {
    const hits = figures.filter((figure) => figure.place === place && !figure.element.hidden).length;
    const section = place.closest("section");
    section.classList.toggle("without", words.length > 0 && hits === 0);
    const folded = section.querySelector("details");
    if (!folded || !words.length) continue;
    folded.open = hits > 0;
  }
}

const bar = document.getElementById("charts-bar");

function showBar() {
  view.spread = data.runs.length < 3;
  const smooth = made("input", { type: "range", min: 0, max: 0.99, step: 0.01, value: 0, className: "smooth" });
  const log = made("input", { type: "checkbox", className: "log" });
  const spread = made("input", { type: "checkbox", className: "spread", checked: view.spread });
  const query = made("input", { type: "search", className: "query", placeholder: "reward, loss, …" });
  smooth.addEventListener("input", () => ((view.smooth = Number(smooth.value)), redrawAll()));
  log.addEventListener("change", () => ((view.log = log.checked), redrawAll()));
  spread.addEventListener("change", () => ((view.spread = spread.checked), redrawAll()));
  query.addEventListener("input", () => ((view.query = query.value), search()));
  const keys = made("span", { className: "barkeys" }, ...(data.runs.length < 2 ? [] : data.runs.map(keyOfRun)));
  const under = () => document.documentElement.style.setProperty("--under", `${bar.offsetHeight + 14}px`);
  new ResizeObserver(under).observe(bar);
  bar.append(keys, labelled("smoothing", smooth), labelled("log scale", log), labelled("spread", spread), labelled("find a chart", query));
}

/* --- one chart over the whole page --- */

function enlargeChart(from) {
  const figure = chartOf({ ...from.panel }, true);
  const close = made("button", { type: "button", text: "Close" });
  figure.element.querySelector("figcaption").append(close);
  const dialog = made("dialog", { className: "over", "aria-label": from.panel.title }, figure.element);
  const gone = () => {
    figures.splice(figures.indexOf(figure), 1);
    near.delete(figure);
    if (library !== null) library.purge(figure.plot);
    dialog.remove();
  };
  dialog.addEventListener("close", gone);
  close.addEventListener("click", () => dialog.close());
  document.body.append(dialog);
  dialog.showModal();
  figures.push(figure);
  near.add(figure);
  draw(figure);
}

/* --- the library --- */

/* It is packed, and may run because the page's policy states its hash. */
async function unpack() {
  const packed = Uint8Array.from(atob(document.getElementById("library").textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const text = await new Response(stream).text();
  // It brings a style sheet for maps, unless it finds it there. Here are no maps, and the policy would refuse it.
  const maps = [...text.matchAll(/getElementById\("([0-9a-f]{64})"\)/g)].map(([, id]) => made("template", { id }));
  const code = made("script", { text });
  document.head.append(...maps, code);
  for (const element of [...maps, code]) element.remove();
  library = window.Plotly;
}
