// State of the page; every chart is redrawn when it changes.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const MEASURES = { mean_p: "mean success rate", area: "mean over the whole run (area under the curve)", held_out_p: "success rate on held-out prompts",
  hard_quarter_p: "success rate on the hardest quarter", coverage: "share of prompts ever solved", mixed_prompts: "share of prompts in mixed groups",
  hard_half_p: "success rate on the harder half", forgotten: "success rate lost by prompts that were above 90 % at the start", lost: "share of prompts that fell from above 90 % to below 50 %",
  zero_gradient_rollouts: "share of rollouts in groups without a gradient", value_share: "value of the plan, as a share of the oracle's", candidate_error: "squared error of the success rates forecast, of all candidates", log_score: "log score of expected success rates", overhead: "share of the time spent in the rule",
  mixed_rollouts: "share of rollouts in mixed groups", mixed_groups: "mixed groups per 1,000 rollouts", belief_error: "squared error of expected success rates" };
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "12 4", "4 2"];
const SLOTS = 6;
const everything = data.presets.length - 1;
const state = { preset: everything, front: [], measure: data.measure, metric: data.measure, window: 2 };

// Uniform is always highlighted; initially also `beta`, the paper's rule, the oracle and the best two other rules.
const start = ["beta", "paper", data.oracle, ...data.best.filter((rule) => !data.oracles.includes(rule))].filter((rule) => rule !== "uniform" && data.rules.includes(rule));
state.front = [...new Set(start)].slice(0, 5).map((rule) => data.rules.indexOf(rule));
const slots = new Map(state.front.map((r, i) => [r, i]));
const uniform = data.rules.indexOf("uniform");

const isFront = (r) => r === uniform || state.front.includes(r);
function style(r) {
  if (r === uniform) return { colour: "var(--ink)", dash: "4 3" };
  return slots.has(r) ? { colour: `var(--c${slots.get(r)})`, dash: DASHES[slots.get(r)] } : { colour: "var(--grey)", dash: "" };
}
// The greys first, so that the highlighted ones are drawn over them.
const ordered = () => data.rules.map((_, r) => r).sort((a, b) => isFront(a) - isFront(b));
const front = () => [uniform, ...state.front];

function swatch(r) {
  const svg = make("svg", { width: 22, height: 8, viewBox: "0 0 22 8", style: "width:22px;flex:none", "aria-hidden": "true" });
  svg.append(make("line", { x1: 1, x2: 21, y1: 4, y2: 4, stroke: style(r).colour, "stroke-width": 3, "stroke-dasharray": isFront(r) ? style(r).dash : "" }));
  return svg;
}

function toggle(r) {
  if (state.front.includes(r)) {
    state.front = state.front.filter((each) => each !== r);
    slots.delete(r);
  } else {
    if (state.front.length === SLOTS) slots.delete(state.front.shift());
    slots.set(r, [...Array(SLOTS).keys()].find((slot) => ![...slots.values()].includes(slot)));
    state.front.push(r);
  }
  draw();
}

function controls() {
  [everything, ...Array(everything).keys()].forEach((p) => {
    const name = data.presets[p];
    const button = tag("button", { type: "button", "data-preset": name, title: name }, clip(name, 26));
    button.addEventListener("click", () => { state.preset = p; draw(); });
    $("presets").append(button);
  });
  data.best.map((name) => data.rules.indexOf(name)).filter((r) => r !== uniform).forEach((r) => {
    const button = tag("button", { type: "button", "data-rule": data.rules[r], title: data.rules[r] });
    button.addEventListener("click", () => toggle(r));
    $("chips").append(button);
  });
  for (const [id, offered] of [["measure", data.ahead], ["metric", data.curves]])
    for (const name of Object.keys(MEASURES)) if (name in offered) $(id).append(tag("option", { value: name }, MEASURES[name]));
  for (const name of ["measure", "metric", "window"]) {
    $(name).value = state[name]; // a browser that goes back may have kept another
    $(name).addEventListener("change", (event) => { state[name] = event.target.value; draw(); });
  }
  $("theme").addEventListener("click", () => {
    const dark = getComputedStyle(document.documentElement).getPropertyValue("--paper").trim() === "#14181e";
    document.documentElement.dataset.theme = dark ? "light" : "dark";
  });
  $("controls").hidden = false;
}

