"""cpu_causes.py --base URL --agent URL --out DIR [--incidents N] [--seed S] [--until EPOCH]: causes injected into a real server without a GPU, and what the agent names.

One trouble after another, in an order that the seed shuffles, each on one rank and at the most for --at-most seconds. Before it begins the truth is
written into DIR/events.jsonl. The agent is asked over its API which incident it opened; its cause is read ten seconds after the firing, the trouble
ends, and the next one waits until the incident is over and --healthy seconds have gone by. DIR/incidents.jsonl has a line for each, with the
incident as the agent told it; `--table DIR...` prints the table of one or several such folders and starts nothing. The machine's CPUs are those that
this process may use (taskset); no trouble begins that could go on beyond --until. A kind that the machine does not allow is skipped, and said.

  share       the rank gets 80 to 92 % of the requests (two ranks; of more ranks as many times its share)
  sticky      seven of ten requests share a long prefix that only this rank has cached, and all of them go to it
  long        the prompts of the rank are longer by 600 to 1,100 tokens
  uncached    the prompts of the rank are as long as before, but none of them begins like one before it
  stopped     its scheduler is stopped (SIGSTOP) two thirds of the time, in turns of a tenth of a second
  crowded     its scheduler shares its core with four or five busy loops (what else runs on the machine may take the other core)
  throttled   its scheduler sits in a cgroup that may use a fifth to two fifths of the CPU time that it used before
  hung        its scheduler is stopped for the whole time
  drained     the rank gets no more requests
  nothing     nothing

What is right was written down before the first run: RIGHT below. HALF is true as well and says less. Whatever else is named as likely is wrong with
confidence, and so is any cause named as likely where nothing was done; a cause that is only consistent, or none, counts apart.
"""
import argparse, asyncio, json, os, random, signal, time
import aiohttp
from trouble import cannot_throttle, crowd, duty, pid_of, throttle

RIGHT = {"share": {"more_requests"}, "sticky": {"more_requests"}, "long": {"longer_prompts"}, "uncached": {"cache_misses"}, "stopped": {"slower", "slow_host"},
         "crowded": {"slow_host"}, "throttled": {"slow_host"}, "hung": {"stuck"}, "drained": {"fewer_requests"}, "nothing": set()}
# A crowded or throttled process is a slow rank too. Of two ranks, the one that is left when the other is drained gets a larger share.
HALF = {"crowded": {"slower"}, "throttled": {"slower"}, "drained": {"more_requests"}}
# Where the blamed rank may be another one than that of the trouble, with the cause that is right there.
OTHER = {"drained": {"more_requests", "peer_left"}, "hung": {"peer_left"}}


def judge(kind, rank, incident):
    """right, half, consistent, unknown, wrong, missed; of nothing: quiet, false (an incident without a likely cause) or wrong."""
    if incident is None: return "quiet" if kind == "nothing" else "missed"
    cause = incident.get("cause") or {}
    named, certainty = cause.get("kind"), cause.get("certainty")
    blamed = (incident["finding"].get("rank") or {}).get("dp_rank")
    right, half = (RIGHT[kind], HALF.get(kind, set())) if blamed == rank else (OTHER.get(kind, set()), set())
    if kind == "nothing": return "wrong" if certainty == "likely" else "false"
    if certainty == "likely": return "right" if named in right else "half" if named in half else "wrong"
    return "consistent" if certainty == "consistent" and named in right | half else "unknown" if certainty != "consistent" else "misleading"


def table(folders):
    rows = [json.loads(line) for f in folders for line in open(f"{f}/incidents.jsonl")]
    words = ["right", "half", "consistent", "misleading", "unknown", "wrong", "missed", "quiet", "false"]
    print("| injected | times | fired | right rank | seconds to fire (median, most) | " + " | ".join(words) + " |\n|" + "---|" * (5 + len(words)))
    def line(name, of):
        fired = [r for r in of if r["incident"]]; delays = sorted(r["delay_s"] for r in fired)
        ranks = sum(r["blamed"] == r["rank"] for r in fired)
        seconds = f"{delays[len(delays) // 2]:.1f}, {delays[-1]:.1f}" if delays else ""
        print(f"| {name} | {len(of)} | {len(fired)} | {ranks} | {seconds} | " + " | ".join(str(sum(r["verdict"] == w for r in of) or "") for w in words) + " |")
    for kind in RIGHT: line(kind, [r for r in rows if r["kind"] == kind])
    line("all", rows)
    named = [r for r in rows if r["incident"] and r["kind"] != "nothing"]; n = max(1, len(named))
    part = lambda *w: 100 * sum(r["verdict"] in w for r in named) / n
    print(f"\n{len(rows)} troubles, {len(named)} incidents of one: right {part('right'):.1f} %, half {part('half'):.1f} %, consistent {part('consistent'):.1f} %, "
          f"unknown or consistent with something else {part('unknown', 'misleading'):.1f} %, confidently wrong {part('wrong'):.1f} %; not fired {sum(r['verdict'] == 'missed' for r in rows)}")
    others = sorted(r["others_cpus"] for r in rows)
    print(f"others used {others[len(others) // 2]:.2f} CPUs (median; most {others[-1]:.2f}) of the server's {max(r.get('cpus', os.cpu_count()) for r in rows)} while a trouble went on")


