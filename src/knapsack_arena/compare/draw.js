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

// An empty chart in a figure, as wide as the figure, with an accessible name.
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

const short = (x) => x < 0 ? `−${short(-x)}` : x >= 1e9 ? `${+(x / 1e9).toFixed(1)}G` : x >= 1e6 ? `${+(x / 1e6).toFixed(1)}M`
  : x >= 1e3 ? `${+(x / 1e3).toFixed(1)}k` : `${+x.toFixed(4)}`;
// Long names are paths of rule files: their ends are shown.
const clip = (text, most) => text.length <= most ? text : text.includes("/") ? `…${text.slice(1 - most)}` : `${text.slice(0, most - 1)}…`;
// A name in an element of the page, cut to a width.
function fit(label, name, room) {
  label.textContent = name;
  for (let most = name.length - 1; most > 1 && label.getComputedTextLength() > room; most--) label.textContent = clip(name, most);
}
// Pixels for a column of names, no wider than the longest or than a share of the chart.
const nameRoom = (names, chart) => Math.min(170, chart.width * 0.36, Math.max(...names.map((name) => name.length)) * 7.4 + 14);

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
  // By the means alone: the bands of few seeds are wide, and would squeeze what differs into a stripe. They are cut off.
  const ys = known.flatMap((line) => line.y.filter((v) => v !== null)), xs = known.flatMap((line) => line.x);
  const low = Math.min(...ys), high = Math.max(...ys), pad = (high - low) * 0.04 || 0.01;
  if (!options.y) box.left = 14 + 6.6 * Math.max(...ticks(low - pad, high + pad, 4).map((value) => short(value).length));
  const x = options.x ? scale(...options.x, box.left, box.right) : scale(0, Math.max(...xs), box.left, box.right);
  const y = options.y ? scale(...options.y, box.bottom, box.top) : scale(low - pad, high + pad, box.bottom, box.top);
  axes(chart, box, x, y, options);
  if (options.diagonal) chart.svg.append(make("line", { class: "zero", x1: x.at(0), y1: y.at(0), x2: x.at(1), y2: y.at(1) }));
  const cut = make("clipPath", { id: `cut-${figure.id}` });
  cut.append(make("rect", { x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top }));
  chart.svg.append(cut);
  for (const line of known) line.group = drawLine(chart.svg, line, x, y, { ...options, cut: `url(#${cut.id})` });
  endLabels(chart, known.filter((line) => line.front), x, y, box, room);
  if (options.read) reader(figure, chart, known, x, y, box, options);
}

function drawLine(svg, line, x, y, options) {
  const points = line.x.map((v, i) => [x.at(v), line.y[i] === null ? null : y.at(line.y[i])]).filter((p) => p[1] !== null);
  const group = make("g", { "data-rule": line.name, class: line.front ? "front" : "back" });
  group.append(make("title", {}, line.name));
  if (line.half) {
    const edge = (sign) => line.x.map((v, i) => `${x.at(v).toFixed(1)},${y.at(line.y[i] + sign * (line.half[i] || 0)).toFixed(1)}`);
    group.append(make("polygon", { class: "band", points: [...edge(1), ...edge(-1).reverse()].join(" "), fill: line.style.colour, "clip-path": options.cut }));
  }
  group.append(make("polyline", { points: points.map((p) => `${p[0].toFixed(1)},${p[1].toFixed(1)}`).join(" "), fill: "none", stroke: line.style.colour,
    "stroke-width": line.front ? 2 : 1, "stroke-dasharray": line.front ? line.style.dash : "", "stroke-linejoin": "round" }));
  if (options.dots && line.front) points.forEach((p, i) => group.append(make("circle", { cx: p[0], cy: p[1], r: line.size ? line.size[i] : 3, fill: line.style.colour, opacity: 0.65 })));
  svg.append(group);
  return group;
}

