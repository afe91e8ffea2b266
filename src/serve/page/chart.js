// The load of all ranks of a server over the last ten minutes, in one chart: a line for each rank, or from
// sixteen ranks on a heat map with a row for each. Incidents lie above it, at their times.
import { clock, el, figure, minute, rankName, replace, svg, within } from "./words.js";

export const HEAT_FROM = 16;
const LANES = 3, LANE = 20, BOTTOM = 22, LEFT = 44, RIGHT = 10, PLOT = 200;
const charts = new Map();
const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// The chart of one server; it stays the same element, so the focus and the place that is read survive.
export function chartOf(target) {
  if (charts.has(target)) return charts.get(target);
  const chart = { at: null, data: null, width: 0 };
  chart.plot = el("div", { class: "plot", tabindex: 0, role: "group", "data-key": "plot " + target });
  chart.readout = el("p", { class: "readout num", role: "status" });
  chart.root = el("div", { class: "chart" }, chart.plot, chart.readout);
  const move = index => { chart.at = index; mark(chart); };
  chart.plot.addEventListener("pointermove", event => move(indexAt(chart, event)));
  chart.plot.addEventListener("pointerleave", () => move(null));
  chart.plot.addEventListener("blur", () => move(null));
  chart.plot.addEventListener("keydown", event => {
    if (!chart.data || event.target !== chart.plot) return;
    const last = chart.data.points - 1, by = event.shiftKey ? 15 : 1, from = chart.at === null ? last + 1 : chart.at;
    const to = { ArrowLeft: from - by, ArrowRight: from + by, Home: 0, End: last, Escape: null }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    move(to === null ? null : Math.max(0, Math.min(last, to)));
  });
  new ResizeObserver(() => { if (Math.abs(chart.width - chart.plot.clientWidth) > 1) redraw(chart); }).observe(chart.plot);
  charts.set(target, chart);
  return chart;
}

const dark = matchMedia("(prefers-color-scheme: dark)");
dark.addEventListener("change", () => charts.forEach(chart => redraw(chart)));

// lines: [{rank, values, blamed}], all of one length; end: of the last value; started: when the agent did; incidents: of this server.
export function show(chart, data) {
  const points = data.lines[0].values.length;
  chart.data = { ...data, points, heat: data.lines.length >= HEAT_FROM };
  redraw(chart);
}

const timeAt = (data, index) => data.end - (data.points - 1 - index) * data.step;

// The lowest number at or above the highest value of which a quarter is round.
function ceilingOf(lines) {
  let top = 0;
  for (const line of lines) for (const v of line.values) if (v > top) top = v;
  if (top <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(top));
  return [1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10].map(n => n * power).find(n => n >= top * 0.999);
}

function redraw(chart) {
  const data = chart.data, width = chart.width = chart.plot.clientWidth;
  if (!data || width < 80) return;
  const begin = timeAt(data, 0), x = s => LEFT + (width - LEFT - RIGHT) * (s - begin) / (data.end - begin || 1);
  const { marks, lanes } = incidentMarks(data, x, begin);
  const top = lanes * LANE + 6, ceiling = ceilingOf(data.lines);
  const last = data.heat ? rowsOf(data.lines).at(-1) : null, height = last ? last.at + last.height : PLOT;
  chart.geometry = { top, height, width, begin, x };
  const parts = data.heat ? heat(data, top, width, ceiling) : lines(data, top, height, width, ceiling, x);
  const picture = svg("svg", { width, height: top + height + BOTTOM, viewBox: `0 0 ${width} ${top + height + BOTTOM}`, "aria-hidden": null },
    ...notRunning(data, begin, x, top, height), ...times(data, begin, top + height, x, width), ...parts.shapes, ...marks(top, height), svg("line", { class: "cursor", y1: top, y2: top + height, visibility: "hidden" }));
  replace(chart.plot, [...parts.below, picture]);
  chart.plot.setAttribute("aria-label", spoken(data));
  mark(chart);
}

function spoken(data) {
  const now = data.lines.map(l => [rankName(l.rank), l.values[data.points - 1]]).filter(n => n[1] !== null).sort((a, b) => b[1] - a[1]);
  const range = now.length ? `; now the highest is ${now[0][0]} with ${figure(now[0][1])}, the lowest ${now.at(-1)[0]} with ${figure(now.at(-1)[1])}` : "";
  return `${data.signal} of ${data.lines.length} ranks of ${data.target} over the last ${Math.round((data.points - 1) * data.step / 60)} minutes${range}. ${data.started > timeAt(data, 0) ? "The agent has been running since " + clock(data.started) + ". " : ""}Left and right arrow keys read a moment.`;
}

