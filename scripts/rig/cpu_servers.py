"""cpu_servers.py --bin BIN --servers N --seconds S [--seed SEED] [more arguments of cpu_causes.py]: cpu_causes.sh for several servers at once.

Each server, with everything that belongs to it (load, agent, recorder, the busy loops and cgroups of the troubles), is held to --cpus CPUs of its own
of those that this process may use, has ports, a work folder and a seed of its own, and the environment that prep.sh makes. The kinds are dealt so
that each comes last, and so may not come, on as few servers as possible. Servers that do not come up are left behind, with the end of their logs;
if none does, or none has come as far as its schedulers after 50 s, all is over. They are forked (server.py;
RIG_FORK= for new processes). It ends --seconds after --started (the time of the command).

$OUT gets causes.tar.xz (for each server the truth, the troubles, messages, incidents without evidence, and the ends of logs), recordings.tar
(what record.py saw, in parts of 15 MB if there is more), and table.txt over all servers.
"""
import argparse, io, os, random, re, shutil, signal, subprocess, sys, tarfile, time
from trouble import cannot_throttle

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
ap.add_argument("--bin", required=True); ap.add_argument("--servers", type=int, required=True); ap.add_argument("--seconds", type=float, required=True)
ap.add_argument("--seed", type=int, default=1); ap.add_argument("--started", type=float, default=time.time()); ap.add_argument("--cpus", type=int, default=2, help="of each server")
ap.add_argument("--patience", type=float, default=120, help="seconds in which a server must answer")
ap.add_argument("--kinds", default="share,sticky,long,uncached,stopped,crowded,throttled,hung,drained,nothing")
a, rest = ap.parse_known_args()
RIG, W, OUT, PY = (os.environ[n] for n in ("RIG", "W", "OUT", "PY"))
CLOSING = 14                                            # seconds for stopping servers and packing results
# Less time between troubles than one server takes: a trouble is over some ten seconds before its incident is, and what is usual is taken from 75 s.
PACE = ["--measure", "9", "--learn", "30", "--healthy", "6", "--at-most", "25"]
say = lambda *of: print(f"[{time.time() - a.started:.0f} s]", *of, flush=True)
read = lambda path, otherwise="": open(path, errors="replace").read() if os.path.exists(path) else otherwise


