// The status page: asks the agent again and again and draws what it says. It loads nothing from elsewhere,
// and changes something only where a button was pressed (actions.js).
import { capture, endSilence, silence } from "./actions.js";
import { HEAT_FROM, chartOf, isBlamedBy, show, sparkline } from "./chart.js";
import { chosen, departure, drawIncident, howMuch } from "./incident.js";
import { $, badge, bytes, clock, count, draw, el, figure, forget, labelText, rankName, replace, span, within } from "./words.js";

const EVERY_MS = 1000, HIDDEN_MS = 10000, TRY_AGAIN_MS = 2000, GIVE_UP_MS = 8000, KEPT_EVERY_MS = 15000;
let started = null, version = null, lost = null, last = null, lastHistories = [], incidents = [], chosenSignal = null;

// ---- what fires ----

function firing(status) {
  const found = [];
  for (const rule of status.rules) for (const group of rule.groups) {
    if (group.state !== "firing") continue;
    const who = group.rank ? rankName(group.rank) : labelText(group.group);
    const incident = incidents.find(i => i.id === group.incident);
    found.push({ who, rank: group.rank, target: group.target, rule: rule.name, captures: rule.capture !== "none", statistic: group.statistic, value: group.value,
      bound: group.bound, since: incident && incident.finding.statistic ? incident.finding.onset : group.since, why: group.why, incident: group.incident, silenced: rule.silenced_until,
      signal: incident && incident.finding.signal || "the load", departure: incident ? departure(incident.finding) : "",
      refused: group.refused, ...(incident ? incident.brief : {}) });
  }
  return found;
}

function windowLine(f) {
  if (f.refused) return "No window: " + f.refused;
  if (f.window) return f.window;
  return f.captures ? "" : "No window: the rule only watches.";
}

function drawFiring(list) {
  return list.map(f => el("article", { class: "alarm" },
    el("div", { class: "row" }, el("h2", {}, f.who + " on " + f.target),
      el("div", { class: "buttons" },
        f.incident ? el("a", { class: "button", href: "#incident=" + encodeURIComponent(f.incident), "data-key": "see " + f.incident, "aria-label": "See the incident of " + f.who }, "See the incident") : "",
        f.silenced ? el("span", { class: "small" }, "silenced until " + clock(f.silenced))
          : el("button", { type: "button", "data-key": "silence! " + f.rule, "aria-label": "Silence " + f.rule, onclick: () => silence(f.rule) }, "Silence"))),
    el("p", { class: "num" }, f.departure || howMuch(f.statistic, f.signal, f.value, f.bound),
      f.since ? " since " + clock(f.since) : "", ", rule " + f.rule + "."),
    f.verdict ? el("p", {}, f.verdict) : "", f.cause ? el("p", {}, f.cause) : "", windowLine(f) ? el("p", {}, windowLine(f)) : "",
    f.mark ? el("p", { class: "small" }, "Marked as " + f.mark + ".") : "",
    el("p", { class: "small quiet" }, f.why)));
}

// ---- the load ----

const blamedNow = status => status.rules.flatMap(r => r.groups).filter(g => g.state === "firing" && g.rank);

// What cannot be watched, the servers of which the same holds together: silence is no health there.
function drawNotWatched({ targets }) {
  const texts = new Map();
  for (const t of targets.filter(t => t.not_watched)) texts.set(t.not_watched, [...texts.get(t.not_watched) || [], t.name]);
  draw("not-watched", [...texts], list => list.map(([text, names]) => el("p", { class: "notice" }, el("b", {}, "Not watched: "),
    names.slice(0, 4).join(", ") + (names.length > 4 ? " and " + (names.length - 4) + " more" : "") + ": " + text)));
}