// Before the agent started nothing was looked at: that is no rank's silence.
function notRunning(data, begin, x, top, height) {
  const end = Math.min(data.started || 0, data.end), width = x(end) - x(begin);
  if (end <= begin || width < 1) return [];
  const said = "the agent was not running", words = [said, "not running"].find(w => w.length * 7 < width);
  return [svg("rect", { class: "away", x: x(begin), y: top, width, height }),
    ...(words ? [text(x(begin) + width / 2, top + height * 3 / 8 + 4, words, "axis middle away")] : [])];
}

function times(data, begin, y, x, width) {
  const every = (width < 560 ? 180 : 60) * (data.end - begin > 900 ? 10 : 1), parts = [];
  for (let s = Math.ceil(begin / every) * every; s <= data.end; s += every) {
    parts.push(svg("line", { class: "tick", x1: x(s), x2: x(s), y1: y, y2: y + 4 }));
    if (x(s) > LEFT + 12 && x(s) < width - 22) parts.push(text(x(s), y + 16, minute(s), "axis middle"));
  }
  parts.push(text(2, y + 16, "UTC", "axis"));
  return parts;
}

const text = (x, y, words, kind) => { const node = svg("text", { x, y, class: kind }); node.textContent = words; return node; };

function path(values, x, y) {
  let d = "", pen = false;
  values.forEach((v, i) => { if (v !== null) d += (pen ? "L" : "M") + x(i).toFixed(1) + " " + y(v).toFixed(1); pen = v !== null; });
  return d;
}

function lines(data, top, height, width, ceiling, x) {
  const y = v => top + height - height * v / ceiling, at = i => x(timeAt(data, i)), shapes = [];
  for (let n = 0; n <= 4; n += 1) {
    const v = ceiling * n / 4;
    shapes.push(svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(v), y2: y(v) }), text(LEFT - 6, y(v) + 4, figure(v), "axis end"));
  }
  const mean = data.lines[0].values.map((_, i) => {
    const known = data.lines.map(l => l.values[i]).filter(v => v !== null);
    return known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
  });
  const ordered = [...data.lines].sort((a, b) => a.blamed - b.blamed);
  ordered.forEach(line => shapes.push(svg("path", { class: line.blamed ? "line blamed" : "line", d: path(line.values, at, y) })));
  shapes.push(svg("path", { class: "mean", d: path(mean, at, y) }));
  for (const line of ordered.filter(l => l.blamed)) {
    const i = line.values.findLastIndex(v => v !== null);
    if (i < 0) continue;
    const near = at(i) > width - 60;
    shapes.push(text(at(i) + (near ? -6 : 6), Math.max(top + 12, y(line.values[i]) - 7), rankName(line.rank), "name blamed" + (near ? " end" : "")));
  }
  return { shapes, below: [] };
}

// Where each row lies: that of a blamed rank is as high as a line of text, however many there are.
function rowsOf(lines) {
  const height = Math.max(3, Math.min(14, 420 / lines.length));
  let at = 0;
  return lines.map(line => { const row = { at, height: line.blamed ? Math.max(height, 12) : height }; at += row.height; return row; });
}

function heat(data, top, width, ceiling) {
  const rows = rowsOf(data.lines), whole = rows.at(-1).at + rows.at(-1).height;
  const cells = el("canvas", { width: data.points, height: data.lines.length });
  const pen = cells.getContext("2d"), image = pen.createImageData(data.points, data.lines.length), [low, high] = [colour("--heat-low"), colour("--heat-high")];
  data.lines.forEach((line, row) => line.values.forEach((v, i) => {
    if (v === null) return;
    const share = Math.max(0, Math.min(1, v / ceiling)) ** 0.75;
    image.data.set([0, 1, 2].map(c => low[c] + (high[c] - low[c]) * share).concat(255), 4 * (row * data.points + i));
  }));
  pen.putImageData(image, 0, 0);
  const canvas = el("canvas", { class: "heat", "aria-hidden": "true", width: data.points, height: Math.round(whole) });
  canvas.style.left = LEFT + "px"; canvas.style.top = top + "px";
  canvas.style.width = width - LEFT - RIGHT + "px"; canvas.style.height = whole + "px";
  const brush = canvas.getContext("2d");
  brush.imageSmoothingEnabled = false;
  rows.forEach((row, n) => brush.drawImage(cells, 0, n, data.points, 1, 0, row.at, data.points, row.height));
  const shapes = [];
  let free = 0;
  const label = n => text(LEFT - 6, top + rows[n].at + rows[n].height / 2 + 4, rankName(data.lines[n].rank), data.lines[n].blamed ? "axis end blamed" : "axis end");
  rows.forEach((row, n) => {
    const middle = row.at + row.height / 2, blamed = data.lines[n].blamed;
    if (blamed) shapes.push(svg("rect", { class: "outline", x: LEFT, y: top + row.at, width: width - LEFT - RIGHT, height: row.height }), label(n));
    const nearBlamed = rows.some((other, m) => data.lines[m].blamed && m !== n && Math.abs(other.at + other.height / 2 - middle) < 14);
    if (blamed || middle >= free && !nearBlamed) { if (!blamed) shapes.push(label(n)); free = middle + 14; }
  });
  return { shapes, below: [canvas] };
}

