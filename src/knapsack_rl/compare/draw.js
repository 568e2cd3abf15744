"use strict";
// Drawing: SVG elements by name, and the four kinds of chart that the page has. Text is only ever set as text.
const SVG = "http://www.w3.org/2000/svg";

function make(name, attributes = {}, text = null) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== null) element.textContent = text;
  return element;
}

function tag(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

// An empty chart in a figure, as wide as there is room, named for those who cannot see it.
function canvas(figure, height, label) {
  const width = Math.max(figure.clientWidth, 240);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label });
  figure.replaceChildren(tag("figcaption", {}, label), svg);
  return { svg, width, height };
}

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

const short = (x) => Math.abs(x) >= 1e9 ? `${+(x / 1e9).toFixed(1)}G` : Math.abs(x) >= 1e6 ? `${+(x / 1e6).toFixed(1)}M`
  : Math.abs(x) >= 1e3 ? `${+(x / 1e3).toFixed(1)}k` : `${+x.toFixed(4)}`;
const clip = (text, most) => text.length <= most ? text : `${text.slice(0, most - 1)}…`;

function axes(chart, box, x, y, options = {}) {
  const { svg } = chart;
  for (const value of ticks(y.low, y.high, 4)) {
    svg.append(make("line", { class: "axis", x1: box.left, x2: box.right, y1: y.at(value), y2: y.at(value) }));
    svg.append(make("text", { x: box.left - 6, y: y.at(value) + 4, "text-anchor": "end" }, short(value)));
  }
  if (options.xs !== false) for (const value of ticks(x.low, x.high, Math.min(5, (box.right - box.left) / 60)))
    svg.append(make("text", { x: x.at(value), y: box.bottom + 16, "text-anchor": "middle" }, short(value)));
  if (options.below) svg.append(make("text", { x: (box.left + box.right) / 2, y: box.bottom + 33, "text-anchor": "middle" }, options.below));
}

const scale = (low, high, from, to) => ({ low, high, at: (v) => from + (v - low) / (high - low || 1) * (to - from) });

// Lines: [{name, x, y, half, style, front}], the greys first. Names stand at the right ends, moved apart.
function lineChart(figure, lines, options) {
  const chart = canvas(figure, 300, options.title);
  const known = lines.filter((line) => line.y);
  if (!known.length) return chart.svg.append(make("text", { x: 0, y: 20 }, "nothing to show"));
  const room = Math.min(130, chart.width * 0.27);
  const box = { left: 44, right: chart.width - room, top: 10, bottom: 255 };
  const ys = known.flatMap((line) => line.y.flatMap((v, i) => v === null ? [] : line.front && line.half ? [v - line.half[i], v + line.half[i]] : [v])), xs = known.flatMap((line) => line.x);
  const pad = (Math.max(...ys) - Math.min(...ys)) * 0.04 || 0.01;
  const x = options.x ? scale(...options.x, box.left, box.right) : scale(0, Math.max(...xs), box.left, box.right);
  const y = options.y ? scale(...options.y, box.bottom, box.top) : scale(Math.min(...ys) - pad, Math.max(...ys) + pad, box.bottom, box.top);
  axes(chart, box, x, y, options);
  if (options.diagonal) chart.svg.append(make("line", { class: "zero", x1: x.at(0), y1: y.at(0), x2: x.at(1), y2: y.at(1) }));
  for (const line of known) drawLine(chart.svg, line, x, y, options);
  endLabels(chart, known.filter((line) => line.front), x, y, box, room);
  if (options.read) reader(figure, chart, known.filter((line) => line.front), x, y, box, options);
}