function drawLoad(history, status) {
  const found = blamedNow(status), place = $("load");
  if (!history || !history.lines.length) {
    const some = status.targets.some(t => t.ranks.length);
    replace(place, [el("p", { class: "quiet" }, some ? "Nothing that a rule watches has been measured in the last minutes."
      : "No rank has reported yet. Sources are listed below, with what is wrong.")]);
    return;
  }
  const targets = [...new Set(history.lines.map(l => l.target))], live = new Set(status.incidents.map(i => i.id));
  const wanted = targets.join("\n");
  if (place.dataset.targets !== wanted || !place.querySelector(".chart")) {
    place.dataset.targets = wanted;
    place.replaceChildren(...targets.map(target => el("div", { class: "server" }, el("div", { class: "row heading" }), chartOf(target).root, el("details", { class: "each", "data-key": "each " + target }))));
  }
  targets.forEach((target, n) => {
    const part = place.children[n], info = status.targets.find(t => t.name === target) || { ranks: [] };
    const lines = history.lines.filter(l => l.target === target).map(l => ({ ...l, blamed: isBlamedBy(found, l) }));
    const gone = info.unanswered_since, behind = !gone && (info.sources || []).some(s => s.behind);
    const what = gone ? "has NOT answered since " + clock(gone)
      : [info.engine, info.engine_version].filter(Boolean).join(" ") + (behind ? " · answers, but the agent is BEHIND with what it says" : "");
    replace(part.querySelector(".heading"), [el("p", { class: "small quiet" }, el("b", {}, target), " · " + (what ? what + " · " : "") + count(lines.length, "rank") + " · last " + span(history.step_s * (lines[0].values.length - 1))),
      status.watch_only ? "" : el("button", { type: "button", "data-key": "capture " + target, "aria-label": "Start window on " + target, onclick: () => capture(target) }, "Start window")].filter(Boolean));
    show(chartOf(target), { target, lines, end: history.end, step: history.step_s, started: status.started, signal: history.signal,
      incidents: incidents.filter(i => i.target === target).map(i => ({ ...i, live: live.has(i.id) })) });
    drawRanks(part.querySelector(".each"), lines, info, history.signal);
  });
}

// A card for each rank; of many ranks only when they are asked for.
function drawRanks(details, lines, info, signal) {
  if (!details.firstChild) {
    details.append(el("summary", {}), el("div", { class: "ranks" }));
    details.open = lines.length < HEAT_FROM;
  }
  details.firstChild.textContent = "Each of " + count(lines.length, "rank");
  const top = Math.max(1e-9, ...lines.flatMap(l => l.values.filter(v => v !== null))) * 1.05;
  const cards = details.open ? lines.map(line => {
    const rank = info.ranks.find(r => within(line.rank, r.rank)), now = rank && rank.signals[signal];
    return el("div", { class: line.blamed ? "rank blamed" : "rank" },
      el("div", { class: "row" }, el("b", { title: labelText(line.rank) }, rankName(line.rank), now && now.stale ? " (silent)" : ""),
        el("span", { class: "value" }, figure(now ? now.value : line.values.at(-1)))),
      sparkline(line.values, top));
  }) : [];
  details.lastChild.replaceChildren(...cards);
}

// ---- which servers ----

// An answer is of a few servers: behind which one each part began that was gone through, and how many were before it.
let before = [], found = "";
const part = () => found ? "target=" + encodeURIComponent(found) : before.length ? "after=" + encodeURIComponent(before.at(-1).name) : "";

function drawServers({ servers, targets, next }) {
  const first = before.length ? before.at(-1).count : 0, here = targets.length;
  $("servers").hidden = servers <= here && !found && !before.length;
  draw("servers-shown", found ? (here ? "only " + found : "no server is named " + found) + ", of " + count(servers, "server") + "; find nothing to see all"
    : "servers " + (first + 1) + " to " + (first + here) + " of " + servers, t => t);
  // Not `disabled`: a button that was pressed keeps the focus.
  $("earlier").setAttribute("aria-disabled", Boolean(found) || !before.length);
  $("further").setAttribute("aria-disabled", Boolean(found) || !next);
}

async function turn(to) {
  before = to;
  if (await refresh().catch(() => false)) $("load-title").scrollIntoView({ block: "nearest" });
}

// ---- rules ----