def shares():
    """CPUs of each server: those of one core, which disturb each other, stay together."""
    mine = os.sched_getaffinity(0)
    def core(c): return min((int(x) for x in re.findall(r"\d+", read(f"/sys/devices/system/cpu/cpu{c}/topology/thread_siblings_list", str(c)))), default=c)
    order = sorted(mine, key=lambda c: (core(c), c)); n = min(a.servers, len(order) // a.cpus)
    if n < a.servers: say(f"{a.servers} servers need {a.servers * a.cpus} CPUs, there are {len(order)}: {n} servers")
    say(f"CPUs {sorted(mine)}, cores of {'one thread each' if len({core(c) for c in mine}) == len(mine) else 'several threads'}; kernel {os.uname().release};",
        next((line.split(":")[1].strip() for line in read("/proc/cpuinfo").splitlines() if line.startswith("model name")), "?"), ";",
        "; ".join(re.findall(r"(?:MemTotal|MemAvailable):.*", read("/proc/meminfo"))))
    return [order[i * a.cpus:(i + 1) * a.cpus] for i in range(n)]


def deal(kinds, n):
    """An order of the kinds for each of n servers: which two come last goes around, the rest is chance."""
    deck = random.Random(a.seed).sample(kinds, len(kinds)); out = []
    for i in range(n):
        own = random.Random(f"{a.seed}/{i}"); last = {deck[(2 * i + j) % len(deck)] for j in range(2)}
        part = lambda of: own.sample(of, len(of))
        out.append(part([k for k in deck if k not in last]) + part([k for k in deck if k in last]))
    return out


class Server:
    def __init__(self, i, cpus, order):
        self.i, self.w, self.up, self.told = i, f"{W}/server-{i}", False, False
        shutil.rmtree(self.w, ignore_errors=True); os.makedirs(self.w + "/out")
        self.env = {**os.environ, "RIG_WORK": self.w, "OUT": self.w + "/out", "RIG_CARRIED": "/nonexistent", "RIG_PORT": str(20000 + 1500 * i), "RIG_SINK": str(9555 + i),
                    "RIG_LISTEN": str(9700 + i), "RIG_PATIENCE": str(int(a.patience)), "RIG_FORK": os.environ.get("RIG_FORK", "1")}
        until = a.started + a.seconds - CLOSING
        args = ["taskset", "-c", ",".join(map(str, cpus)), RIG + "/cpu_causes.sh", a.bin, "--seed", str(1000 * a.seed + i), "--kinds", ",".join(order), "--order", ",".join(order), "--until", str(until), *PACE, *rest]
        self.p = subprocess.Popen(args, env=self.env, stdin=subprocess.DEVNULL, stdout=open(self.w + "/run.log", "w"), stderr=subprocess.STDOUT, start_new_session=True)

    def log(self): return read(self.w + "/causes.log")

    def end(self):
        """Everything of it, whatever state it is in."""
        for group in (self.p.pid, int(read(self.w + "/causes.pid", "0") or 0)):
            for s in (signal.SIGCONT, signal.SIGKILL):
                try: group and os.killpg(group, s)
                except ProcessLookupError: pass
        self.p.wait()


def pack(servers):
    rows = [s.w + "/out" for s in servers if os.path.getsize(s.w + "/out/incidents.jsonl" if os.path.exists(s.w + "/out/incidents.jsonl") else os.devnull)]
    if rows:
        table = subprocess.run([PY, RIG + "/cpu_causes.py", "--table", *rows], capture_output=True, text=True); print(table.stdout + table.stderr, flush=True)
        open(OUT + "/table.txt", "w").write(table.stdout + table.stderr)
    def add(tar, name, data): info = tarfile.TarInfo(name); info.size = len(data); tar.addfile(info, io.BytesIO(data))
    with tarfile.open(OUT + "/causes.tar.xz", "w:xz", preset=3) as tar:
        for s in servers:
            for f in ("events.jsonl", "incidents.jsonl", "messages.jsonl", "table.txt", "cpu.jsonl", "record.log"):
                if os.path.exists(f"{s.w}/out/{f}"): tar.add(f"{s.w}/out/{f}", f"server-{s.i}/{f}")
            add(tar, f"server-{s.i}/run.log", read(s.w + "/run.log")[-200000:].encode())
            add(tar, f"server-{s.i}/agent.log", read(s.w + "/agent/agent.log")[-1000000:].encode())
            lines = [line[:500] for line in s.log().splitlines() if not re.search("HTTP/1.1|(Decode|Prefill) batch", line)]
            add(tar, f"server-{s.i}/causes.log", "\n".join(lines[:150] + ["..."] * (len(lines) > 300) + lines[150:][-150:]).encode())
            for folder, _, files in os.walk(s.w + "/agent/incidents"):
                if "incident.json" in files: tar.add(folder + "/incident.json", f"server-{s.i}/incidents/{os.path.basename(folder)}.json")
    say("packed what was told")
    jobs = [subprocess.Popen(["gzip", "-5f", f"{s.w}/out/{f}"]) for s in servers for f in ("loads.jsonl", "metrics.txt", "server.stamped.log") if os.path.exists(f"{s.w}/out/{f}")]
    for j in jobs: j.wait()
    with tarfile.open(W + "/recordings.tar", "w") as tar:
        for s in servers:
            for f in ("loads.jsonl.gz", "metrics.txt.gz", "server.stamped.log.gz", "events.jsonl"):
                if os.path.exists(f"{s.w}/out/{f}"): tar.add(f"{s.w}/out/{f}", f"server-{s.i}/{f}")
    data = open(W + "/recordings.tar", "rb").read(); parts = [data[n:n + 15_000_000] for n in range(0, len(data), 15_000_000)]
    if len(parts) > 5: say("recordings of", len(data), "bytes are too large and left out")
    for n, part in enumerate(parts if len(parts) <= 5 else []): open(f"{OUT}/recordings.tar" + (f".{n}" if len(parts) > 1 else ""), "wb").write(part)
    say("results:", {f: os.path.getsize(f"{OUT}/{f}") for f in sorted(os.listdir(OUT))})


def main():
    kinds = a.kinds.split(","); why = cannot_throttle() if "throttled" in kinds else None
    if why: say("SKIPPED throttled:", why); kinds.remove("throttled")
    if not kinds: sys.exit("nothing is left to inject")
    if not os.path.exists("/proc/self/schedstat"): say("no /proc/PID/schedstat here: the agent cannot tell a slow host")
    cpus = shares(); begun = time.time(); end = a.started + a.seconds
    servers = [Server(i, c, order) for i, (c, order) in enumerate(zip(cpus, deal(kinds, len(cpus))))]
    say(len(servers), "servers begin; troubles are over at", round(a.seconds - CLOSING), "s")
    try:
        alive, looked, lines = servers, False, 25
        while alive and time.time() < end - CLOSING + 5:
            time.sleep(0.5); alive = [s for s in servers if s.p.poll() is None]
            for s in servers:
                if not s.up and os.path.exists(s.w + "/up"): s.up = True; say(f"server {s.i} is up")
                if s.p.returncode and not s.told: s.told = True; say(f"server {s.i} is over with {s.p.returncode}:\n" + "\n".join(line[:400] for line in read(s.w + "/run.log").splitlines()[-lines:])); lines = max(3, lines - 11)
            if time.time() - begun > 50 and not looked:
                looked = True
                if not any(s.up or re.search("Launch DP|Load weight", s.log()) for s in servers):
                    say("no server has come as far as its schedulers in 50 s; the end of a log:\n" + s.log()[-4000:]); break
        if not any(s.up for s in servers): say("no server came up")
        # Agents and recorders write what they have once they are told to end.
        for s in servers:
            try: os.killpg(s.p.pid, signal.SIGTERM)
            except ProcessLookupError: pass
        if alive: time.sleep(1.5)
    finally:
        for s in servers: s.end()
    say("all servers have ended"); pack(servers); sys.exit(0 if any(s.up for s in servers) else 1)


if __name__ == "__main__": main()
