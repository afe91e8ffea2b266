"""judge_windows.py REC [--bin BIN] [--traces DIR] [--incidents DIR]: a recording's phases beside what the agent and its windows said.

Truth from REC/events.jsonl, messages from REC/messages.jsonl (or the incident.json files below --incidents), stalls from REC/stalls.csv,
verdicts of windows taken by the server's API (`window` events) from `BIN compare DIR/NAME`. Prints tables; judges nothing by itself
but says where rank or onset do not agree with the truth.
"""
import argparse, csv, glob, json, os, re, statistics, subprocess
ap = argparse.ArgumentParser(); ap.add_argument("rec"); ap.add_argument("--bin"); ap.add_argument("--traces"); ap.add_argument("--incidents"); a = ap.parse_args()
rows = lambda f: [json.loads(l) for l in open(f) if l.strip()] if os.path.exists(f) else []
ev = rows(a.rec + "/events.jsonl"); t0 = ev[0]["t"] if ev else 0
stalls = [(float(r["end"]), int(r["rank"]), float(r["gap_s"])) for r in csv.DictReader(open(a.rec + "/stalls.csv"))] if os.path.exists(a.rec + "/stalls.csv") else []
phases = []
for i, e in enumerate(ev):
    if e["kind"] == "phase":
        end = next((x for x in ev[i + 1:] if x["kind"] == "phase_end" and x["name"] == e["name"]), None)
        phases.append(dict(name=e["name"], a=e["t"], b=end["t"] if end else ev[-1]["t"], tokens=end and end["tokens_per_s"], reqs=end and end["reqs_per_s"]))
wins = [(e, next((x for x in ev[i + 1:] if x["kind"] == "window_end" and x["name"] == e["name"]), None)) for i, e in enumerate(ev) if e["kind"] == "window"]
at = lambda t: next((p for p in reversed(phases) if p["a"] <= t), None)


def gaps(b, e, ranks=True):
    """The longest gap a rank's client saw that overlaps b..e."""
    g = {}
    for end, r, s in stalls:
        if end >= b and end - s <= e: g[r] = max(g.get(r, 0), s)
    return g


show = lambda g: " ".join(f"{r}:{s:.2f}" for r, s in sorted(g.items())) or "-"
who = lambda r: "-" if not r else " ".join(f"{k.replace('_rank', '').upper()}{v}" for k, v in r.items() if v is not None)
print(f"phases ({ev[-1]['t'] - t0:.0f} s)" if ev else "no events")
for p in phases:
    quiet = {}
    for end, r, s in stalls:
        if p["a"] <= end - s < p["b"] and not any(w["t"] - 1 < end and end - s < (x or w)["t"] + 20 for w, x in wins): quiet[r] = max(quiet.get(r, 0), s)
    print(f"  {p['a'] - t0:6.1f} {p['name']:<12} {p['b'] - p['a']:5.1f} s  tokens/s {p['tokens']}  req/s {p['reqs']}  longest gap (API windows left out) {show(quiet)}")
for e in ev:
    if e["kind"] in ("skipped", "phase_err", "undo_err") or (e["kind"] == "did" and e["rc"]): print("  !", e)

for f in glob.glob(os.path.join(a.incidents or "/nowhere", "..", "kill9.txt")): print("  kill -9:", open(f).read().strip())

# rounds with and without the agent
w = {k: [p["tokens"] for p in phases if p["name"] == k and p["tokens"]] for k in ("with", "without")}
if w["with"] and w["without"]:
    m = {k: statistics.median(v) for k, v in w.items()}
    pairs = [x / y - 1 for x, y in zip(w["with"], w["without"])]
    print(f"throughput: with {m['with']:.0f} tokens/s ({min(w['with']):.0f}..{max(w['with']):.0f}, n {len(w['with'])}), without {m['without']:.0f} ({min(w['without']):.0f}..{max(w['without']):.0f}); "
          f"medians' difference {100 * (m['with'] / m['without'] - 1):+.2f} %, median of pairs {100 * statistics.median(pairs):+.2f} %, quartiles {[round(100 * q, 2) for q in statistics.quantiles(pairs, n=4)] if len(pairs) > 1 else '-'}")
c = [r for r in rows(a.rec + "/cpu.jsonl") if "agent" in r]
if len(c) > 10:
    used = sum(max(0, y["agent"] - x["agent"]) for x, y in zip(c, c[1:])); print(f"agent: {used:.2f} CPU-s in {c[-1]['t'] - c[0]['t']:.0f} s = {100 * used / (c[-1]['t'] - c[0]['t']):.2f} % of a core, at most {max(r['rss'] for r in c) / 1e6:.0f} MB resident")

# what the agent said: the last message of each incident
inc, count, first = {}, {}, {}
for m in rows(a.rec + "/messages.jsonl"):
    b = m["body"]
    if isinstance(b, dict) and isinstance(b.get("incident"), dict) and not b.get("test"):
        i = b["incident"]["id"]; inc[i] = b; count.setdefault(i, []).append(b.get("update", "?")); first.setdefault(i, m["t"])
