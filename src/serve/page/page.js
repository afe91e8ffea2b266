// The status page: asks the agent once a second and draws what it says. It changes nothing, loads
// nothing from elsewhere, and builds every element by hand, so no text of a log or a trace is ever
// taken for HTML.
"use strict";

const EVERY_MS = 1000, HIDDEN_MS = 10000, TRY_AGAIN_MS = 2000, GIVE_UP_MS = 8000, KEPT_EVERY_MS = 15000;
const $ = id => document.getElementById(id);
let started = null, version = null, lost = null, last = null, shown = {}, incidents = [], chosenSignal = null;

// ---- building ----

function el(tag, props, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props || {})) {
    if (key === "class") node.className = value;
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value);
  }
  node.append(...children.filter(c => c !== null && c !== undefined && c !== ""));
  return node;
}

function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

// Replaces a part of the page only where its data changed: a selection, the focus or a scroll
// position in the rest survives.
function draw(id, data, build) {
  const key = JSON.stringify(data);
  if (shown[id] === key) return;
  shown[id] = key;
  $(id).replaceChildren(...[].concat(build(data)));
}

// ---- words ----

const AXES = { dp_rank: "DP", tp_rank: "TP", pp_rank: "PP", ep_rank: "EP", attn_cp_rank: "ATTN_CP", moe_dp_rank: "MOE_DP" };
const rankName = labels => Object.entries(labels || {}).map(([k, v]) => AXES[k] ? AXES[k] + v : k + "=" + v).join(" ") || "engine";
const labelText = labels => Object.entries(labels || {}).map(([k, v]) => k + "=" + v).join(" ");
const within = (a, b) => Object.entries(a).every(([name, value]) => b[name] === value);
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

function figure(v) {
  if (v === null || v === undefined) return "–";
  const size = Math.abs(v), digits = size >= 100 || v === 0 ? 0 : size >= 10 ? 1 : size >= 0.1 ? 2 : 4;
  return String(Number(v.toFixed(digits)));
}

function clock(s) {
  const d = new Date(s * 1000), pad = n => String(n).padStart(2, "0");
  const time = pad(d.getHours()) + ":" + pad(d.getMinutes()) + ":" + pad(d.getSeconds());
  const today = new Date().toDateString() === d.toDateString();
  return today ? time : d.getFullYear() + "-" + pad(d.getMonth() + 1) + "-" + pad(d.getDate()) + " " + time;
}

function span(s) {
  if (s < 0) s = 0;
  if (s < 90) return Math.round(s) + " s";
  if (s < 5400) return Math.round(s / 60) + " min";
  return s < 172800 ? Math.round(s / 3600) + " h" : Math.round(s / 86400) + " days";
}

function bytes(n) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let i = 0;
  while (n >= 1000 && i < 4) { n /= 1000; i += 1; }
  return figure(n) + " " + units[i];
}

const badge = (word, text) => el("span", { class: "badge " + word }, text || word);

// ---- the parts ----

function firing(status) {
  const found = [];
  for (const rule of status.rules) for (const group of rule.groups) {
    if (group.state !== "firing") continue;
    const who = group.rank ? rankName(group.rank) : labelText(group.group);
    found.push({ who, target: group.target, rule: rule.name, statistic: group.statistic, value: group.value,
      bound: group.bound, since: group.since, incident: group.incident });
  }
  return found;
}

function drawFiring(list) {
  return list.map(f => el("div", { class: "alarm" },
    el("p", {}, el("strong", {}, f.who + " on " + f.target)),
    el("p", {}, f.statistic + " is ", el("b", { class: "num" }, figure(f.value)), " (bound " + figure(f.bound) + ")",
      f.since ? " since " + clock(f.since) : "", ", rule " + f.rule + ". ",
      f.incident ? el("a", { href: "#incident=" + encodeURIComponent(f.incident) }, "See the incident") : "")));
}

function blamed(status) {
  const found = status.rules.flatMap(r => r.groups).filter(g => g.state === "firing" && g.rank);
  return line => found.some(f => f.target === line.target && within(f.rank, line.rank));
}

