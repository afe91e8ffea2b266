"""load.py SCRIPT.json --base URL --out DIR [--server-pid PID] [--hook CMD]: an open load by phases, with the truth beside it.

Writes DIR/events.jsonl (phase, phase_end and what was done to whom, epoch seconds), DIR/stalls.csv (end,rank,gap_s: gaps of one
streaming client per rank, from --gap on), DIR/requests.csv (start,rank asked for,first token s (-1: not streamed),whole s,tokens,status).

A script is a list of phases, one after the other:
  name, seconds      the name's number is the rank in trouble (slow0), no number: nobody's
  rate               requests a second, Poisson (default 60);  closed: so many clients in a closed loop instead
  pinned             true: each of the closed loop's clients keeps its rank, so that all ranks have as many
  weights            share per rank by routed_dp_rank (omitted: the server's own balancing)
  shape              {"rank or all": [shortest prompt, longest prompt, answer's factor]}   (default prompts 16..128, answers 32..384)
  stop / duty        {"rank": 0} SIGSTOP for the whole phase / {"rank": 0, "on": 0.04, "off": 0.08} in turn
  crowd              {"rank": 2, "core": 5, "n": 4}  that scheduler and so many busy loops pinned to one core
  gpu                {"share": 0.5, "device": 0}     a competing process that keeps the GPU busy for that share of the time
  bursts             true: rates and small weights change every 3 to 8 s
  do / after         a shell command at the beginning / at the end of the phase ("at": seconds into the phase for `do`)
  window             {"at": s, "name": n, "steps": 10, "activities": ["GPU"], "dir": d}  profile by the server's API, waits for files
"""
import argparse, asyncio, glob, json, os, random, re, signal, subprocess, sys, time
import aiohttp
from trouble import crowd, duty, pid_of, schedulers

ap = argparse.ArgumentParser()
ap.add_argument("script"); ap.add_argument("--base", default="http://127.0.0.1:30000"); ap.add_argument("--out", default=".")
ap.add_argument("--ranks", type=int, default=4); ap.add_argument("--stream-ranks", type=int, default=-1, help="streaming clients (default: one per rank)")
ap.add_argument("--gap", type=float, default=0.1); ap.add_argument("--group", type=int, default=0, help="process group of the server, to find its schedulers")
ap.add_argument("--limit", type=float, default=1e9, help="seconds after which everything ends"); ap.add_argument("--seed", type=int, default=1)
ap.add_argument("--scale", type=float, default=1.0, help="all phases' seconds times this"); ap.add_argument("--vocab", type=int, default=1000)
ap.add_argument("--rate-scale", type=float, default=1.0); ap.add_argument("--no-route", action="store_true", help="the server has no DP ranks")
ap.add_argument("--stream-share", type=float, default=0.05, help="share of the requests that stream, and so tell their first token's time")
ap.add_argument("--itl", action="store_true", help="all gaps of the streaming clients: itl.csv (end,rank,gap_s)")
ap.add_argument("--append", action="store_true"); ap.add_argument("--same-token", type=int, default=0, help="prompts of this one token")
a = ap.parse_args(); rng = random.Random(a.seed); os.makedirs(a.out, exist_ok=True)
a.append = a.append and os.path.exists(a.out + "/stalls.csv")
mode = "a" if a.append else "w"
EV = open(a.out + "/events.jsonl", mode); ST = open(a.out + "/stalls.csv", mode); RQ = open(a.out + "/requests.csv", mode)
IT = open(a.out + "/itl.csv", mode) if a.itl else None
if IT and not a.append: IT.write("end,rank,gap_s\n")
if not a.append: ST.write("end,rank,gap_s\n"); RQ.write("start,rank,first_s,whole_s,tokens,status\n")
t_begin = time.time(); stat = {}; tok = [0, 0]; tasks = set()


def event(kind, **k):
    EV.write(json.dumps({"t": round(time.time(), 4), "kind": kind, **k}) + "\n"); EV.flush()


async def one(s, rank, shape):
    lo, hi, factor = shape
    n = rng.randint(lo, hi)
    ids = [a.same_token] * n if a.same_token else [rng.randrange(10, a.vocab) for _ in range(n)]
    want = max(4, int(rng.randint(32, 384) * factor))
    body = {"input_ids": ids, "sampling_params": {"max_new_tokens": want, "ignore_eos": True, "temperature": 0.7},
            "stream": rng.random() < a.stream_share}
    if rank is not None and not a.no_route: body["routed_dp_rank"] = rank
    b = time.time(); first = None; status = "?"
    try:
        async with s.post(a.base + "/generate", json=body, timeout=aiohttp.ClientTimeout(total=180)) as r:
            status = str(r.status)
            async for _ in r.content.iter_any():
                if first is None and body["stream"]: first = time.time() - b
    except asyncio.CancelledError: raise
    except Exception as e: status = repr(e)[:60].replace(",", ";")
    e = time.time()
    stat[status] = stat.get(status, 0) + 1
    if status == "200": tok[0] += want; tok[1] += 1
    RQ.write(f"{b:.3f},{'' if rank is None else rank},{-1 if first is None else first:.4f},{e - b:.4f},{want},{status}\n")


