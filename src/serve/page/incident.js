// One incident: what happened and why, first; then how it is known, its files and its reports.
import { openInPerfetto } from "./actions.js";
import { bytes, clock, count, el, figure, rankName, same, span, svg, within } from "./words.js";

export const chosen = () => { const m = /^#incident=(.+)$/.exec(location.hash); return m ? decodeURIComponent(m[1]) : null; };

function captureText(c) {
  if (c.state === "done") return c.files.length + " files by " + c.means + ", " + bytes(c.files.reduce((a, f) => a + f.size, 0)) + ", " + c.quality
    + (c.missing.length ? ", nothing from " + c.missing.map(rankName).join(", ") : "") + (c.remote ? ", left on the server" : "") + c.notes.map(n => "; " + n).join("");
  if (c.state === "open") return "a window is open since " + clock(c.since);
  if (c.state === "none") return "none yet";
  return c.state.replace("_", " ") + (c.why ? ": " + c.why : "");
}

// What got worse after its capture, and was captured again or was not.
function againText(i) {
  const w = i.worse;
  if (!w) return "";
  const how = "it got worse at " + clock(w.at) + ", " + figure(w.times_bound) + " times its bound, and was ";
  return w.refused ? how + "not captured again: " + w.refused.why + "; before: " : how + "captured again: ";
}

// Where no silence was seen and shorter ones could not be, what it cost is not known.
function servingText(c) {
  const below = c.unseen_stall_below_s, stalled = figure(c.stall_s) + " s of serving";
  if (below == null) return stalled;
  return c.stall_s === 0 ? "unknown: no silence of " + figure(below) + " s or longer was seen, and shorter ones could not be"
    : "at least " + stalled + " (silences shorter than " + figure(below) + " s could not be seen)";
}

// What other rules found of the same trouble, in order.
const alsoFoundText = i => (i.joined || []).map(j => j.rule + ": " + rankName(j.rank) + " is " + j.side + " from " + clock(j.at)
  + (j.until ? " to " + clock(j.until) : "") + (j.what ? ", " + j.what : "")).join("; ");

// What whoever restarts the server wants to know first: whether the agent may have had a part in it.
const deathText = d => (d.window_open ? "a window of the agent's was open then" : "no window of the agent's was open then")
  + "; at " + clock(d.at) + " the server's log said: " + d.line;

function costText(i) {
  const got = i.capture.state === "done" ? i.capture : i.capture.captured, reason = (i.earlier || []).length || i.worse && !i.worse.refused ? "it had got worse" : "the rule fired";
  const silence = got && got.longest_stall_s !== undefined ? ", no rank silent for more than " + figure(got.longest_stall_s) + " s (" + (got.predicted_stall_s === undefined ? "not predicted" : "predicted " + figure(got.predicted_stall_s) + " s") + ")" : "";
  return got ? servingText(got) + silence + "; open " + figure(got.open_s) + " s, begun " + figure(got.start_delay_s) + " s after " + reason : "nothing";
}

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

function causeText(c) {
  const sure = { likely: c.statement + " (likely)", consistent: "consistent with: " + c.statement }[c.certainty] || c.statement;
  const part = (name, list) => list.length ? "; " + name + list.join("; ") : "";
  return sure + part("", c.support) + (c.explains == null ? "" : "; explains " + Math.round(100 * c.explains) + " % of it")
    + part("ruled out: ", c.ruled_out) + part("unknown: ", c.unknown);
}

// What departed, in the finding's own words, where it was a factor.
export const departure = f => f.statistic === "factors" && f.evidence ? f.evidence.split("; ")[0] : "";

// What clients notice: the whole server before the onset, and now (at the last look before its end).
function impactText(i) {
  const parts = [], h = i.finding.impact || i.finding.harm, m = i.impact || {};
  if (h && h.requests >= 1) parts.push(count(Math.round(h.requests), "request") + " (" + Math.round(100 * h.share) + " % of all) would be better off, were the load even");
  const course = (name, c, unit) => c ? [name + " " + figure(c.before) + " → " + figure(c.now) + unit] : [];
  const numbers = [...course("tokens a second of all ranks", m.tokens_per_s, ""), ...course("time to the first token", m.first_token_s, " s"), ...course("queued requests", m.waiting_reqs, "")];
  if (numbers.length) parts.push((i.resolved_at ? "before the onset and shortly before its end: " : "before the onset and now: ") + numbers.join(", "));
  return parts.join("; ");
}

// A factor is in multiples of its bound, any other statistic in its own unit. A rank that hangs has no bound.
export const howMuch = (statistic, signal, value, bound) => value === null || signal === "stuck" ? signal
  : statistic.startsWith("factors") ? signal + ": " + figure(value) + " times the firing bound"
  : statistic + " is " + figure(value) + " (bound " + figure(bound) + ")";

// For how long a rank that hangs has stood still, and what is usual there.
function stoodStill(i) {
  const seen = i.finding.symptoms && i.finding.symptoms.find(s => s.factor === "stuck" && same(s.rank, i.finding.rank));
  const still = until => span(until - i.finding.onset), found = seen ? seen.at : i.fired_at, now = i.impact && i.impact.at;
  return "stuck: it had stood still for " + still(found) + " when that was found"
    + (i.resolved_at ? ", " + still(i.resolved_at) + " in all" : now > found + 5 ? ", " + still(now) + " by now" : "")
    + (i.usual_pause_s ? "; ranks with work have paused for " + figure(i.usual_pause_s) + " s at most here" : "");
}

// Since when, and until when as far as that was seen.
function sinceText(i) {
  const f = i.finding, end = i.resolved_at;
  if (i.rule === "standing-imbalance") return "before " + clock(f.onset) + ", when its ranks were first compared" + (end ? ", over at " + clock(end) : "");
  const began = f.statistic ? clock(f.onset) + " ± " + figure(f.onset_error_s) + " s, fired " + figure(i.fired_at - f.onset) + " s later" : clock(i.fired_at);
  const back = (i.returned || []).at(-1), again = back ? "; it seemed to be over at " + clock(back.ended) + " and came back at " + clock(back.at) : "";
  return began + again + (!end ? "" : i.end === "became_usual" ? "; it went on and counts as usual from now on, since " + clock(end)
    : i.ended_unseen ? "; its end was not seen, since the agent was restarted: it was over at " + clock(end)
    : i.end === "not_compared" ? "; its end was not seen, since its ranks could not be compared any more: taken to be over at " + clock(end) : ", over at " + clock(end));
}

// Whether the blame is on somebody else by now, or on the same for the opposite: then a verdict confirms nothing of it.
const hasLess = f => f.side === "low" && (f.statistic === "factors" ? ["share", "work"].includes(f.signal) : f.signal === "load" || /_(reqs|tokens)$/.test(f.signal || ""));
const ofAnother = (v, f) => v.suspect && !(same(v.suspect.rank, f.rank) && v.suspect.has_less === hasLess(f));
export const verdictText = (v, f) => v.sentence + (!ofAnother(v, f) ? ""
  : same(v.suspect.rank, f.rank) ? " (Compared while " + rankName(f.rank) + " was blamed for the opposite: it confirms nothing of what is told now.)"
  : " (Compared while " + rankName(v.suspect.rank) + " was blamed: it confirms nothing of " + rankName(f.rank) + ".)");

// Why no window came, or what came of it, in a sentence; nothing where the rule captures nothing.
export function windowText(i) {
  const c = i.capture;
  if (c.state === "refused") return "No window: " + c.why;
  if (c.state === "failed") return "The window failed: " + c.why;
  if (c.state === "open") return "A window is open since " + clock(c.since) + ".";
  if (c.state === "done") return "A window was taken" + (i.verdict ? "." : "; there is no verdict yet.");
  return "";
}

export const causeShort = c => ({ likely: "Likely cause: ", consistent: "Consistent with: " }[c.certainty] || "Cause: ") + c.statement;

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

export function drawIncident({ incident: i, files, next }) {
  const f = i.finding, base = "/api/v1/incidents/" + encodeURIComponent(i.id) + "/files/";
  const href = path => base + path.split("/").map(encodeURIComponent).join("/");
  const facts = [
    ["rule", i.rule + " (" + i.severity + ")" + (i.about ? ": " + i.about : "")],
    ["since", sinceText(i)],
    ...(i.raised || []).map(r => ["raised", "at " + clock(r.at) + "; its severity was " + r.from]),
    ...(i.blamed_before || []).filter(b => !same(b.rank, f.rank)).map(b => ["blamed before", rankName(b.rank) + ", until " + clock(b.until) + ": it is one trouble"]),
    ["how much", f.signal === "stuck" && f.statistic === "factors" ? stoodStill(i) : departure(f) ? departure(f) + " (" + figure(f.value) + " times the firing bound)" : f.statistic ? howMuch(f.statistic + " of " + f.signal, f.signal, f.value, f.bound) : i.died ? "nothing was measured: the server's log says that it died" : "nothing was measured: a window was asked for"],
    ...(impactText(i) ? [["impact", impactText(i)]] : []),
    ["evidence", f.evidence ? el("code", {}, f.evidence) : "no single line"],
    ...(f.shown_by ? [["first shown by", el("code", {}, f.shown_by.line || f.signal + " " + figure(f.shown_by.value) + " at " + clock(f.shown_by.at) + ", by " + f.shown_by.source)]] : []),
    ...(i.cause ? [["cause", causeText(i.cause)]] : []),
    ...(next ? [["next", next]] : []),
    ...(alsoFoundText(i) ? [["also found", alsoFoundText(i)]] : []),
    ...(i.died ? [["death", deathText(i.died)]] : []),
    ["capture", againText(i) + captureText(i.capture)],
    ...(i.earlier || []).map((e, n) => ["capture " + (n + 1), captureText(e.capture) + ", at " + figure(e.times_bound) + " times its bound"
      + (e.verdict ? "; " + verdictText(e.verdict, f) : "")]),
    ["verdict", i.verdict ? verdictText(i.verdict, f) + " (" + i.verdict.confidence + " confidence)" : "none yet"],
    ["cost", costText(i)],
    ["bundle", i.bundle ? el("span", { class: "path" }, i.bundle) : "none is kept"],
  ];
  const names = (files || []).map(file => file.path), trace = tracesFirst(i, files || []);
  const note = el("span", { class: "small problem", role: "status" });
  return [
    el("div", { class: "row" }, el("h2", { id: "incident-title" }, rankName(f.rank) + " on " + i.target), el("a", { href: "#", "data-key": "close" }, "close")),
    el("p", { class: "path quiet" }, i.id),
    i.verdict ? el("p", { class: "lead" }, verdictText(i.verdict, f)) : "",
    i.cause ? el("p", { class: i.verdict ? "" : "lead" }, causeShort(i.cause)) : "",
    !i.verdict && windowText(i) ? el("p", {}, windowText(i)) : "",
    el("div", { class: "buttons left" },
      ...names.filter(name => /^report(-\d+)?\.html$/.test(name)).map(name => el("a", { class: "button", href: href(name), target: "_blank", rel: "noopener", "data-key": "open " + name }, name === "report.html" ? "Open the report" : "Open " + name)),
      trace ? el("button", { type: "button", "data-key": "perfetto", title: "opens ui.perfetto.dev and hands it " + trace.path + "; it is sent to no server",
        onclick: () => openInPerfetto(href(trace.path), i.id + " " + trace.path, words => { note.textContent = words; }) }, traceName(i, trace) + " in Perfetto") : "", note),
    el("dl", {}, ...facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
    bars(f),
    names.length ? el("details", { "data-key": "files", open: names.length <= 12 }, el("summary", {}, names.length + " files in the bundle"),
      el("ul", {}, ...files.map(file => fileRow(i, href, file)))) : "",
    ...names.filter(name => /^report(-\d+)?\.html$/.test(name)).map(name =>
      el("iframe", { src: href(name), title: name === "report.html" ? "The report of this incident" : name, sandbox: "allow-scripts allow-downloads" })),
  ].filter(Boolean);
}