function drawRules(rules) {
  if (!rules.length) return el("p", { class: "quiet" }, "No rule is loaded.");
  return rules.map(rule => el("article", { class: "rule" },
    el("div", { class: "row" }, el("h3", {}, rule.name), el("div", { class: "buttons" }, el("span", { class: "small quiet" },
      rule.severity + " · captures: " + rule.capture + (rule.silenced_until ? " · silenced until " + clock(rule.silenced_until) : "")),
      rule.silenced_until ? "" : el("button", { type: "button", class: "small", "data-key": "silence " + rule.name, "aria-label": "Silence " + rule.name, onclick: () => silence(rule.name) }, "Silence"))),
    el("p", { class: "quiet" }, rule.about || ""),
    ...(rule.groups.length ? rule.groups.map(drawGroup) : [el("p", { class: "small" }, "It has seen no group of ranks yet.")])));
}

// A firing by factors counts as at its bound until it has cleared, however far they have fallen.
function level(group) {
  if (group.value === null) return "";
  if (!group.statistic.startsWith("factors")) return group.statistic + " " + figure(group.value) + (group.bound === null ? "" : ", fires at " + figure(group.bound));
  if (group.state === "firing") return group.value > 1 ? figure(group.value) + " times the firing bound" : "below the firing bound now, not cleared yet";
  return group.value > 0 ? figure(group.value) + " of the firing bound" : "";
}

function drawGroup(group) {
  const who = [group.target, labelText(group.group)].filter(Boolean).join(" · ");
  const value = level(group);
  return el("div", { class: "group" }, badge(group.state), el("div", {}, el("p", {}, group.why),
    group.refused ? el("p", { class: "refusal" }, "No window: " + group.refused) : "", group.again ? el("p", { class: "small quiet" }, group.again) : "",
    el("p", { class: "small quiet num" }, [who, value, group.since ? "since " + clock(group.since) : ""].filter(Boolean).join(" · "))));
}

// ---- incidents ----

const outcome = i => i.capture.state === "none" ? "" : i.capture.state;

// One that an earlier agent left open is not known to fire: nobody watched its end.
function drawIncidents({ list, id, now, incomplete }) {
  const live = new Set(now), lacks = incomplete ? el("p", { class: "bad" }, incomplete) : "";
  if (!list.length) return lacks || el("p", { class: "quiet" }, "None. Nothing has fired, and nothing is kept from before.");
  const cell = (name, props, ...children) => el("td", { "data-name": name, role: "cell", ...props }, ...children);
  const row = i => el("tr", { class: i.id === id ? "chosen" : "", role: "row" },
    cell("fired", { class: "num" }, clock(i.fired_at)),
    cell("rule", {}, el("a", { href: "#incident=" + encodeURIComponent(i.id), "data-key": "row " + i.id, "aria-current": i.id === id ? "true" : null }, i.rule), " on " + i.target),
    cell("rank", {}, rankName(i.finding.rank) + ", " + (i.finding.statistic ? howMuch(i.finding.statistic, i.finding.signal, i.finding.value, i.finding.bound) : i.died ? "server died" : "asked for")),
    cell("capture", {}, outcome(i) ? badge(outcome(i), "capture " + outcome(i).replace("_", " ")) : ""),
    cell("why", {}, i.brief.verdict || i.brief.cause || "", i.brief.mark ? el("p", { class: "small quiet" }, "marked as " + i.brief.mark) : ""),
    cell("now", {}, i.resolved_at ? badge("resolved") : live.has(i.id) ? badge("firing") : badge("unknown", "not resolved")));
  // The roles are written out: on narrow screens the rows are blocks, which no browser takes for a table.
  const head = el("tr", { role: "row" }, ...["fired", "rule", "rank", "capture", "verdict or cause", "now"].map(t => el("th", { scope: "col", role: "columnheader" }, t)));
  return el("div", {}, lacks, el("table", { role: "table" }, el("caption", { class: "unseen" }, "Incidents, the newest first"), el("thead", { role: "rowgroup" }, head), el("tbody", { role: "rowgroup" }, ...list.slice(0, 50).map(row))));
}

let filesOf = { id: null, key: null, files: [], facts: null };

