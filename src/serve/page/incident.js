// One incident: what happened and why, first; then how it is known, its files and its reports.
import { openInPerfetto } from "./actions.js";
import { bytes, clock, el, figure, rankName, same, svg, within } from "./words.js";

export const chosen = () => { const m = /^#incident=(.+)$/.exec(location.hash); return m ? decodeURIComponent(m[1]) : null; };

function bars(finding) {
  const top = Math.max(1e-9, ...finding.members.map(m => Math.abs(m.value)));
  return el("div", { class: "bars" }, ...finding.members.flatMap(m => {
    const mark = same(m.rank, finding.rank) ? "blamed" : "";
    const width = (100 * Math.abs(m.value) / top).toFixed(1) + "%";
    return [el("span", { class: mark }, rankName(m.rank) + (m.stale ? " (silent)" : "")),
      svg("svg", { "aria-hidden": "true" }, svg("rect", { class: mark, x: 0, y: 0, height: 12, width, rx: 2 })),
      el("span", { class: "num " + mark }, figure(m.value))];
  }));
}

// What departed, in the finding's own words, where it was a factor.
export const departure = f => f.statistic === "factors" && f.evidence ? f.evidence.split("; ")[0] : "";

// A factor is in multiples of its bound, any other statistic in its own unit. A rank that hangs has no bound.
export const howMuch = (statistic, signal, value, bound) => value === null || signal === "stuck" ? signal
  : statistic.startsWith("factors") ? signal + ": " + figure(value) + " times the firing bound"
  : statistic + " is " + figure(value) + " (bound " + figure(bound) + ")";

const isTrace = name => /\.trace\.json(\.gz)?$/.test(name);

function fileRow(i, href, file) {
  const note = el("span", { class: "small problem", role: "status" }), title = i.id + " " + file.path;
  const perfetto = isTrace(file.path)
    ? el("button", { type: "button", "data-key": "perfetto " + file.path, title: "opens ui.perfetto.dev and hands it this file; it is sent to no server", "aria-label": "Open " + file.path + " in Perfetto",
        onclick: () => openInPerfetto(href(file.path), title, words => { note.textContent = words; }) }, "Perfetto")
    : "";
  return el("li", { class: "file" }, el("a", { href: href(file.path), download: isTrace(file.path) }, file.path), el("span", { class: "quiet num" }, bytes(file.size)),
    file.needs_token ? el("span", { class: "quiet", title: "it may hold the environment of the server; give the agent's token as the password" }, "asks for the agent's token") : "", perfetto, note);
}

const rankOf = (i, file) => i.capture.state === "done" ? (i.capture.files.find(f => f.path.split("/").at(-1) === file.path.split("/").at(-1)) || {}).rank : null;
const traceName = (i, file) => rankOf(i, file) ? "Trace of " + rankName(rankOf(i, file)) : "A trace";

// The trace of the blamed rank, else the first.
function tracesFirst(i, files) {
  const traces = files.filter(f => isTrace(f.path));
  const captured = i.capture.state === "done" ? i.capture.files : [];
  const own = captured.find(f => f.rank && within(i.finding.rank, f.rank));
  return traces.find(f => own && f.path.endsWith(own.path.split("/").at(-1))) || traces[0];
}

// The sentences of its messages, as the agent writes them.
const FACTS = ["rule", "since", "rank", "how_much", "impact", "evidence", "cause", "not_it", "next", "symptoms", "death", "capture", "verdict", "mark", "cost", "bundle"]
  .map(key => [key, key.replace("_", " ")]);

export function drawIncident({ incident: i, files, facts }) {
  const f = i.finding, brief = i.brief, base = "/api/v1/incidents/" + encodeURIComponent(i.id) + "/files/";
  const href = path => base + path.split("/").map(encodeURIComponent).join("/");
  const rows = [...(facts ? [] : [["facts", "the agent has not answered yet"]]), ...FACTS.filter(([key]) => facts && facts[key]).map(([key, name]) => [name, key === "evidence" ? el("code", {}, facts[key]) : key === "bundle" ? el("span", { class: "path" }, facts[key]) : facts[key]]),
    ...(i.raised || []).map(r => ["raised", "at " + clock(r.at) + "; its severity was " + r.from])];
  const names = (files || []).map(file => file.path), trace = tracesFirst(i, files || []);
  const note = el("span", { class: "small problem", role: "status" });
  return [
    el("div", { class: "row" }, el("h2", { id: "incident-title" }, rankName(f.rank) + " on " + i.target), el("a", { href: "#", "data-key": "close" }, "close")),
    el("p", { class: "path quiet" }, i.id),
    brief.verdict ? el("p", { class: "lead" }, brief.verdict) : "",
    brief.cause ? el("p", { class: brief.verdict ? "" : "lead" }, brief.cause) : "",
    !brief.verdict && brief.window ? el("p", {}, brief.window) : "",
    el("div", { class: "buttons left" },
      ...names.filter(name => /^report(-\d+)?\.html$/.test(name)).map(name => el("a", { class: "button", href: href(name), target: "_blank", rel: "noopener", "data-key": "open " + name }, name === "report.html" ? "Open the report" : "Open " + name)),
      trace ? el("button", { type: "button", "data-key": "perfetto", title: "opens ui.perfetto.dev and hands it " + trace.path + "; it is sent to no server",
        onclick: () => openInPerfetto(href(trace.path), i.id + " " + trace.path, words => { note.textContent = words; }) }, traceName(i, trace) + " in Perfetto") : "", note),
    el("dl", {}, ...rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
    bars(f),
    names.length ? el("details", { "data-key": "files", open: names.length <= 12 }, el("summary", {}, names.length + " files in the bundle"),
      el("ul", {}, ...files.map(file => fileRow(i, href, file)))) : "",
    ...names.filter(name => /^report(-\d+)?\.html$/.test(name)).map(name =>
      el("iframe", { src: href(name), title: name === "report.html" ? "The report of this incident" : name, sandbox: "allow-scripts allow-downloads" })),
  ].filter(Boolean);
}
