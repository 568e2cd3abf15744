// Reading a chart of lines: a vertical hair, and one line in focus, by pointer or by arrow keys.
function reader(figure, chart, lines, x, y, box, options) {
  const hair = make("line", { class: "zero", y1: box.top, y2: box.bottom, visibility: "hidden" });
  const out = tag("p", { class: "readout", "aria-live": "polite" });
  chart.svg.append(hair);
  chart.svg.setAttribute("tabindex", "0");
  figure.append(out);
  let at = x.high, focus = null;
  const values = (among) => among.map((line) => [line, interpolate(line.x, line.y, at)]).filter((pair) => pair[1] !== null).sort((a, b) => b[1] - a[1]);
  const show = () => {
    for (const place of ["x1", "x2"]) hair.setAttribute(place, x.at(at));
    hair.setAttribute("visibility", "visible");
    chart.svg.classList.toggle("focused", focus !== null);
    for (const line of lines) line.group.classList.toggle("focus", line === focus);
    const parts = values(lines.filter((line) => line.front || line === focus)).map(([line, v]) => tag("span", { class: line === focus ? "focus" : "" },
      tag("b", {}, clip(line.name, 24)), ` ${v.toFixed(3)}${line === focus ? interval(line, at) : ""}`));
    out.replaceChildren(`${short(at)} ${options.unit}: `, ...parts.flatMap((part, i) => [i ? ", " : "", part]));
  };
  const hide = () => {
    focus = null;
    chart.svg.classList.remove("focused");
    for (const line of lines) line.group.classList.remove("focus");
    hair.setAttribute("visibility", "hidden");
    out.replaceChildren();
  };
  const point = (event) => {
    const frame = chart.svg.getBoundingClientRect(), grain = chart.width / frame.width;
    const across = (event.clientX - frame.left) * grain, down = (event.clientY - frame.top) * grain;
    at = clamp(x.low + (across - box.left) / (box.right - box.left) * (x.high - x.low), x);
    const nearest = values(lines).map(([line, v]) => [line, Math.abs(y.at(v) - down)]).sort((a, b) => a[1] - b[1])[0];
    focus = nearest && nearest[1] < 16 ? nearest[0] : null;
    show();
  };
  for (const name of ["pointerdown", "pointermove"]) chart.svg.addEventListener(name, point);
  // A finger leaves as soon as it lifts; what it pointed at stays.
  chart.svg.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });
  chart.svg.addEventListener("blur", hide);
  chart.svg.addEventListener("keydown", (event) => {
    const along = { ArrowLeft: -1, ArrowRight: 1 }[event.key], across = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (event.key === "Escape") return hide();
    if (!along && !across) return;
    event.preventDefault();
    if (along) at = clamp(at + along * (x.high - x.low) / 50, x);
    const there = values(lines).map((pair) => pair[0]), i = there.indexOf(focus);
    if (across) focus = i < 0 ? there[0] : there[Math.min(Math.max(i + across, 0), there.length - 1)];
    show();
  });
}

const clamp = (value, scale) => Math.min(Math.max(value, scale.low), scale.high);
const interval = (line, at) => {
  const half = line.half && interpolate(line.x, line.half, at);
  return half ? ` ± ${half.toFixed(4)}` : "";
};

function interpolate(xs, ys, at) {
  const i = xs.findIndex((v) => v >= at);
  if (i < 0) return null;
  if (i === 0 || ys[i - 1] === null || ys[i] === null) return ys[i];
  return ys[i - 1] + (at - xs[i - 1]) / (xs[i] - xs[i - 1]) * (ys[i] - ys[i - 1]);
}