async function showIncident() {
  const id = chosen(), found = id && incidents.find(i => i.id === id);
  $("incident").hidden = !found;
  if (!found) { forget("incident"); return; }
  const key = JSON.stringify(found);
  if (filesOf.key !== key) {
    const path = "/api/v1/incidents/" + encodeURIComponent(id);
    const [files, whole] = await Promise.all([ask(path + "/files").catch(() => null), ask(path).catch(() => null)]);
    if (chosen() !== id) return;
    // What was not answered is asked for again, and what is known of it stays meanwhile.
    const known = filesOf.id === id ? filesOf : { files: [], facts: null };
    filesOf = { id, key: files && whole ? key : null, files: files || known.files, facts: whole && whole.facts || known.facts };
  }
  draw("incident", { incident: found, files: filesOf.files, facts: filesOf.facts }, drawIncident);
}

// ---- the rest ----

function drawPlumbing(status) {
  const list = (title, items, none) => el("div", {}, el("h3", {}, title), items.length ? el("ul", {}, ...items) : el("p", { class: "quiet small" }, none));
  const sources = status.targets.flatMap(t => t.sources.map(s => el("li", {}, badge(s.state, s.behind ? "behind" : undefined), " ", s.kind + " of " + t.name + " ",
    el("span", { class: "path quiet" }, s.place), s.problem ? el("p", { class: "problem" }, s.problem) : "", s.remark ? el("p", { class: "problem" }, s.remark) : "",
    s.dropped ? el("p", { class: "small quiet num" }, s.dropped + " dropped of " + (s.samples + s.dropped)) : "")));
  const windows = status.windows.map(w => el("li", {}, badge("open", w.state), " " + w.means + " on " + w.target + " since " + clock(w.since)));
  const limits = status.budget.limits.map(l => el("li", {}, l.of + ": ", el("b", { class: "num" }, Math.max(l.captures - l.used, 0) + " of " + l.captures),
    " windows left in " + span(l.per_s), l.cooldown_until > status.at ? ", none before " + clock(l.cooldown_until) : ""));
  const cost = status.budget.stalled_s_limit ? [el("li", {}, "of the last 24 h: " + figure(status.budget.stalled_s) + " s of " + span(status.budget.stalled_s_limit)
    + " of stalled serving, " + bytes(status.budget.written_bytes) + " of " + bytes(status.budget.written_bytes_limit) + " written")] : [];
  const disk = status.budget.bundle_bytes ? [el("li", {}, "bundles take " + bytes(status.budget.bundle_bytes)
    + (status.budget.bundle_bytes_limit ? " of " + bytes(status.budget.bundle_bytes_limit) : ""))] : [];
  const receivers = status.receivers.map(r => el("li", {}, badge(r.problem ? "failing" : "ok"), " " + r.name + " (" + r.means + ")"
    + (r.pending ? ", " + r.pending + " waiting" : ""), r.problem ? el("p", { class: "problem" }, r.problem) : ""));
  const silences = status.silences.map(s => el("li", {}, "silenced: " + (s.rule || "every rule") + " on " + (s.target || "every server") + " until " + clock(s.until) + (s.why ? " (" + s.why + ")" : "") + " ",
    el("button", { type: "button", class: "small", "data-key": "end " + s.rule + " " + s.target, "aria-label": "End the silence of " + (s.rule || "every rule"), onclick: () => endSilence(s) }, "End")));
  return [
    list("Sources", sources, "No source is configured."),
    list("Captures", windows.concat(status.watch_only ? [el("li", {}, "watch only: no window is ever opened")] : limits.concat(cost), disk, silences), "No limit is known yet."),
    list("Receivers", receivers, "None: messages go to standard output only."),
  ];
}

// ---- asking ----

async function ask(path, seen = () => {}) {
  const stop = new AbortController(), timer = setTimeout(() => stop.abort(), GIVE_UP_MS);
  try {
    const response = await fetch(path, { signal: stop.signal });
    if (!response.ok) throw new Error((await response.json().catch(() => ({}))).error || "it answered " + response.status);
    seen(response);
    return await response.json();
  } finally {
    clearTimeout(timer);
  }
}

// Those in the agent's memory come with the status; those whose bundles are kept on disk now and then.
let kept = { at: -Infinity, list: [], incomplete: "" };

