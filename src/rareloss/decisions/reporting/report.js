"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const curve = data.curve, last = curve.tp.length - 1;
const by = name => document.getElementById(name);
const whole = value => value.toLocaleString("en", {maximumFractionDigits: value < 100 && value % 1 ? 1 : 0});
const percent = value => value === null ? "–" : Number((100 * value).toPrecision(3)) + " %";
const between = (low, high) => low === null || high === null ? "–" : `${percent(low)} to ${percent(high)}`;
const span = (name, at) => between(curve[name + "_low"][at], curve[name + "_high"][at]);
const anywhere = (name, at) => curve[name + "_anywhere_low"] === undefined ? "" : `wherever: ${span(name + "_anywhere", at)}`;
const svg = (name, attributes, text) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
};

// Each chart: where a threshold stands on it, as shares of its width and height.
const log = (value, least) => Math.log(Math.max(value, least) / least) / Math.log(1 / least);
const total = data.positives + data.negatives;
const leastShare = Math.min(0.1, curve.alerts[1] / total), leastFpr = Math.min(0.1, 1 / data.negatives);
// The first threshold alerts nobody: it has no precision, and stands beside the second one.
const charts = {
  gain: {x: at => log(curve.alerts[at] / total, leastShare), y: at => curve.recall[at], least: leastShare},
  pr: {x: at => curve.recall[at], y: at => curve.precision[Math.max(at, 1)], least: null},
  roc: {x: at => log(curve.fpr[at], leastFpr), y: at => curve.recall[at], least: leastFpr},
};
const W = 400, H = 260, LEFT = 42, RIGHT = 24, TOP = 10, BOTTOM = 34;
const px = x => LEFT + x * (W - LEFT - RIGHT), py = y => TOP + (1 - y) * (H - TOP - BOTTOM);

function draw(name) {
  const chart = charts[name], plot = by(name);
  plot.setAttribute("viewBox", `0 0 ${W} ${H}`);
  for (const y of [0, 0.25, 0.5, 0.75, 1]) {
    plot.append(svg("line", {x1: LEFT, x2: W - RIGHT, y1: py(y), y2: py(y), class: "grid"}));
    plot.append(svg("text", {x: LEFT - 5, y: py(y) + 4, "text-anchor": "end"}, 100 * y + " %"));
  }
  const ticks = [];
  if (chart.least === null) for (const x of [0, 0.25, 0.5, 0.75, 1]) ticks.push([x, x]);
  else for (let power = 0; 10 ** power >= chart.least * 0.999; power--) ticks.push([log(10 ** power, chart.least), 10 ** power]);
  for (const [x, value] of ticks) plot.append(svg("text", {x: px(x), y: H - BOTTOM + 15, "text-anchor": "middle"}, percent(value)));
  plot.append(svg("text", {x: (LEFT + W - RIGHT) / 2, y: H - 3, "text-anchor": "middle"}, plot.dataset.x));
  const points = [];
  for (let at = 0; at <= last; at++) points.push(`${px(chart.x(at)).toFixed(1)},${py(chart.y(at)).toFixed(1)}`);
  plot.append(svg("polyline", {points: points.join(" "), class: "curve"}));
  plot.append(svg("circle", {r: 6, class: "mark"}));
  const drag = event => {
    const box = plot.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * W, y = (event.clientY - box.top) / box.height * H;
    let best = 0, least = Infinity;
    for (let at = 0; at <= last; at++) {
      // Along the curve the horizontal place decides; the height only between equal ones.
      const away = (px(chart.x(at)) - x) ** 2 + 0.05 * (py(chart.y(at)) - y) ** 2;
      if (away < least) { least = away; best = at; }
    }
    by("slider").value = best;
    show();
  };
  plot.addEventListener("pointerdown", event => { event.preventDefault(); plot.setPointerCapture?.(event.pointerId); drag(event); });
  plot.addEventListener("pointermove", event => { if (event.buttons) drag(event); });
}

const costs = () => ["fn", "fp"].map(name => Math.max(0, Number(by(name).value) || 0));
const costOf = (at, [fn, fp]) => fn * (data.positives - curve.tp[at]) + fp * curve.fp[at];

function show() {
  const at = Number(by("slider").value), price = costs();
  const cost = costOf(at, price), change = cost - costOf(data.start, price);
  const write = {
    threshold: Number(curve.threshold[at].toPrecision(6)), alerts: whole(curve.alerts[at]), caught: whole(curve.tp[at]),
    missed: whole(data.positives - curve.tp[at]), false: whole(curve.fp[at]), precision: percent(curve.precision[at]),
    recall: percent(curve.recall[at]), fpr: percent(curve.fpr[at]), lift: at ? curve.lift[at].toFixed(1) : "–", cost: whole(cost),
    change: (change > 0 ? "+" : change < 0 ? "−" : "±") + whole(Math.abs(change)),
    "precision-span": span("precision", at), "recall-span": span("recall", at), "fpr-span": span("fpr", at),
    "precision-anywhere": anywhere("precision", at), "recall-anywhere": anywhere("recall", at), "fpr-anywhere": anywhere("fpr", at),
    sentence: `With ${whole(curve.alerts[at])} alerts you catch ${whole(curve.tp[at])} of ${whole(data.positives)} and miss ${whole(data.positives - curve.tp[at])}; ${whole(curve.fp[at])} alerts are false.`,
  };
  for (const [name, text] of Object.entries(write)) by(name).textContent = text;
  document.body.dataset.at = at;
  for (const [name, chart] of Object.entries(charts)) {
    const mark = by(name).querySelector(".mark");
    mark.setAttribute("cx", px(chart.x(at)));
    mark.setAttribute("cy", py(chart.y(at)));
  }
  for (const row of document.querySelectorAll("[data-group]")) {
    const group = data.groups[row.dataset.group], cells = row.querySelectorAll("td");
    cells[1].textContent = whole(group.tp[at]);
    cells[2].textContent = whole(group.fp[at]);
    cells[3].textContent = percent(group.recall[at]);
    cells[4].textContent = between(group.recall_low[at], group.recall_high[at]);
  }
  for (const cell of document.querySelectorAll("[data-cost]")) cell.textContent = whole(costOf(Number(cell.dataset.cost), price));
  const day = by("per-day"), rows = Number(by("rows-per-day").value);
  day.textContent = rows > 0 ? whole(curve.alerts[at] / total * rows) : "–";
}

by("slider").max = last;
by("slider").value = data.start;
const asked = /#threshold=(.+)/.exec(location.hash);
if (asked) {  // the lowest kept threshold that is not below the one asked for
  const place = curve.threshold.findLastIndex(value => value >= Number(asked[1]));
  by("slider").value = Math.max(0, place);
}
for (const name of Object.keys(charts)) draw(name);
for (const name of ["slider", "fn", "fp", "rows-per-day"]) by(name).addEventListener("input", show);
by("cheapest").addEventListener("click", () => {
  const price = costs();
  let best = 0;
  for (let at = 1; at <= last; at++) if (costOf(at, price) < costOf(best, price)) best = at;
  by("slider").value = best;
  show();
});
show();
