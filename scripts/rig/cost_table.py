"""cost_table.py REC INCIDENTS: what the agent costs the server. From ab.txt and the pages: decode tokens a second with and without it, in turn. From
itl.csv and the incidents: time between tokens of the streaming clients in the ten seconds around each window against the ten before them."""
import csv, glob, gzip, json, os, re, statistics as st, sys
rec, incidents = sys.argv[1:]
opened = lambda f: gzip.open(f + ".gz", "rt", errors="replace") if os.path.exists(f + ".gz") and not os.path.exists(f) else open(f, errors="replace")


def pages():
    """Decode tokens of all ranks by the time of the page."""
    t, n, out = None, 0.0, []
    for l in opened(rec + "/metrics.txt"):
        if l.startswith("#@"):
            if t: out.append((t, n))
            t, n = float(l.split()[1]), 0.0
        elif l.startswith("sglang:realtime_tokens_total") and 'mode="decode"' in l: n += float(l.rsplit(" ", 1)[1])
    return out + ([(t, n)] if t else [])


def slope(points):
    mt, mn = st.mean(p[0] for p in points), st.mean(p[1] for p in points)
    return sum((t - mt) * (n - mn) for t, n in points) / sum((t - mt) ** 2 for t, _ in points)


if os.path.exists(rec + "/ab.txt"):
    told = pages(); turns = [l.split() for l in open(rec + "/ab.txt")]; rounds = []
    for (b, what), (e, _) in zip(turns, turns[1:]):
        p = [x for x in told if float(b) + 1.5 <= x[0] <= float(e) + 0.3]
        if len(p) >= 4: rounds.append((what, slope(p)))
    pairs = [(dict(rounds[i:i + 2])) for i in range(0, len(rounds) - 1, 2)]; pairs = [p for p in pairs if len(p) == 2]
    off = [100 * (p["with"] / p["without"] - 1) for p in pairs]
    for w in {k for k, _ in rounds}: print(f"{w}: median {st.median(v for k, v in rounds if k == w):.0f} decode tokens/s of {[round(v) for k, v in rounds if k == w]}")
    if len(off) > 3:
        print(f"with against without, {len(off)} pairs of neighbours: median {st.median(off):+.2f} %, mean {st.mean(off):+.2f} +- {st.stdev(off) / len(off) ** 0.5:.2f} %, quartiles {[round(q, 2) for q in st.quantiles(off, n=4)]}, each {[round(o, 2) for o in off]}")
if os.path.exists(rec + "/itl.csv") or os.path.exists(rec + "/itl.csv.gz"):
    gaps = sorted((float(r["end"]), int(r["rank"]), float(r["gap_s"])) for r in csv.DictReader(opened(rec + "/itl.csv"))); ends = [g[0] for g in gaps]
    import bisect
    def between(a, b): return [g[2] for g in gaps[bisect.bisect_left(ends, a):bisect.bisect_right(ends, b)]]
    p99 = lambda g: sorted(g)[int(0.99 * len(g))] if g else float("nan")
    phases = [json.loads(l) for l in open(rec + "/events.jsonl")]; phases = [(e["t"], e["name"]) for e in phases if e["kind"] == "phase"]
    wins = []
    for f in glob.glob(incidents + "/*/incident.json"):
        d = json.load(open(f)); c = d.get("capture") or {}; k = c.get("captured") or c
        if k.get("started_at"): wins.append((k["started_at"], k, d))
    wins.sort(key=lambda w: w[0]); starts = [w[0] for w in wins]; ratios = []
    print("windows of the agent: phase | steps, predicted, stall seen by the agent | longest gap of a client | p99 between tokens 5 s before to 5 s after | in the 10 s without a window before | verdict")
    for t, k, d in wins:
        quiet = [g for a, g in ((e, x) for e, _, x in gaps[bisect.bisect_left(ends, t - 16):bisect.bisect_left(ends, t - 0.5)]) if not any(s - 0.5 < a < s + 3 for s in starts)]
        near = between(t - 5, t + 5); steps = re.search(r'num_steps"?: ?(\d+)', json.dumps(d.get("exchanges", [])).replace("\\", ""))
        ratios.append(p99(near) / p99(quiet) if quiet else float("nan")); v = d.get("verdict") or {}
        print(f"  {[n for a, n in phases if a <= t][-1:]} | {steps and steps[1]} steps, {k.get('predicted_stall_s')} s, {k.get('longest_stall_s')} s | {max(between(t, t + 4), default=0):.3f} s | {p99(near):.4f} s | {p99(quiet):.4f} s, {ratios[-1]:.2f} times | {v.get('kind')} {v.get('rank')} {v.get('confidence')} {len(k.get('files', []))} files")
    if ratios: print(f"  {len(ratios)} windows: p99 around them over p99 before, median {st.median(ratios):.2f}, worst {max(ratios):.2f}")
    if os.path.exists(rec + "/asked.txt"): print("\n".join("  " + l.strip()[:200] for l in open(rec + "/asked.txt")))