async def streamer(s, rank):
    """One client per rank that always streams: what a user sees of a silence."""
    while True:
        last = None
        body = {"input_ids": [rng.randrange(10, a.vocab) for _ in range(16)], "stream": True,
                "sampling_params": {"max_new_tokens": 2000, "ignore_eos": True, "temperature": 0.7}}
        if not a.no_route: body["routed_dp_rank"] = rank
        try:
            async with s.post(a.base + "/generate", json=body, timeout=aiohttp.ClientTimeout(total=None, sock_read=120)) as r:
                async for chunk in r.content.iter_any():
                    now = time.time()
                    if IT and last is not None: IT.write(f"{now:.3f},{rank},{now - last:.4f}\n")
                    if last is not None and now - last >= a.gap: ST.write(f"{now:.3f},{rank},{now - last:.4f}\n"); ST.flush()
                    last = now
        except asyncio.CancelledError: raise
        except Exception as e:
            event("stream_err", r=rank, e=repr(e)[:100]); await asyncio.sleep(0.5)


async def whole(folder):
    """Whether nothing below it grows any more: a file is there before it is written to its end."""
    sizes = lambda: {f: os.path.getsize(f) for f in glob.glob(folder + "/*.json.gz")}
    before = sizes(); await asyncio.sleep(0.2)
    return before == sizes()


async def window(s, w):
    await asyncio.sleep(w.get("at", 0))
    d = w.get("dir") or os.path.join(os.environ.get("SGLANG_TORCH_PROFILER_DIR", "/tmp"), w["name"])
    os.makedirs(d, exist_ok=True)
    want = w.get("files", a.ranks); body = {"output_dir": d, "num_steps": w.get("steps", 10), "activities": w.get("activities", ["GPU"]),
                                          "with_stack": w.get("stack", False), "record_shapes": False, "start_step": 1}
    b = time.time(); event("window", name=w["name"], steps=body["num_steps"], activities=body["activities"], rank=w.get("rank"))
    try:
        async with s.post(a.base + "/start_profile", json=body, timeout=aiohttp.ClientTimeout(total=60)) as r: text = f"{r.status} {(await r.text())[:80]}"
    except Exception as e: text = repr(e)[:120]
    n = 0
    while time.time() - b < w.get("patience", 20):
        n = len(glob.glob(d + "/*.json.gz"))
        if n >= want and await whole(d): break
        await asyncio.sleep(0.1)
    if n < want:
        try:
            async with s.post(a.base + "/stop_profile", timeout=aiohttp.ClientTimeout(total=30)) as r: text += f"; stop {r.status}"
        except Exception as e: text += "; stop " + repr(e)[:80]
        n = len(glob.glob(d + "/*.json.gz"))
    await asyncio.sleep(0.5)
    event("window_end", name=w["name"], files=n, after=round(time.time() - b - 0.5, 2), answer=text, bytes={os.path.basename(f): os.path.getsize(f) for f in glob.glob(d + "/*.json.gz")})


def spawn(coro):
    t = asyncio.ensure_future(coro); tasks.add(t); t.add_done_callback(tasks.discard); return t


async def sh(cmd, delay=0):
    await asyncio.sleep(delay); event("do", cmd=cmd[:200])
    p = await asyncio.create_subprocess_shell(cmd); rc = await p.wait(); event("did", cmd=cmd[:60], rc=rc)