// Names at the right ends, each as near to its line as the others let it: neighbours that are too close share their mean.
function endLabels(chart, lines, x, y, box, room) {
  const ends = lines.map((line) => ({ line, x: x.at(line.x.at(-1)), y: y.at(line.y.findLast((v) => v !== null)) })).sort((a, b) => a.y - b.y);
  const right = box.right + 10, high = 14, blocks = [];
  for (const end of ends) {
    blocks.push({ ends: [end], top: end.y });
    while (blocks.length > 1 && blocks.at(-2).top + high * blocks.at(-2).ends.length > blocks.at(-1).top) {
      const both = [blocks.at(-2), blocks.pop()].flatMap((block) => block.ends);
      const top = both.reduce((sum, each, i) => sum + each.y - high * i, 0) / both.length;
      blocks[blocks.length - 1] = { ends: both, top: Math.max(Math.min(top, box.bottom - high * (both.length - 1)), box.top) };
    }
  }
  for (const block of blocks) block.ends.forEach((end, i) => {
    const place = block.top + high * i;
    chart.svg.append(make("path", { d: `M${end.x + 2},${end.y}L${right - 2},${place}`, stroke: end.line.style.colour, opacity: 0.5, fill: "none" }));
    const label = make("text", { x: right, y: place + 4, style: `fill:${end.line.style.colour};font-weight:600` });
    chart.svg.append(label);
    fit(label, end.line.name, room - 12);
    label.append(make("title", {}, end.line.name));
  });
}

// Dots with intervals, a row for each: [{name, mean, half, style, front}].
function dotChart(figure, rows, options) {
  const chart = canvas(figure, rows.length * 22 + 44, options.title);
  const left = nameRoom(rows.map((row) => row.name), chart), right = chart.width - 66;
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
    group.append(make("text", { x: left - 10, y: y + 4, "text-anchor": "end", class: row.front ? "strong" : "", style: row.front ? `fill:${colour}` : "" }));
    const named = group.lastChild;
    if (row.half !== null) group.append(make("line", { x1: x.at(row.mean - row.half), x2: x.at(row.mean + row.half), y1: y, y2: y, stroke: colour, "stroke-width": 2.5, opacity: 0.55, "stroke-linecap": "round" }));
    group.append(make("circle", { cx: x.at(row.mean), cy: y, r: 4.5, fill: colour }));
    group.append(make("text", { x: chart.width, y: y + 4, "text-anchor": "end", class: row.front ? "strong" : "" }, row.label || `${row.mean > 0 ? "+" : row.mean < 0 ? "−" : ""}${Math.abs(row.mean).toFixed(4)}`));
    chart.svg.append(group);
    fit(named, row.name, left - 10);
  });
}

// A square's opacity by the share that it stands for; the scale below shows it.
const shade = (share) => 0.12 + 0.88 * Math.sqrt(share);
const SHADES = [0.01, 0.1, 0.25, 0.5, 1];

function shades(place) {
  place.replaceChildren(...SHADES.map((share) => {
    const square = tag("span", { class: "shade", style: `opacity:${shade(share)}` });
    return tag("span", {}, square, `${100 * share} %`);
  }));
}

// Shaded cells: shares[row][column] in 0..1, the first row at the bottom where `up`.
function heatChart(figure, shares, options) {
  const rows = shares.length, columns = shares[0].length, tall = options.tall;
  const chart = canvas(figure, rows * tall + 38, options.title), left = options.left(chart);
  const right = chart.width - (options.edges ? 12 : 0), wide = (right - left) / columns;
  shares.forEach((row, r) => {
    const y = (options.up ? rows - 1 - r : r) * tall;
    row.forEach((share, c) => {
      if (!share) return;
      const cell = make("rect", { x: left + c * wide + 0.5, y: y + 0.5, width: Math.max(wide - 1, 1), height: tall - 1, rx: 2, fill: options.colour(r), opacity: shade(share) });
      cell.append(make("title", {}, `${options.tell(r, c)}: ${(100 * share).toFixed(1)} %`));
      chart.svg.append(cell);
    });
    if (!options.rows(r)) return;
    const label = make("text", { x: left - 6, y: y + tall / 2 + 4, "text-anchor": "end", class: options.strong && options.strong(r) ? "strong" : "" });
    chart.svg.append(label);
    fit(label, options.rows(r), left - 8);
  });
  for (let c = 0; c < columns + Boolean(options.edges); c++) if (options.columns(c)) chart.svg.append(make("text", { x: left + (c + (options.edges ? 0 : 0.5)) * wide, y: rows * tall + 15, "text-anchor": "middle" }, options.columns(c)));
  chart.svg.append(make("text", { x: (left + right) / 2, y: rows * tall + 32, "text-anchor": "middle" }, options.below));
  if (options.beside) chart.svg.append(make("text", { transform: `translate(11 ${rows * tall / 2}) rotate(-90)`, "text-anchor": "middle" }, options.beside));
}