function drawLine(svg, line, x, y, options) {
  const points = line.x.map((v, i) => [x.at(v), line.y[i] === null ? null : y.at(line.y[i])]).filter((p) => p[1] !== null);
  const group = make("g", { "data-rule": line.name, class: line.front ? "front" : "back" });
  group.append(make("title", {}, line.name));
  if (line.front && line.half && !options.dots) {
    const edge = (sign) => line.x.map((v, i) => `${x.at(v).toFixed(1)},${y.at(line.y[i] + sign * (line.half[i] || 0)).toFixed(1)}`);
    group.append(make("polygon", { points: [...edge(1), ...edge(-1).reverse()].join(" "), fill: line.style.colour, opacity: 0.13 }));
  }
  group.append(make("polyline", { points: points.map((p) => `${p[0].toFixed(1)},${p[1].toFixed(1)}`).join(" "), fill: "none", stroke: line.style.colour,
    "stroke-width": line.front ? 2 : 1, "stroke-dasharray": line.front ? line.style.dash : "", "stroke-linejoin": "round" }));
  if (options.dots && line.front) points.forEach((p, i) => group.append(make("circle", { cx: p[0], cy: p[1], r: line.size ? line.size[i] : 3, fill: line.style.colour, opacity: 0.8 })));
  svg.append(group);
}

function endLabels(chart, lines, x, y, box, room) {
  const ends = lines.map((line) => ({ line, x: x.at(line.x.at(-1)), y: y.at(line.y.findLast((v) => v !== null)) })).sort((a, b) => a.y - b.y);
  const places = ends.map((end) => end.y);
  for (let i = 1; i < places.length; i++) places[i] = Math.max(places[i], places[i - 1] + 14);
  const push = places.length ? places.reduce((a, b) => a + b) / places.length - ends.reduce((a, b) => a + b.y, 0) / places.length : 0;
  const over = places.length ? Math.min(0, box.bottom - (places.at(-1) - push)) : 0;
  const under = places.length ? Math.max(0, 8 - (places[0] - push + over)) : 0;
  ends.forEach((end, i) => {
    const place = places[i] - push + over + under, right = box.right + 10;
    chart.svg.append(make("path", { d: `M${end.x + 2},${end.y}L${right - 2},${place}`, stroke: end.line.style.colour, opacity: 0.5, fill: "none" }));
    const label = make("text", { x: right, y: place + 4, style: `fill:${end.line.style.colour};font-weight:600` }, clip(end.line.name, Math.floor((room - 12) / 6.9)));
    label.append(make("title", {}, end.line.name));
    chart.svg.append(label);
  });
}

// A vertical hair that reads the highlighted lines off, by pointer or by arrow keys.
function reader(figure, chart, lines, x, y, box, options) {
  const hair = make("line", { class: "zero", y1: box.top, y2: box.bottom, visibility: "hidden" });
  const out = tag("p", { class: "readout", "aria-live": "polite" });
  chart.svg.append(hair);
  chart.svg.setAttribute("tabindex", "0");
  figure.append(out);
  let at = x.high;
  const show = (value) => {
    at = Math.min(Math.max(value, x.low), x.high);
    hair.setAttribute("x1", x.at(at)); hair.setAttribute("x2", x.at(at)); hair.setAttribute("visibility", "visible");
    const parts = lines.map((line) => [line.name, interpolate(line, at)]).filter((p) => p[1] !== null).sort((a, b) => b[1] - a[1]);
    out.replaceChildren(`${short(at)} ${options.unit}: `, ...parts.flatMap(([name, v], i) => [i ? ", " : "", tag("b", {}, clip(name, 24)), ` ${v.toFixed(3)}`]));
  };
  chart.svg.addEventListener("pointermove", (event) => {
    const frame = chart.svg.getBoundingClientRect();
    show(x.low + ((event.clientX - frame.left) / frame.width * chart.width - box.left) / (box.right - box.left) * (x.high - x.low));
  });
  chart.svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) { event.preventDefault(); show(at + step * (x.high - x.low) / 50); }
  });
}

function interpolate(line, at) {
  const i = line.x.findIndex((v) => v >= at);
  if (i < 0) return null;
  if (i === 0 || line.y[i - 1] === null || line.y[i] === null) return line.y[i];
  return line.y[i - 1] + (at - line.x[i - 1]) / (line.x[i] - line.x[i - 1]) * (line.y[i] - line.y[i - 1]);
}