async def phase(s, p):
    name, seconds = p["name"], p["seconds"] * a.scale
    seconds = min(seconds, t_begin + a.limit - time.time())
    if seconds < 1: event("skipped", name=name); return
    undo = []; bg = []; before = list(tok)
    if "duty" in p or "stop" in p or "crowd" in p:
        x = p.get("duty") or p.get("stop") or p.get("crowd"); rank = x["rank"]; pid = pid_of(rank, a.group)
        if pid is None: event("skipped", name=name, why="no scheduler found", seen={str(k): v for k, v in schedulers(a.group).items()}); return
        if "duty" in p:
            event("duty", rank=rank, pid=pid, on=x["on"], off=x["off"]); t = spawn(duty(pid, x["on"], x["off"])); undo.append(lambda: (t.cancel(), event("duty_over", rank=rank)))
        elif "stop" in p:
            event("stop", rank=rank, pid=pid); os.kill(pid, signal.SIGSTOP); undo.append(lambda: (os.kill(pid, signal.SIGCONT), event("cont", rank=rank)))
        else:
            core, n = x.get("core", 5) % os.cpu_count(), x.get("n", 4); end = crowd(pid, core, n)
            event("crowd", rank=rank, pid=pid, core=core, n=n)
            undo.append(lambda: (end(), event("crowd_over", rank=rank)))
    if "gpu" in p:
        g = p["gpu"]; q = subprocess.Popen([sys.executable, os.path.join(os.path.dirname(os.path.abspath(__file__)), "gpu_hog.py"), str(g.get("share", 0.5)), str(g.get("device", 0)), str(seconds + 20)], stdout=open(a.out + "/gpu_hog.log", "a"), stderr=subprocess.STDOUT)
        event("gpu_hog", pid=q.pid, **g)
        for _ in range(150):                # it needs some seconds to start: the phase begins when it works
            if os.path.exists(f"/tmp/gpu_hog.{q.pid}"): break
            await asyncio.sleep(0.1)
        undo.append(lambda: (q.kill(), event("gpu_hog_over")))
    event("phase", name=name, weights=p.get("weights") or [1] * a.ranks, rate=p.get("rate", 60.0) * a.rate_scale, shape=p.get("shape", {}), closed=p.get("closed", 0), seconds=seconds)
    if p.get("do"): bg.append(spawn(sh(p["do"], p.get("at", 0))))
    for w in [p["window"]] if isinstance(p.get("window"), dict) else p.get("window", []): bg.append(spawn(window(s, w)))
    t0 = time.time(); weights, rate, change = p.get("weights"), p.get("rate", 60.0) * a.rate_scale, t0
    shape = lambda r: p.get("shape", {}).get(str(r)) or p.get("shape", {}).get("all") or (16, 128, 1.0)

    async def client(i):
        while time.time() - t0 < seconds:
            r = i % a.ranks if p.get("pinned") else rng.choices(range(a.ranks), weights)[0] if weights else None
            await one(s, r, shape(r))
    if p.get("closed"):
        for i in range(p["closed"]): spawn(client(i))
    nxt = time.time()
    while time.time() - t0 < seconds:
        if p.get("bursts") and time.time() >= change:
            change = time.time() + rng.choice([3, 5, 8]); rate = rng.choice([15, 40, 60, 90, 130]) * a.rate_scale; weights = [rng.uniform(0.8, 1.2) for _ in range(a.ranks)]
            event("burst", rate=rate, weights=[round(w, 2) for w in weights])
        if p.get("closed") or rate <= 0: await asyncio.sleep(0.05); continue
        nxt = max(nxt + rng.expovariate(rate), time.time() - 1)
        await asyncio.sleep(max(0, nxt - time.time()))
        # where one rank has another shape, each request must know its rank: even weights then
        w = weights or ([1] * a.ranks if any(k != "all" for k in p.get("shape", {})) else None)
        r = rng.choices(range(a.ranks), w)[0] if w else None
        spawn(one(s, r, shape(r)))
    d = time.time() - t0
    event("phase_end", name=name, tokens_per_s=round((tok[0] - before[0]) / d, 1), reqs_per_s=round((tok[1] - before[1]) / d, 2))
    for u in reversed(undo):
        try: u()
        except Exception as e: event("undo_err", e=repr(e)[:100])
    if bg: await asyncio.wait(bg, timeout=25)
    if p.get("after"): await sh(p["after"])
    EV.flush(); RQ.flush()


async def main():
    script = json.load(open(a.script)) if not a.script.startswith("[") else json.loads(a.script)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=2)) as s:
        n = a.ranks if a.stream_ranks < 0 else a.stream_ranks
        st = [spawn(streamer(s, r)) for r in range(n)]
        for p in script:
            if time.time() - t_begin > a.limit: break
            try: await phase(s, p)
            except Exception as e: event("phase_err", name=p.get("name"), e=repr(e)[:200])
            print(f"{time.time():.1f} {p['name']} {stat} tokens/s {tok[0] / (time.time() - t_begin):.0f}", flush=True)
        event("end", stat=stat)
        for t in list(tasks): t.cancel()
        await asyncio.gather(*list(tasks), return_exceptions=True)
try:
    asyncio.run(main())
finally:
    for f in (EV, ST, RQ, *([IT] if IT else [])): f.close()