function chart(values, mean, top, isBlamed, name) {
  const n = Math.max(values.length - 1, 1), x = i => (i * 300 / n).toFixed(1), y = v => (44 - 42 * v / top).toFixed(1);
  const path = series => {
    let d = "", pen = false;
    series.forEach((v, i) => { d += v === null ? "" : (pen ? "L" : "M") + x(i) + " " + y(v); pen = v !== null; });
    return d;
  };
  let fill = "", from = null;
  values.concat([null]).forEach((v, i) => {
    if (v !== null) { fill += from === null ? "M" + x(i) + " 44L" + x(i) + " " + y(v) : "L" + x(i) + " " + y(v); from = i; }
    else if (from !== null) { fill += "L" + x(from) + " 44Z"; from = null; }
  });
  return svg("svg", { viewBox: "0 0 300 46", preserveAspectRatio: "none", role: "img", "aria-label": "the last minutes of " + name },
    svg("path", { class: "fill", d: fill }), svg("path", { class: "mean", d: path(mean) }), svg("path", { class: "line", d: path(values) }));
}

function meanOf(lines) {
  return lines[0].values.map((_, i) => {
    const known = lines.map(l => l.values[i]).filter(v => v !== null);
    return known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
  });
}

function drawLoad({ history, status }) {
  const isBlamed = blamed(status);
  if (!history || !history.lines.length) {
    const some = status.targets.some(t => t.ranks.length);
    return el("p", { class: "quiet" }, some ? "Nothing that a rule watches has been measured in the last minutes."
      : "No rank has reported yet. Sources are listed below, with what is wrong.");
  }
  const targets = [...new Set(history.lines.map(l => l.target))];
  const minutes = span(history.step_s * (history.lines[0].values.length - 1));
  return targets.flatMap(target => {
    const lines = history.lines.filter(l => l.target === target), mean = meanOf(lines);
    const top = Math.max(1e-9, ...lines.flatMap(l => l.values.filter(v => v !== null))) * 1.05;
    const info = status.targets.find(t => t.name === target) || { ranks: [] };
    const cards = lines.map(line => {
      const rank = info.ranks.find(r => within(line.rank, r.rank)), now = rank && rank.signals[history.signal];
      const value = now ? now.value : line.values[line.values.length - 1], blame = isBlamed(line);
      return el("div", { class: "rank" + (blame ? " blamed" : "") },
        el("div", { class: "row" }, el("b", { title: labelText(line.rank) }, rankName(line.rank), now && now.stale ? " (silent)" : ""),
          el("span", { class: "value" }, figure(value))),
        chart(line.values, mean, top, blame, rankName(line.rank)));
    });
    return [el("p", { class: "small quiet" }, el("b", {}, target), " · " + [info.engine, info.engine_version].filter(Boolean).join(" ")
      + " · last " + minutes + ", all on one scale (0 to " + figure(top / 1.05) + "), dashes: the mean"), el("div", { class: "ranks" }, ...cards)];
  });
}

function drawRules(rules) {
  if (!rules.length) return el("p", { class: "quiet" }, "No rule is loaded.");
  return rules.map(rule => el("article", { class: "rule" },
    el("div", { class: "row" }, el("h3", {}, rule.name), el("span", { class: "small quiet" },
      rule.severity + " · captures: " + rule.capture + (rule.silenced_until ? " · silenced until " + clock(rule.silenced_until) : ""))),
    el("p", { class: "quiet" }, rule.about || ""),
    ...(rule.groups.length ? rule.groups.map(drawGroup) : [el("p", { class: "small" }, "It has seen no group of ranks yet.")])));
}

function drawGroup(group) {
  const who = [group.target, labelText(group.group)].filter(Boolean).join(" · ");
  const value = group.value === null ? "" : group.statistic + " " + figure(group.value) + (group.bound === null ? "" : ", fires at " + figure(group.bound));
  return el("div", { class: "group" }, badge(group.state), el("p", {}, group.why), group.again ? el("p", { class: "small quiet" }, group.again) : "",
    el("p", { class: "figures small quiet num" }, [who, value, group.since ? "since " + clock(group.since) : ""].filter(Boolean).join(" · ")));
}