for f in glob.glob((a.incidents or "/nowhere") + "/**/incident.json", recursive=True):
    try: d = json.load(open(f))
    except ValueError: continue
    d = d.get("incident", d)
    inc[d["id"]] = {"incident": d, "facts": inc.get(d["id"], {}).get("facts", {})}; count.setdefault(d["id"], [])
if inc: print("incidents: rule | phase, its rank | told rank | delay | onset error ± | cleared after phase | verdict | stall booked / longest gap seen by rank | files | messages")
false = 0
for i, b in sorted(inc.items(), key=lambda x: x[1]["incident"].get("fired_at") or 0):
    d = b["incident"]; t = d.get("fired_at") or first.get(i, t0); p = at(t); f = d.get("finding") or {}; cap = d.get("capture") or {}; v = d.get("verdict") or {}
    true = re.match(r"[a-z]+(\d)$", p["name"]) if p else None
    cause_phase = p
    if p and not true:      # the wake of the phase before
        before = [q for q in phases if q["a"] < p["a"] and re.match(r"[a-z]+(\d)$", q["name"])]
        cause_phase = before[-1] if before and t - before[-1]["b"] < 45 else None
    tr = re.match(r"[a-z]+(\d)$", cause_phase["name"]) if cause_phase else None
    told = (f.get("rank") or {}).get("dp_rank", (f.get("rank") or {}).get("tp_rank"))
    ok = "" if tr and told == int(tr[1]) else (" (the peer that gets less)" if tr and f.get("side") == "low" and cause_phase["name"][:4] in ("skew", "mild", "long") else " WRONG RANK" if tr else " NOBODY'S")
    false += ok == " NOBODY'S"
    on = f"{f['onset'] - cause_phase['a']:+.1f} ± {f.get('onset_error_s')}" if f.get("onset") is not None and cause_phase else "-"
    b0 = cap.get("started_at"); seen = gaps(b0 - 0.2, b0 + (cap.get("open_s") or 0) + 15) if b0 else {}
    res = f"{d['resolved_at'] - cause_phase['b']:+.1f}" if d.get("resolved_at") and cause_phase else "-"
    files = cap.get("files") or []
    print(f"  {d.get('rule')} | {p['name'] if p else '-'}{' (wake of ' + cause_phase['name'] + ')' if cause_phase and cause_phase is not p else ''} | {who(f.get('rank'))} {f.get('side', '')}{ok} | {t - (cause_phase or p or {'a': t})['a']:.1f} s | {on} | {res} | "
          f"{v.get('kind', cap.get('state', '-'))} {who(v.get('rank'))} {v.get('confidence', '')} confirms={v.get('confirms')} {v.get('sentence', cap.get('why', ''))} | {cap.get('stall_s')} / {show(seen)} | {len(files)} files {sum(x.get('size', 0) for x in files) / 1e6:.2f} MB | {len(count[i])}: {','.join(count[i])}")
    for k in ("cause", "cost"):
        if b.get("facts", {}).get(k): print(f"      {k}: {b['facts'][k]}")
if inc: print(f"  {len(inc)} incidents, {sum(map(len, count.values()))} messages, {false} outside any trouble or its wake (45 s)")
for p in phases:
    if re.match(r"(slow|skew|long|crowd|hung|drained|mild)\d$", p["name"]) and not any(p["a"] <= (b["incident"].get("fired_at") or 0) <= p["b"] + 1 for b in inc.values()) and inc:
        print(f"  {p['name']}: nothing fired during it")

# windows by the server's API
if wins: print("windows: name | steps, activities | files, MB each | after | longest gap by rank, 2 s before to 20 s after (10 s before it) | verdict")
for e, x in wins:
    x = x or {"t": e["t"] + 20, "files": 0, "after": -1, "bytes": {}, "answer": "?"}
    out = "-"; d = os.path.join(a.traces or "", e["name"])
    if a.bin and a.traces and os.path.isdir(d):
        r = subprocess.run([a.bin, "compare", d, "--json"], capture_output=True, text=True, timeout=30)
        try:
            v = json.loads(r.stdout)["verdict"] or {}; out = f"{v.get('kind')} {who(v.get('rank'))} {v.get('confidence')} host_gap {v.get('host_gap_ms_per_step') and round(v['host_gap_ms_per_step'], 2)} ms: {v.get('sentence')}"
        except Exception: out = (r.stderr or r.stdout).strip().splitlines()[-1:] or "-"
    g = gaps(e["t"] - 2, e["t"] + 20); nxt = [y["t"] for y, _ in wins if y["t"] > e["t"]]
    if nxt: g = gaps(e["t"] - 2, min(e["t"] + 20, nxt[0] - 0.5))
    print(f"  {e['name']} | {e['steps']} {'+'.join(e['activities'])} | {x['files']} {' '.join(f'{v / 1e6:.2f}' for v in x.get('bytes', {}).values())} | {x['after']} s {x.get('answer', '').strip()} | {show(g)} (before {show(gaps(e['t'] - 10, e['t']))}) | {out}")