class Traffic:
    """Requests in a Poisson stream, each sent to a rank as a router would: four of five begin with one of a few prefixes that every rank has cached."""
    def __init__(self, session, a, rng):
        self.s, self.a, self.rng, self.rate = session, a, rng, 0.0
        self.prefixes = [self.tokens(a.prefix) for _ in range(8)]
        self.key = self.tokens(2 * a.prefix)
        self.weights, self.sticky, self.long, self.uncached = [1.0] * a.ranks, None, None, None
        self.open, self.done, self.dropped, self.failed, self.tasks = [0] * a.ranks, 0, 0, 0, set()

    def tokens(self, n): return [self.rng.randrange(10, 1000) for _ in range(n)]

    def next(self):
        rank = self.rng.choices(range(self.a.ranks), self.weights)[0]; tail = self.rng.randint(16, 96); begin = None
        if self.sticky is not None and self.rng.random() < 0.7: rank, begin = self.sticky, self.key
        elif self.rng.random() < 0.8: begin = self.rng.choice(self.prefixes)
        if rank == self.long: tail += self.rng.randint(600, 1100)
        if rank == self.uncached or begin is None: begin = self.tokens(self.a.prefix)
        return rank, begin + self.tokens(tail), self.rng.randint(*self.a.answer)

    async def one(self, rank, ids, answer):
        self.open[rank] += 1
        body = {"input_ids": ids, "sampling_params": {"max_new_tokens": answer, "ignore_eos": True, "temperature": 0.7}, "routed_dp_rank": rank}
        try:
            async with self.s.post(self.a.base + "/generate", json=body, timeout=aiohttp.ClientTimeout(total=120)) as r:
                await r.read(); self.done += r.status == 200; self.failed += r.status != 200
        except aiohttp.ClientError: self.failed += 1
        except asyncio.TimeoutError: self.failed += 1
        finally: self.open[rank] -= 1

    def send(self):
        rank, ids, answer = self.next()
        # Clients give up on a rank that answers nobody.
        if self.open[rank] >= self.a.most_open: self.dropped += 1; return
        t = asyncio.ensure_future(self.one(rank, ids, answer)); self.tasks.add(t); t.add_done_callback(self.tasks.discard)

    async def capacity(self, seconds, clients=6):
        """Requests a second that a closed loop of a few clients for each rank gets done."""
        end = time.time() + seconds; before = self.done
        async def client(rank):
            while time.time() < end:
                _, ids, answer = self.next(); await self.one(rank, ids, answer)
        await asyncio.gather(*(client(r) for r in range(self.a.ranks) for _ in range(clients)))
        return (self.done - before) / seconds

    async def run(self):
        due = time.time()
        while True:
            due = max(due + self.rng.expovariate(self.rate), time.time() - 1)
            await asyncio.sleep(max(0, due - time.time())); self.send()


def cpu_seconds(pids):
    total = 0.0
    for p in pids:
        try: f = open(f"/proc/{p}/stat").read().rsplit(")", 1)[1].split(); total += (int(f[11]) + int(f[12])) / os.sysconf("SC_CLK_TCK")
        except (OSError, IndexError): pass
    return total


async def usual_cpu(a, seconds=4.0):
    """CPUs that each rank's scheduler uses."""
    pids = [pid_of(r, a.group) for r in range(a.ranks)]; before = [cpu_seconds([p]) for p in pids]; t = time.time()
    await asyncio.sleep(seconds)
    return [(cpu_seconds([p]) - b) / (time.time() - t) for p, b in zip(pids, before)]


def ours(group):
    """The server's processes, this one, and its children and relatives in this session (recorder, agent, busy loops)."""
    mine = os.getsid(0); out = []
    for p in os.listdir("/proc"):
        if not p.isdigit(): continue
        try:
            if os.getpgid(int(p)) == group or os.getsid(int(p)) == mine: out.append(int(p))
        except OSError: pass
    return out