const outcome = i => i.capture.state === "none" ? "" : i.capture.state;

// One that an earlier agent left open is not known to fire: nobody watched its end.
function drawIncidents({ list, id, now }) {
  const live = new Set(now);
  if (!list.length) return el("p", { class: "quiet" }, "None. Nothing has fired, and nothing is kept from before.");
  const row = i => el("tr", { class: i.id === id ? "chosen" : "" },
    el("td", { class: "num" }, clock(i.fired_at)),
    el("td", {}, el("a", { href: "#incident=" + encodeURIComponent(i.id) }, i.rule), " on " + i.target),
    el("td", {}, rankName(i.finding.rank) + ", " + (i.finding.statistic ? i.finding.statistic + " " + figure(i.finding.value) : "asked for")),
    el("td", {}, outcome(i) ? badge(outcome(i), "capture " + outcome(i).replace("_", " ")) : ""),
    el("td", {}, i.verdict ? i.verdict.sentence : ""),
    el("td", {}, i.resolved_at ? badge("resolved") : live.has(i.id) ? badge("firing") : badge("unknown", "not resolved")));
  const head = el("tr", {}, ...["fired", "rule", "rank", "capture", "verdict", "now"].map(t => el("th", {}, t)));
  return el("table", {}, el("thead", {}, head), el("tbody", {}, ...list.slice(0, 50).map(row)));
}

// ---- one incident ----