// Dots with intervals, a row for each: [{name, mean, half, style, front}].
function dotChart(figure, rows, options) {
  const chart = canvas(figure, rows.length * 22 + 44, options.title);
  const left = Math.min(170, chart.width * 0.36), right = chart.width - 66;
  const ends = rows.flatMap((row) => [row.mean - (row.half || 0), row.mean + (row.half || 0), 0]);
  const pad = (Math.max(...ends) - Math.min(...ends)) * 0.03 || 0.01;
  const x = scale(Math.min(...ends) - pad, Math.max(...ends) + pad, left, right), bottom = rows.length * 22 + 6;
  for (const value of ticks(x.low, x.high, Math.min(6, (right - left) / 64))) {
    chart.svg.append(make("line", { class: "axis", x1: x.at(value), x2: x.at(value), y1: 4, y2: bottom }));
    chart.svg.append(make("text", { x: x.at(value), y: bottom + 16, "text-anchor": "middle" }, short(value)));
  }
  chart.svg.append(make("line", { class: "zero", x1: x.at(0), x2: x.at(0), y1: 4, y2: bottom }));
  rows.forEach((row, i) => {
    const y = i * 22 + 17, colour = row.front ? row.style.colour : "var(--muted)", group = make("g", { "data-rule": row.name });
    group.append(make("title", {}, `${row.name}: ${row.mean.toFixed(4)}${row.half === null ? "" : ` ± ${row.half.toFixed(4)}`}`));
    group.append(make("text", { x: left - 10, y: y + 4, "text-anchor": "end", class: row.front ? "strong" : "", style: row.front ? `fill:${colour}` : "" }, clip(row.name, Math.floor(left / 7.2))));
    if (row.half !== null) group.append(make("line", { x1: x.at(row.mean - row.half), x2: x.at(row.mean + row.half), y1: y, y2: y, stroke: colour, "stroke-width": 2.5, opacity: 0.55, "stroke-linecap": "round" }));
    group.append(make("circle", { cx: x.at(row.mean), cy: y, r: 4.5, fill: colour }));
    group.append(make("text", { x: chart.width, y: y + 4, "text-anchor": "end", class: row.front ? "strong" : "" }, row.label || `${row.mean > 0 ? "+" : row.mean < 0 ? "−" : ""}${Math.abs(row.mean).toFixed(4)}`));
    chart.svg.append(group);
  });
}

// Shaded cells: shares[row][column] in 0..1, the first row at the bottom where `up`.
function heatChart(figure, shares, options) {
  const rows = shares.length, columns = shares[0].length, tall = options.tall || 13;
  const chart = canvas(figure, rows * tall + 38, options.title), left = options.left || 46;
  const wide = (chart.width - left) / columns;
  shares.forEach((row, r) => {
    const y = (options.up ? rows - 1 - r : r) * tall;
    row.forEach((share, c) => {
      if (share < 0.002) return;
      const cell = make("rect", { x: left + c * wide + 0.5, y: y + 0.5, width: Math.max(wide - 1, 1), height: tall - 1, rx: 2, fill: options.colour(r), opacity: 0.12 + 0.88 * Math.sqrt(share) });
      cell.append(make("title", {}, `${options.tell(r, c)}: ${(100 * share).toFixed(1)} %`));
      chart.svg.append(cell);
    });
    if (options.rows(r)) chart.svg.append(make("text", { x: left - 6, y: y + tall / 2 + 4, "text-anchor": "end", class: options.strong && options.strong(r) ? "strong" : "" }, options.rows(r)));
  });
  for (let c = 0; c < columns; c++) if (options.columns(c)) chart.svg.append(make("text", { x: left + (c + 0.5) * wide, y: rows * tall + 15, "text-anchor": "middle" }, options.columns(c)));
  chart.svg.append(make("text", { x: left + (chart.width - left) / 2, y: rows * tall + 32, "text-anchor": "middle" }, options.below));
}
