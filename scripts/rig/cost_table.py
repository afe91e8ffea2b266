"""cost_table.py REC INCIDENTS: what the agent costs the server. From ab.txt and the log: decode tokens a second with and without it, in turn. From
itl.csv and the incidents: time between tokens of the streaming clients in the ten seconds around each window against the ten before its middle
as far as no other window is in them, and at moments of the same kinds of load without any window, which shows how much of it is the load's own."""
import bisect, csv, glob, gzip, json, os, re, statistics as st, sys
rec, incidents = sys.argv[1:]
opened = lambda f: gzip.open(f + ".gz", "rt", errors="replace") if os.path.exists(f + ".gz") and not os.path.exists(f) else open(f, errors="replace")


def decoded():
    """Decode tokens by time, from the log: (from, to, tokens) between two Decode lines of a rank, all ranks."""
    last, out = {}, []
    line = re.compile(r"([\d.]+)\t\[\S+ \S+ ?([^\]]*)\] Decode batch.*gen throughput \(token/s\): ([\d.]+)")
    for l in opened(rec + "/server.stamped.log"):
        if m := line.match(l):
            t, rank, rate = float(m[1]), m[2], float(m[3])
            if rank in last and 0 < t - last[rank] < 3: out.append((last[rank], t, rate * (t - last[rank])))
            last[rank] = t
    return out


if os.path.exists(rec + "/ab.txt"):
    turns = [l.split() for l in open(rec + "/ab.txt")]; at = [float(t) for t, _ in turns]; tokens = [0.0] * (len(at) - 1)
    for b, e, n in decoded():
        for i in range(max(0, bisect.bisect_right(at, b) - 1), len(tokens)):
            if at[i] >= e: break
            tokens[i] += n * max(0.0, min(e, at[i + 1]) - max(b, at[i])) / (e - b)
    rates = [n / (e - b) for n, b, e in zip(tokens, at, at[1:])]
    for w in ("with", "without"):
        of = [r for r, (_, what) in zip(rates, turns) if what == w]
        if of: print(f"{w}: median {st.median(of):.0f}, mean {st.mean(of):.0f} decode tokens/s in {len(of)} turns")
    # four turns, with without without with: a drift that is straight over the four cancels
    off = [100 * (a - b - c + d) / (b + c) for a, b, c, d in zip(*[iter(rates)] * 4) if b + c > 0]
    if len(off) > 3:
        print(f"with against without, {len(off)} fours of turns: mean {st.mean(off):+.2f} +- {st.stdev(off) / len(off) ** 0.5:.2f} % (standard error), median {st.median(off):+.2f} %, quartiles {[round(q, 2) for q in st.quantiles(off, n=4)]}")
if os.path.exists(rec + "/itl.csv") or os.path.exists(rec + "/itl.csv.gz"):
    gaps = sorted((float(r["end"]), int(r["rank"]), float(r["gap_s"])) for r in csv.DictReader(opened(rec + "/itl.csv"))); ends = [g[0] for g in gaps]
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
    # moments without a window from sixteen seconds before them to eight after, in one phase
    ended = [b for b, _ in phases[1:]] + [ends[-1] if ends else 0]; calm = {}
    for (b, name), e in zip(phases, ended):
        t = b + 10
        while t + 5 <= e:
            if not any(t - 16 < s < t + 8 for s in starts) and (g := between(t - 10, t - 0.5)) and (h := between(t - 5, t + 5)): calm.setdefault(name, []).append(p99(h) / p99(g))
            t += 2.5
    for name, r in calm.items(): print(f"  no window, {name}, {len(r)} moments: median {st.median(r):.2f}, above 1.1 times {sum(x > 1.1 for x in r)}, worst {max(r):.2f}")
    if os.path.exists(rec + "/asked.txt"): print("\n".join("  " + l.strip()[:200] for l in open(rec + "/asked.txt")))