function marks() {
  for (const button of $("presets").querySelectorAll("button")) button.setAttribute("aria-pressed", button.dataset.preset === data.presets[state.preset]);
  for (const button of $("chips").children) {
    const r = data.rules.indexOf(button.dataset.rule);
    button.setAttribute("aria-pressed", isFront(r));
    button.replaceChildren(swatch(r), tag("span", {}, data.rules[r]));
  }
  $("legend").replaceChildren(...front().map((r) => tag("span", { class: "key" }, swatch(r), tag("span", {}, data.rules[r]))));
}

function ranking() {
  const rows = data.rules.map((name, r) => {
    const [mean, half, level] = data.ahead[state.measure][r][state.preset];
    return { name, mean, half, style: style(r), front: isFront(r), label: r === uniform && level !== null ? level.toFixed(4) : "" };
  }).filter((row) => row.mean !== null).sort((a, b) => b.mean - a.mean);
  dotChart($("ranking"), rows, { title: `${sentence(MEASURES[state.measure])} ahead of uniform, ${data.presets[state.preset]}` });
}
const sentence = (text) => text[0].toUpperCase() + text.slice(1);

function learning() {
  for (const spent of ["rollouts", "tokens", "rounds"]) {
    const lines = ordered().map((r) => {
      const [y, half] = data.curves[state.metric][r][state.preset];
      return { name: data.rules[r], x: data.spent[spent][r][state.preset], y, half, style: style(r), front: isFront(r) };
    }).filter((line) => line.x && line.y);
    lineChart($(`by-${spent}`), lines, { title: `${sentence(MEASURES[state.metric])}, by ${spent}`, below: `${spent} spent`, unit: spent, read: true });
  }
  $("regret-section").hidden = $("regret-curve").hidden = data.regret === null;
  if (data.regret === null) return;
  const lines = ordered().map((r) => {
    const [y, half] = data.regret_curves[r][state.preset];
    return { name: data.rules[r], x: data.spent.rollouts[r][state.preset], y, half, style: style(r), front: isFront(r) };
  }).filter((line) => line.x && line.y);
  lineChart($("regret-curve"), lines, { title: "Success rate below the oracle's, by rollouts", below: "rollouts spent", unit: "rollouts", read: true });
  const rows = data.rules.map((name, r) => {
    const [mean, half] = data.regret[r][state.preset];
    return { name, mean, half, style: style(r), front: isFront(r) };
  }).filter((row) => row.mean !== null).sort((a, b) => a.mean - b.mean);
  dotChart($("regret"), rows, { title: `Mean success rate below the oracle's, ${data.presets[state.preset]}` });
}

const rateName = (i) => `${+(100 * data.rate_edges[i]).toFixed(0)}`;
const RATES_NAMED = ["0", "10", "30", "50", "70", "90", "100"];
const countName = (i) => {
  const low = data.count_edges[i], high = data.count_edges[i + 1] - 1;
  return i === data.count_edges.length - 2 ? `${low}+` : low === high ? `${low}` : `${low}–${high}`;
};

function allocation() {
  const { groups, rollouts } = data.allocation[state.window], middles = data.rate_edges.slice(1).map((edge, i) => (edge + data.rate_edges[i]) / 2);
  const lines = ordered().map((r) => {
    const totals = groups[r][state.preset].map((row) => row.reduce((a, b) => a + b));
    const known = middles.map((_, i) => i).filter((i) => totals[i] > 0);
    return { name: data.rules[r], x: known.map((i) => middles[i]), y: known.map((i) => rollouts[r][state.preset][i] / totals[i]), style: style(r), front: isFront(r) };
  }).filter((line) => line.x.length);
  lineChart($("allocation"), lines, { title: `Rollouts of a group by true success rate, ${data.presets[state.preset]}`, below: "true success rate", unit: "true success rate", x: [0, 1], read: true });
  $("heat").replaceChildren();
  for (const r of front()) {
    const figure = tag("figure"), table = groups[r][state.preset];
    $("heat").append(figure);
    const shares = data.count_edges.slice(1).map((_, c) => table.map((row) => row[c] / Math.max(row.reduce((a, b) => a + b), 1)));
    heatChart(figure, shares, { title: data.rules[r], up: true, tall: 12, colour: () => style(r).colour, below: "true success rate, %",
      left: () => 68, beside: "rollouts", rows: (c) => c % 2 ? "" : countName(c), edges: true, columns: (i) => RATES_NAMED.includes(rateName(i)) ? rateName(i) : "",
      tell: (c, i) => `${countName(c)} rollouts at ${rateName(i)}–${rateName(i + 1)} %` });
  }
}

