"""record.py --base URL --log FILE --out DIR [--pid-file F] [--sink PORT]: records a server until SIGTERM, in the recordings' formats.

DIR/loads.jsonl   {"t": EPOCH, "body": /v1/loads} every 0.5 s      DIR/metrics.txt   "#@ EPOCH" and the page, every 1 s
DIR/server.stamped.log   EPOCH<TAB>line, by arrival                 DIR/messages.jsonl {"t": EPOCH, "body": ...} what the agent's webhook sends
DIR/gpu.csv       nvidia-smi's clocks, use and power every second   DIR/cpu.jsonl      CPU seconds of the agent (--agent-pid-file) and schedulers
"""
import argparse, asyncio, json, os, re, signal, subprocess, time
import aiohttp
from aiohttp import web
ap = argparse.ArgumentParser()
ap.add_argument("--base", default="http://127.0.0.1:30000"); ap.add_argument("--log"); ap.add_argument("--out", default="."); ap.add_argument("--sink", type=int, default=0)
ap.add_argument("--loads-every", type=float, default=0.5); ap.add_argument("--metrics-every", type=float, default=1.0); ap.add_argument("--agent-pid-file"); ap.add_argument("--no-gpu", action="store_true")
a = ap.parse_args(); os.makedirs(a.out, exist_ok=True); stop = asyncio.Event(); start = time.time()


async def every(seconds, f):
    n = time.time()
    while not stop.is_set():
        try: await f()
        except asyncio.CancelledError: raise
        except Exception as e: print(f"{time.time():.3f} {f.__name__} {e!r}", flush=True)
        n = max(n + seconds, time.time()); await asyncio.sleep(max(0.001, n - time.time()))


async def main():
    loop = asyncio.get_running_loop()
    for s in (signal.SIGTERM, signal.SIGINT): loop.add_signal_handler(s, stop.set)
    L, M, S, G = (open(f"{a.out}/{n}", "a", buffering=1 << 16) for n in ("loads.jsonl", "metrics.txt", "server.stamped.log", "messages.jsonl"))
    C = open(a.out + "/cpu.jsonl", "a")
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(keepalive_timeout=2), timeout=aiohttp.ClientTimeout(total=20))

    async def loads():
        async with session.get(a.base + "/v1/loads") as r:
            t = await r.text()
            if r.status == 200: L.write(f'{{"t": {time.time():.3f}, "body": {t.strip()}}}\n'.replace("\n", " ").strip() + "\n")

    async def metrics():
        async with session.get(a.base + "/metrics") as r:
            t = await r.text()
            if r.status == 200: M.write(f"#@ {time.time():.3f}\n{t}" + ("" if t.endswith("\n") else "\n"))

    async def log():
        f = None; rest = b""
        while True:
            if f is None and a.log and os.path.exists(a.log): f = open(a.log, "rb")
            b = f.read() if f else b""
            if b:
                now = time.time(); parts = (rest + b).split(b"\n"); rest = parts.pop()
                for p in parts: S.write(f"{now:.4f}\t{p.decode('utf8', 'replace')}\n")
            elif stop.is_set(): break
            await asyncio.sleep(0.01)

    async def told(req):
        t = await req.text()
        try: body = json.loads(t)
        except ValueError: body = t
        G.write(json.dumps({"t": round(time.time(), 3), "body": body}) + "\n"); G.flush()
        return web.Response(text="ok")

    def ticks(pid):
        f = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split(); return (int(f[11]) + int(f[12])) / os.sysconf("SC_CLK_TCK"), int(f[21]) * 4096

    async def cpu():
        row = {"t": round(time.time(), 3)}
        try: pid = int(open(a.agent_pid_file).read()); row["agent"], row["rss"] = ticks(pid)
        except Exception: pass
        C.write(json.dumps(row) + "\n"); C.flush()

    gpu = None
    try: gpu = None if a.no_gpu else subprocess.Popen(["nvidia-smi", "--query-gpu=timestamp,index,clocks.sm,clocks.mem,utilization.gpu,power.draw,temperature.gpu,clocks_throttle_reasons.active", "--format=csv,noheader,nounits", "-l", "1"], stdout=open(a.out + "/gpu.csv", "w"), stderr=subprocess.STDOUT)
    except OSError: pass
    if a.sink:
        app = web.Application(client_max_size=64 << 20); app.router.add_route("*", "/{x:.*}", told); runner = web.AppRunner(app, access_log=None); await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", a.sink).start()
    jobs = [asyncio.ensure_future(x) for x in (every(a.loads_every, loads), every(a.metrics_every, metrics), every(1.0, cpu))]; lj = asyncio.ensure_future(log())
    await stop.wait()
    for j in jobs: j.cancel()
    await asyncio.wait([lj], timeout=2)
    if gpu: gpu.terminate()
    for f in (L, M, S, G, C): f.close()
    await session.close()
asyncio.run(main())