function colour(name) {
  const hex = style(name);
  return [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16));
}

// The incidents that lie in these minutes, each in the first lane that is free.
function incidentMarks(data, x, begin) {
  const found = data.incidents.map(i => ({ i, from: i.finding.onset, to: i.resolved_at || (i.live ? data.end : i.fired_at) }))
    .filter(m => m.to >= begin && m.from <= data.end).sort((a, b) => a.from - b.from);
  const ends = [];
  for (const m of found) {
    [m.x1, m.x2] = [x(Math.max(m.from, begin)), Math.max(x(Math.min(m.to, data.end)), x(Math.max(m.from, begin)) + 8)];
    const free = ends.findIndex(end => end + 4 < m.x1);
    m.lane = free >= 0 ? free : Math.min(ends.length, LANES - 1);
    ends[m.lane] = Math.max(ends[m.lane] || 0, m.x2);
  }
  const marks = (top, height) => found.map(m => {
    const rank = rankName(m.i.finding.rank), name = rank + " " + m.i.rule, letters = Math.floor((m.x2 - m.x1 - 8) / 7.6);
    const shown = name.length <= letters ? name : letters < rank.length + 3 ? rank : name.slice(0, letters - 1) + "…";
    const began = m.from >= begin ? [svg("line", { class: "onset", x1: m.x1, x2: m.x1, y1: m.lane * LANE + 2, y2: top + height })] : [];
    const label = shown.length <= letters ? [text(m.x1 + 5, m.lane * LANE + 14, shown, "flag")] : [];
    const said = `incident: ${name}, since ${clock(m.from)}` + (m.i.resolved_at ? `, over at ${clock(m.i.resolved_at)}` : "");
    const title = svg("title", {});
    title.textContent = said;
    return svg("a", { href: "#incident=" + encodeURIComponent(m.i.id), "aria-label": said, "data-key": "mark " + m.i.id, class: m.i.resolved_at ? "incident over" : "incident" },
      title, ...began, svg("rect", { x: m.x1, y: m.lane * LANE + 2, width: m.x2 - m.x1, height: LANE - 4, rx: 3 }), ...label);
  });
  return { marks, lanes: ends.length };
}

function indexAt(chart, event) {
  const { begin, width } = chart.geometry || {};
  if (!width) return null;
  const share = (event.clientX - chart.plot.getBoundingClientRect().left - LEFT) / (width - LEFT - RIGHT);
  return share < 0 || share > 1 ? null : Math.round(share * (chart.data.points - 1));
}

// The vertical line at the moment that is read, and its numbers below.
function mark(chart) {
  const { data, at, geometry } = chart, cursor = chart.plot.querySelector(".cursor");
  if (!data || !geometry || !cursor) return;
  cursor.setAttribute("visibility", at === null ? "hidden" : "visible");
  if (at === null) {
    const hint = data.heat ? (dark.matches ? "Brighter" : "Darker") + " is more, from 0 to " + figure(ceilingOf(data.lines)) + ". " : "Dashes: the mean. ";
    const said = hint + "Point at the chart, or press ← and → in it, to read a moment.";
    if (chart.readout.textContent !== said) chart.readout.textContent = said;
    return;
  }
  const s = timeAt(data, at);
  cursor.setAttribute("x1", geometry.x(s)); cursor.setAttribute("x2", geometry.x(s));
  const known = data.lines.filter(l => l.values[at] !== null).sort((a, b) => b.values[at] - a.values[at]);
  const few = known.length > 8 ? [...known.slice(0, 5), null, known.at(-1)] : known;
  const words = few.map(l => l ? rankName(l.rank) + " " + figure(l.values[at]) : "…").join("  ");
  chart.readout.textContent = clock(s) + "  " + (words || "nothing was measured");
}

export const isBlamedBy = (found, line) => found.some(f => f.target === line.target && within(f.rank, line.rank));

// One rank's last minutes, small.
export function sparkline(values, top) {
  const n = Math.max(values.length - 1, 1), x = i => i * 300 / n, y = v => 34 - 32 * v / top;
  return svg("svg", { viewBox: "0 0 300 36", preserveAspectRatio: "none", "aria-hidden": "true" }, svg("path", { class: "line", d: path(values, x, y) }));
}