CPUS = sorted(os.sched_getaffinity(0))


def machine(group, agent):
    """Now, the seconds in which CPUS were busy (for a hypervisor's other guests too), and those that are ours."""
    names = {f"cpu{c}" for c in CPUS}; rows = [[int(x) for x in line.split()[1:9]] for line in open("/proc/stat") if line.split()[0] in names]
    busy = sum(sum(f) - f[3] - f[4] for f in rows) / os.sysconf("SC_CLK_TCK")
    pids = set(ours(group)) | ({agent} if agent else set())
    return time.time(), busy, cpu_seconds(pids)


async def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--base", default="http://127.0.0.1:30000"); ap.add_argument("--agent", default="http://127.0.0.1:9464"); ap.add_argument("--out", default=".")
    ap.add_argument("--ranks", type=int, default=2); ap.add_argument("--incidents", type=int, default=60); ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--kinds", default=",".join(RIGHT)); ap.add_argument("--at-most", type=float, default=30); ap.add_argument("--healthy", type=float, default=40)
    ap.add_argument("--learn", type=float, default=120, help="healthy seconds before the first trouble"); ap.add_argument("--group", type=int, default=0)
    ap.add_argument("--rate", type=float, default=0, help="requests a second, in place of a share of what the server can do"); ap.add_argument("--use", type=float, default=0.45, help="the stream's share of what the server can do"); ap.add_argument("--prefix", type=int, default=384)
    ap.add_argument("--answer", type=int, nargs=2, default=(8, 32)); ap.add_argument("--most-open", type=int, default=48); ap.add_argument("--agent-pid", type=int, default=0)
    ap.add_argument("--limit", type=float, default=1e9, help="seconds after which no further trouble begins"); ap.add_argument("--table", nargs="+")
    ap.add_argument("--until", type=float, default=1e12, help="the time at which every trouble is over"); ap.add_argument("--order", help="the first troubles, in place of chance")
    ap.add_argument("--measure", type=float, default=18, help="seconds in which it is measured what the server can do")
    a = ap.parse_args()
    if a.table: return table(a.table)
    os.makedirs(a.out, exist_ok=True); rng = random.Random(a.seed); begun = time.time()
    events, results = open(a.out + "/events.jsonl", "a"), open(a.out + "/incidents.jsonl", "a")
    def event(kind, **k): events.write(json.dumps({"t": round(time.time(), 3), "kind": kind, **k}) + "\n"); events.flush()
    kinds = a.kinds.split(","); plan = (a.order or "").split(",") if a.order else []; why = cannot_throttle() if "throttled" in kinds + plan else None
    if why:
        print("SKIPPED throttled:", why, flush=True); event("skipped", trouble="throttled", why=why)
        kinds, plan = ([k for k in of if k != "throttled"] for of in (kinds, plan))
    if not kinds + plan: raise SystemExit("nothing is left to inject")
    latest = a.until - a.at_most - 10                   # to begin one: it lasts so long at the most, and is judged ten seconds after its firing
    while len(plan) < a.incidents:                      # every kind once before one comes again
        block = rng.sample(kinds, len(kinds)); plan += block
    plan = plan[:a.incidents]; ranks = [i % a.ranks for i in range(len(plan))]; first = rng.randrange(a.ranks); ranks = [(r + first) % a.ranks for r in ranks]
    event("plan", seed=a.seed, troubles=list(zip(plan, ranks)))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=2)) as s:
        async def ask(path):
            async with s.get(a.agent + "/api/v1/" + path, timeout=aiohttp.ClientTimeout(total=10)) as r: return await r.json()
        async def incidents(): return await ask("incidents")
        going = lambda of: [i for i in of if not i.get("resolved_at")]
        traffic = Traffic(s, a, rng); await traffic.capacity(a.measure / 3); able = await traffic.capacity(a.measure * 2 / 3); traffic.rate = a.rate or a.use * able
        event("load", able=round(able, 2), rate=round(traffic.rate, 2)); print(f"the server does {able:.1f} requests a second; the stream has {traffic.rate:.1f}", flush=True)
        stream = asyncio.ensure_future(traffic.run()); await asyncio.sleep(a.learn)
        for n, (kind, rank) in enumerate(zip(plan, ranks)):
            if time.time() - begun > a.limit or time.time() + 4 > latest: event("limit"); break
            before = {i["id"]: i for i in await incidents()}
            used = await usual_cpu(a)
            # The truth, before anything is done.
            how = {"share": rng.uniform(0.80, 0.92), "stopped": rng.uniform(0.06, 0.10), "crowded": rng.choice([4, 5]), "throttled": rng.uniform(0.2, 0.4)}.get(kind)
            event("truth", n=n, trouble=kind, rank=rank, how=how, used=round(used[rank], 3), load=open("/proc/loadavg").read().split()[0]); m0 = machine(a.group, a.agent_pid); t0 = time.time()
            pid = pid_of(rank, a.group); over = lambda: None
            if pid is None: event("died", n=n); print("the rank's scheduler is gone", flush=True); break
            if kind == "share": traffic.weights[rank] = how / (1 - how) * (a.ranks - 1)
            elif kind == "sticky": traffic.key = traffic.tokens(2 * a.prefix); traffic.sticky = rank
            elif kind == "long": traffic.long = rank
            elif kind == "uncached": traffic.uncached = rank
            elif kind == "drained": traffic.weights[rank] = 0.0
            elif kind == "stopped": task = asyncio.ensure_future(duty(pid, how / 2, how)); over = task.cancel
            elif kind == "hung": os.kill(pid, signal.SIGSTOP); over = lambda: os.kill(pid, signal.SIGCONT)
            elif kind == "crowded": over = crowd(pid, CPUS[rank % len(CPUS)], how)
            elif kind == "throttled": over = throttle(pid, max(0.02, how * used[rank]))
            found = None
            try:
                while time.time() - t0 < a.at_most and found is None:
                    await asyncio.sleep(0.25)
                    new = [i for i in await incidents() if i["id"] not in before and i["fired_at"] > t0]
                    # One that was taken to be over and came back is the same incident.
                    back = [i for i in going(await incidents()) if i["id"] in before and before[i["id"]].get("resolved_at")]
                    found = min(new + back, key=lambda i: i["fired_at"], default=None)
                if found is not None:
                    fired = time.time() if found["id"] in before else found["fired_at"]; first = found.get("cause")
                    await asyncio.sleep(max(0, fired + 9.5 - time.time()))
                    found = next(i for i in await incidents() if i["id"] == found["id"]); found["first_cause"] = first
            finally:
                try: over()
                except OSError as e: event("undo_failed", n=n, why=repr(e))
            traffic.weights, traffic.sticky, traffic.long, traffic.uncached = [1.0] * a.ranks, None, None, None
            t1 = time.time(); m1 = machine(a.group, a.agent_pid); wall = max(0.1, m1[0] - m0[0])
            event("over", n=n, trouble=kind, rank=rank)
            row = {"n": n, "seed": a.seed, "kind": kind, "rank": rank, "how": how, "begin": round(t0, 3), "end": round(t1, 3), "verdict": judge(kind, rank, found),
                   "delay_s": round(fired - t0, 2) if found else None, "blamed": (found or {}).get("finding", {}).get("rank", {}).get("dp_rank") if found else None,
                   "load": float(open("/proc/loadavg").read().split()[0]), "cpus": len(CPUS), "others_cpus": round(max(0.0, (m1[1] - m0[1]) - max(0.0, m1[2] - m0[2])) / wall, 2),
                   "open": traffic.open, "done": traffic.done, "dropped": traffic.dropped, "failed": traffic.failed, "incident": found}
            results.write(json.dumps(row) + "\n"); results.flush()
            cause = (found or {}).get("cause") or {}
            print(f"{n:3} {kind:9} DP{rank} {row['verdict']:10} " + (f"{row['delay_s']:5.1f} s DP{row['blamed']} {found['rule']}: {cause.get('certainty')}: {cause.get('statement')}; {'; '.join(cause.get('support') or [])}" if found else "no incident")
                  + f" [load {row['load']}, others {row['others_cpus']}]", flush=True)
            # Healthy again: every incident is over, the one that was found and what came after it, and some time has gone by.
            healthy = time.time()
            while time.time() - healthy < a.healthy and time.time() - t1 < 120 + a.healthy and time.time() < latest:
                await asyncio.sleep(0.5); seen_now = await incidents()
                if going(seen_now): healthy = time.time()
                late = [i for i in seen_now if i["id"] not in before and (found is None or i["id"] != found["id"]) and i["fired_at"] > t1]
                if late and late[0]["id"] not in seen: seen.add(late[0]["id"]); event("after", n=n, incident=late[0]["id"], rule=late[0]["rule"]); print(f"    another incident after it: {late[0]['rule']} {late[0]['finding'].get('rank')}", flush=True)
        stream.cancel(); event("end")
    table([a.out])


seen = set()
if __name__ == "__main__":
    asyncio.run(main())