async function allIncidents(status) {
  if (performance.now() - kept.at > KEPT_EVERY_MS) {
    let incomplete = "";
    const list = await ask("/api/v1/incidents", response => { incomplete = response.headers.get("x-incomplete") || ""; });
    kept = { at: performance.now(), list, incomplete };
  }
  const byId = new Map(kept.list.concat(status.incidents).map(i => [i.id, i]));
  return [...byId.values()].sort((a, b) => b.fired_at - a.fired_at);
}

// Only the lines of the signal that is shown are asked for; before one is known, those of the load.
const historyPath = () => "/api/v1/history?signal=" + encodeURIComponent(chosenSignal || "load") + "&" + part();

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
  // A screen reader hears of a firing and of its end, not of every number.
  draw("news", alarms.map(f => [f.who, f.target, f.rule]), list => list.length ? list.map(([who, target, rule]) => `${rule} fires: ${who} on ${target}`).join("; ") : "nothing fires");
  drawServers(status);
  drawNotWatched(status);
  drawLoad(history, status);
  draw("rules", status.rules.map(r => ({ ...r, last_evaluated: null })), drawRules);
  draw("incidents", { list: incidents, id: chosen(), now: status.incidents.map(i => i.id), incomplete: kept.incomplete }, drawIncidents);
  draw("plumbing", { ...status, at: Math.round(status.at / 5), started: 0, incidents: 0, rules: 0,
    targets: status.targets.map(t => ({ ...t, ranks: 0, sources: t.sources.map(s => ({ ...s, last: 0, lag_s: 0, samples: s.dropped ? s.samples : 0 })) })) }, () => drawPlumbing(status));
}

// Whether what came is still what is to be shown.
async function refresh() {
  const asked = part();
  const [status, histories] = await Promise.all([ask("/api/v1/status?" + asked), ask(historyPath())]);
  if (version !== null && version !== status.version) { location.reload(); return false; }
  version = status.version;
  if (started !== status.started) { forget(); kept.at = -Infinity; started = status.started; }
  incidents = await allIncidents(status);
  if (asked !== part()) return false;
  // The server behind which this part began is gone from the configuration.
  if (!status.targets.length && before.length && !found) { before = []; return refresh(); }
  lost = null; last = status; lastHistories = histories;
  drawAll({ status, histories });
  await showIncident();
  return true;
}

async function look() {
  let wait = EVERY_MS;
  try {
    await refresh();
  } catch (error) {
    lost = lost || Date.now();
    const said = "The agent has not answered since " + clock(lost / 1000) + " (" + error.message + "). The data shown is from before that time; this page keeps trying.";
    if ($("trouble").textContent !== said) $("trouble").textContent = said;
    wait = TRY_AGAIN_MS;
  }
  $("trouble").hidden = lost === null;
  $("fresh").textContent = lost !== null ? "no answer" : last ? "live · " + clock(last.at) : "";
  setTimeout(look, document.hidden ? HIDDEN_MS : wait);
}

$("earlier").addEventListener("click", () => { if (!found && before.length) turn(before.slice(0, -1)); });
$("further").addEventListener("click", () => {
  if (!found && last && last.next) turn([...before, { name: last.next, count: (before.length ? before.at(-1).count : 0) + last.targets.length }]);
});
$("find").addEventListener("submit", event => {
  event.preventDefault();
  found = $("server").value.trim();
  turn(before);
});
$("signal").addEventListener("change", async event => {
  chosenSignal = event.target.value;
  const histories = await ask(historyPath()).catch(() => lastHistories);
  if (last) drawAll({ status: last, histories });
});
addEventListener("toggle", event => { if (last && event.target.matches?.(".each")) drawAll({ status: last, histories: lastHistories }); }, true);
addEventListener("hashchange", async () => {
  forget("incidents");
  if (last) draw("incidents", { list: incidents, id: chosen(), now: last.incidents.map(i => i.id) }, drawIncidents);
  await showIncident();
  if (chosen()) { $("incident").scrollIntoView({ block: "start" }); $("incident").focus({ preventScroll: true }); }
});
look();