const chosen = () => { const m = /^#incident=(.+)$/.exec(location.hash); return m ? decodeURIComponent(m[1]) : null; };

function captureText(c) {
  if (c.state === "done") return c.files.length + " files by " + c.means + ", " + bytes(c.files.reduce((a, f) => a + f.size, 0)) + ", " + c.quality
    + (c.missing.length ? ", nothing from " + c.missing.map(rankName).join(", ") : "") + (c.remote ? ", left on the server" : "") + c.notes.map(n => "; " + n).join("");
  if (c.state === "open") return "a window is open since " + clock(c.since);
  if (c.state === "none") return "none: the rule only watches";
  return c.state.replace("_", " ") + (c.why ? ": " + c.why : "");
}

// What got worse after its capture, and was captured again or was not.
function againText(i) {
  const w = i.worse;
  if (!w) return "";
  const how = "it got worse at " + clock(w.at) + ", " + figure(w.times_bound) + " times its bound, and was ";
  return w.refused ? how + "not captured again: " + w.refused.why + "; before: " : how + "captured again: ";
}

function costText(i) {
  const got = i.capture.state === "done" ? i.capture : i.capture.captured, reason = (i.earlier || []).length || i.worse && !i.worse.refused ? "it had got worse" : "the rule fired";
  const silence = got && got.longest_stall_s !== undefined ? ", no rank silent for more than " + figure(got.longest_stall_s) + " s (" + (got.predicted_stall_s === undefined ? "not predicted" : "predicted " + figure(got.predicted_stall_s) + " s") + ")" : "";
  return got ? figure(got.stall_s) + " s of serving" + silence + "; open " + figure(got.open_s) + " s, begun " + figure(got.start_delay_s) + " s after " + reason : "nothing";
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

function drawIncident({ incident: i, files }) {
  const f = i.finding, base = "/api/v1/incidents/" + encodeURIComponent(i.id) + "/files/";
  const href = path => base + path.split("/").map(encodeURIComponent).join("/");
  const facts = [
    ["rule", i.rule + " (" + i.severity + ")" + (i.about ? ": " + i.about : "")],
    ["since", clock(f.onset) + " ± " + figure(f.onset_error_s) + " s, fired " + figure(i.fired_at - f.onset) + " s later" + (i.resolved_at ? ", over at " + clock(i.resolved_at) : "")],
    ["how much", f.statistic ? f.statistic + " of " + f.signal + " is " + figure(f.value) + " (bound " + figure(f.bound) + ")" : "nothing was measured: a window was asked for"],
    ["evidence", f.evidence ? el("code", {}, f.evidence) : "no single line"],
    ...(f.shown_by ? [["first shown by", el("code", {}, f.shown_by.line || f.signal + " " + figure(f.shown_by.value) + " at " + clock(f.shown_by.at) + ", by " + f.shown_by.source)]] : []),
    ["capture", againText(i) + captureText(i.capture)],
    ...(i.earlier || []).map((e, n) => ["capture " + (n + 1), captureText(e.capture) + ", at " + figure(e.times_bound) + " times the bound"
      + (e.verdict ? "; " + e.verdict.sentence : "")]),
    ...(i.cause ? [["cause", causeText(i.cause)]] : []),
    ["verdict", i.verdict ? i.verdict.sentence + " (" + i.verdict.confidence + " confidence)" : "none yet"],
    ["cost", costText(i)],
    ["bundle", i.bundle ? el("span", { class: "path" }, i.bundle) : "none is kept"],
  ];
  const names = (files || []).map(file => file.path);
  return [
    el("div", { class: "row" }, el("h2", {}, rankName(f.rank) + " on " + i.target), el("a", { href: "#" }, "close")),
    el("p", { class: "path quiet" }, i.id),
    el("dl", {}, ...facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
    bars(f),
    names.length ? el("details", {}, el("summary", {}, names.length + " files in the bundle"),
      el("ul", {}, ...files.map(file => el("li", {}, el("a", { href: href(file.path) }, file.path), " ", el("span", { class: "quiet" }, bytes(file.size)))))) : "",
    ...names.filter(name => /^report(-\d+)?\.html$/.test(name)).flatMap(name => [
      el("p", { class: "small" }, el("a", { href: href(name), target: "_blank", rel: "noopener" }, "Open " + (name === "report.html" ? "the report" : name) + " on its own")),
      el("iframe", { src: href(name), title: name === "report.html" ? "The report of this incident" : name, sandbox: "allow-scripts allow-downloads" }),
    ]),
  ].filter(Boolean);
}

let filesOf = { key: null, files: [] };

async function showIncident() {
  const id = chosen(), found = id && incidents.find(i => i.id === id);
  $("incident").hidden = !found;
  if (!found) { delete shown.incident; return; }
  const key = id + found.state + found.capture.state + Boolean(found.verdict) + (found.earlier || []).length
    + (found.cause ? found.cause.at : "");
  if (filesOf.key !== key) filesOf = { key, files: await ask("/api/v1/incidents/" + encodeURIComponent(id) + "/files").catch(() => []) };
  draw("incident", { incident: found, files: filesOf.files }, drawIncident);
}

// ---- the rest ----

function drawPlumbing(status) {
  const list = (title, items, none) => el("div", {}, el("h3", {}, title), items.length ? el("ul", {}, ...items) : el("p", { class: "quiet small" }, none));
  const sources = status.targets.flatMap(t => t.sources.map(s => el("li", {}, badge(s.state), " ", s.kind + " of " + t.name + " ",
    el("span", { class: "path quiet" }, s.place), s.problem ? el("p", { class: "problem" }, s.problem) : "",
    s.dropped ? el("p", { class: "small quiet num" }, s.dropped + " dropped of " + (s.samples + s.dropped)) : "")));
  const windows = status.windows.map(w => el("li", {}, badge("open", w.state), " " + w.means + " on " + w.target + " since " + clock(w.since)));
  const limits = status.budget.limits.map(l => el("li", {}, l.of + ": ", el("b", { class: "num" }, Math.max(l.captures - l.used, 0) + " of " + l.captures),
    " windows left in " + span(l.per_s), l.cooldown_until > status.at ? ", none before " + clock(l.cooldown_until) : ""));
  const disk = status.budget.bundle_bytes ? [el("li", {}, "bundles take " + bytes(status.budget.bundle_bytes)
    + (status.budget.bundle_bytes_limit ? " of " + bytes(status.budget.bundle_bytes_limit) : ""))] : [];
  const receivers = status.receivers.map(r => el("li", {}, badge(r.problem ? "failing" : "ok"), " " + r.name + " (" + r.means + ")"
    + (r.pending ? ", " + r.pending + " waiting" : ""), r.problem ? el("p", { class: "problem" }, r.problem) : ""));
  const silences = status.silences.map(s => el("li", {}, "silenced: " + (s.rule || "every rule") + " on " + (s.target || "every server") + " until " + clock(s.until) + (s.why ? " (" + s.why + ")" : "")));
  return [
    list("Sources", sources, "No source is configured."),
    list("Captures", windows.concat(status.watch_only ? [el("li", {}, "watch only: no window is ever opened")] : limits, disk, silences), "No limit is known yet."),
    list("Receivers", receivers, "None: messages go to standard output only."),
  ];
}

// ---- asking ----

async function ask(path) {
  const stop = new AbortController(), timer = setTimeout(() => stop.abort(), GIVE_UP_MS);
  try {
    const response = await fetch(path, { signal: stop.signal });
    if (!response.ok) throw new Error((await response.json().catch(() => ({}))).error || "it answered " + response.status);
    return await response.json();
  } finally {
    clearTimeout(timer);
  }
}

// Those in the agent's memory come with the status; those whose bundles are kept on disk now and then.
let kept = { at: -Infinity, list: [] };

async function allIncidents(status) {
  if (performance.now() - kept.at > KEPT_EVERY_MS) kept = { at: performance.now(), list: await ask("/api/v1/incidents") };
  const byId = new Map(kept.list.concat(status.incidents).map(i => [i.id, i]));
  return [...byId.values()].sort((a, b) => b.fired_at - a.fired_at);
}

function chooseSignal(histories) {
  const names = histories.map(h => h.signal);
  draw("signal", names, list => list.map(n => el("option", { value: n }, n)));
  if (!names.includes(chosenSignal)) chosenSignal = names.includes("load") ? "load" : names[0];
  if (chosenSignal) $("signal").value = chosenSignal;
  return histories.find(h => h.signal === chosenSignal) || null;
}

function drawAll({ status, histories }) {
  const history = chooseSignal(histories), alarms = firing(status);
  document.title = (alarms.length ? "● " + alarms[0].who + " · " : "") + "skewtrap";
  draw("agent", ["version " + status.version, "up " + span(status.at - status.started), status.watch_only ? "watch only" : ""].filter(Boolean).join(" · "), t => t);
  draw("firing", alarms, drawFiring);
  draw("load", { history, status }, drawLoad);
  draw("rules", status.rules.map(r => ({ ...r, last_evaluated: null })), drawRules);
  draw("incidents", { list: incidents, id: chosen(), now: last.incidents.map(i => i.id) }, drawIncidents);
  draw("plumbing", { ...status, at: Math.round(status.at / 5), started: 0, incidents: 0, rules: 0,
    targets: status.targets.map(t => ({ ...t, ranks: 0, sources: t.sources.map(s => ({ ...s, last: 0, lag_s: 0, samples: s.dropped ? s.samples : 0 })) })) }, () => drawPlumbing(status));
}

async function look() {
  let wait = EVERY_MS;
  try {
    const [status, histories] = await Promise.all([ask("/api/v1/status"), ask("/api/v1/history")]);
    if (version !== null && version !== status.version) { location.reload(); return; }
    version = status.version;
    if (started !== status.started) { shown = {}; kept.at = -Infinity; started = status.started; }
    incidents = await allIncidents(status);
    lost = null; last = status;
    drawAll({ status, histories });
    await showIncident();
  } catch (error) {
    lost = lost || Date.now();
    $("trouble").textContent = "The agent does not answer since " + clock(lost / 1000) + " (" + error.message + "). What you see is from before; this page keeps trying.";
    wait = TRY_AGAIN_MS;
  }
  $("trouble").hidden = lost === null;
  $("fresh").textContent = lost !== null ? "no answer" : "live · " + clock(last.at);
  setTimeout(look, document.hidden ? HIDDEN_MS : wait);
}

$("signal").addEventListener("change", event => { chosenSignal = event.target.value; delete shown.load; });
addEventListener("hashchange", async () => {
  delete shown.incidents;
  if (last) draw("incidents", { list: incidents, id: chosen(), now: last.incidents.map(i => i.id) }, drawIncidents);
  await showIncident();
  if (chosen()) $("incident").scrollIntoView({ block: "start" });
});
look();