function counts() {
  const rules = [...data.best.map((name) => data.rules.indexOf(name))];
  const shares = rules.map((r) => {
    const table = data.allocation[state.window].groups[r][state.preset];
    const sums = data.count_edges.slice(1).map((_, c) => table.reduce((sum, row) => sum + row[c], 0)), total = sums.reduce((a, b) => a + b) || 1;
    return sums.map((sum) => sum / total);
  });
  const names = rules.map((r) => data.rules[r]), narrow = $("counts").clientWidth < 1000, room = (chart) => nameRoom(names, chart);
  heatChart($("counts"), shares, { title: `Groups by size, ${data.presets[state.preset]}`, tall: 20, left: room, below: "rollouts of a group",
    colour: (i) => isFront(rules[i]) ? style(rules[i]).colour : "var(--muted)", rows: (i) => names[i], strong: (i) => isFront(rules[i]),
    columns: (c) => !narrow ? countName(c) : c % 3 === 1 ? `${data.count_edges[c]}` : "", tell: (i, c) => `${data.rules[rules[i]]}, ${countName(c)} rollouts` });
}

const brief = (status) => status.replace("extremely", "ext.").replace("medium", "med.");

function transitions() {
  $("transitions").replaceChildren(...front().map((r) => {
    const head = tag("tr", {}, tag("th", {}, "from ↓ to →"), ...data.statuses.map((name) => tag("th", { scope: "col", title: name }, brief(name))));
    const rows = data.transitions[r][state.preset].map((row, i) => {
      const total = row.reduce((a, b) => a + b);
      return tag("tr", {}, tag("th", { scope: "row", title: data.statuses[i] }, brief(data.statuses[i])), ...row.map((count) => {
        const share = total ? 100 * count / total : 0;
        return tag("td", { style: `background:color-mix(in srgb, ${r === uniform ? "var(--muted)" : style(r).colour} ${(0.55 * share).toFixed(0)}%, transparent)`, title: `${count} of ${total}` },
          !count ? "·" : share < 0.5 ? "<1" : share.toFixed(0));
      }));
    });
    return tag("div", {}, tag("h3", { style: `color:${style(r).colour}` }, data.rules[r]), tag("table", { class: "matrix" }, tag("thead", {}, head), tag("tbody", {}, ...rows)));
  }));
}

function calibration() {
  const lines = ordered().map((r) => {
    const bins = data.reliability[r][state.preset], most = Math.max(...bins.map((bin) => bin[2]));
    return { name: data.rules[r], x: bins.map((bin) => bin[0]), y: bins.map((bin) => bin[1]), size: bins.map((bin) => 2 + 6 * Math.sqrt(bin[2] / most)), style: style(r), front: isFront(r) };
  }).filter((line) => line.x.length);
  lineChart($("calibration"), lines, { title: `True success rate by expected one, ${data.presets[state.preset]}`, below: "expected success rate", x: [0, 1], y: [0, 1], dots: true, diagonal: true });
}

function draw() {
  marks(); ranking(); learning(); allocation(); counts(); transitions(); calibration();
}

controls();
for (const place of document.querySelectorAll(".shades")) shades(place);
draw();
let width = document.body.clientWidth;
new ResizeObserver(() => {
  if (document.body.clientWidth !== width) { width = document.body.clientWidth; requestAnimationFrame(draw); }
}).observe(document.body);
