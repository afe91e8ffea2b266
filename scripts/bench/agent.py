"""What the agent costs while nothing happens, and how fast it notifies when something does, side by side
with Prometheus and Alertmanager at their tightest settings in the same run.

    cargo build --profile dist
    python3 scripts/bench/agent.py [--flips 25] [--idle 30] [--series 5000] [--without-peers]

One exporter shows a metrics page of 5,000 series: eight ranks' `sglang:num_running_reqs` and filler. The
agent and Prometheus scrape it once a second; a rule (max over mean above 1.5, `for: 0s`) fires when rank 3
is flipped at a random phase, and a webhook takes the time. Prints one JSON object: CPU as percent of a
core, resident memory in MB, seconds from the flip to the webhook. Needs only the standard library; the
peers must be installed (Debian: prometheus, prometheus-alertmanager).
"""
import argparse
import http.server
import json
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.parse

from processes import cpu_s, free_port, get, resident_mb, until

ROOT = pathlib.Path(__file__).resolve().parents[2]
RANKS = 8


class Exporter:
    """The server's metrics page. Built once per flip, so that the page costs the machine little."""

    def __init__(self, series):
        filler = "# TYPE filler gauge\n" + "".join(f'filler{{i="{i}"}} {i}\n' for i in range(series - RANKS))
        self.pages = [self.page(skewed, filler) for skewed in (False, True)]
        self.skewed, self.scrapes = False, 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                path = urllib.parse.urlparse(self.path).path
                found = path == "/metrics"
                outer.scrapes += found
                body = outer.pages[outer.skewed] if found else b"not here"
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = serve(Handler)
        self.port = self.server.server_port

    @staticmethod
    def page(skewed, filler):
        lines = ["# TYPE sglang:num_running_reqs gauge\n"]
        for rank in range(RANKS):
            value = 60 if skewed and rank == 3 else 10
            lines.append(f'sglang:num_running_reqs{{dp_rank="{rank}",engine_type="unified",model_name="m"}} {value}\n')
        return ("".join(lines) + filler).encode()


class Hook:
    """Collects messages with their arrival times: ours by `update`, Alertmanager's by `status`."""

    def __init__(self):
        self.came = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                at = time.time()
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.came.append((at, body.get("update") or body.get("status")))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = serve(Handler)
        self.port = self.server.server_port

    def wait(self, word, since, longest=60):
        while time.time() - since < longest:
            for at, what in list(self.came):
                if at >= since and what == word:
                    return at
            time.sleep(0.002)
        return None


def serve(handler):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def agent(folder, exporter, hook, binary):
    port = free_port()
    (folder / "skewtrap.yaml").write_text(f"""
targets: [{{ name: server, url: "http://127.0.0.1:{exporter.port}", loads: false, poll: 1s }}]
rules:
  - name: skew
    signal: running_reqs
    across: dp_rank
    within: [target]
    trigger: {{ max_over_mean: 1.5, for: 0s }}
    clear: {{ max_over_mean: 1.4, for: 0s }}
    capture: none
watch_only: true
receivers: [{{ name: hook, webhook: {{ url: "http://127.0.0.1:{hook.port}/" }} }}]
storm_cap: {{ incidents: 1000, per: 1m }}
state_dir: {folder}/state
incident_dir: {folder}/incidents
listen: 127.0.0.1:{port}
""")
    log = open(folder / "agent.log", "w")
    process = subprocess.Popen([binary, "run", "--config", folder / "skewtrap.yaml"], stdout=log, stderr=log)
    until(lambda: b"skew" in get(f"http://127.0.0.1:{port}/api/v1/rules") and get(f"http://127.0.0.1:{port}/readyz"), process, folder / "agent.log")
    return {"skewtrap": process}, "fired", "resolved"


def peers(folder, exporter, hook):
    alerts, prometheus = free_port(), free_port()
    (folder / "rules.yml").write_text(
        "groups: [{name: g, rules: [{alert: Skew, for: 0s, expr: 'max({__name__=\"sglang:num_running_reqs\"}) / avg({__name__=\"sglang:num_running_reqs\"}) > 1.5'}]}]\n")
    (folder / "prometheus.yml").write_text(f"""
global: {{scrape_interval: 1s, evaluation_interval: 1s, scrape_timeout: 1s}}
rule_files: [{folder}/rules.yml]
alerting: {{alertmanagers: [{{static_configs: [{{targets: ['127.0.0.1:{alerts}']}}]}}]}}
scrape_configs: [{{job_name: sglang, static_configs: [{{targets: ['127.0.0.1:{exporter.port}']}}]}}]
""")
    (folder / "alertmanager.yml").write_text(f"""
route: {{receiver: w, group_by: [alertname], group_wait: 0s, group_interval: 1s, repeat_interval: 4h}}
receivers: [{{name: w, webhook_configs: [{{url: 'http://127.0.0.1:{hook.port}/', send_resolved: true}}]}}]
""")
    log = open(folder / "peers.log", "w")
    started = {
        "prometheus": subprocess.Popen(["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb",
                                        f"--web.listen-address=127.0.0.1:{prometheus}"], stdout=log, stderr=log),
        "alertmanager": subprocess.Popen(["prometheus-alertmanager", f"--config.file={folder}/alertmanager.yml", f"--storage.path={folder}/am",
                                          f"--web.listen-address=127.0.0.1:{alerts}", "--cluster.listen-address="], stdout=log, stderr=log),
    }
    ready = lambda: get(f"http://127.0.0.1:{prometheus}/-/ready") and get(f"http://127.0.0.1:{alerts}/-/ready")
    until(ready, started["prometheus"], folder / "peers.log")
    return started, "firing", "resolved"


def idle(processes, exporter, seconds):
    before, scrapes, began = {n: cpu_s(p) for n, p in processes.items()}, exporter.scrapes, time.time()
    time.sleep(seconds)
    took = time.time() - began
    found = {n: {"cpu_percent": round(100 * (cpu_s(p) - before[n]) / took, 2), "resident_mb": round(resident_mb(p), 1)} for n, p in processes.items()}
    return found, round((exporter.scrapes - scrapes) / took, 2)


def flips(exporter, hook, fired, cleared, count):
    took = []
    for _ in range(count):
        time.sleep(random.uniform(2, 4))
        exporter.skewed, began = True, time.time()
        at = hook.wait(fired, began)
        took.append(at - began if at else None)
        exporter.skewed, began = False, time.time()
        hook.wait(cleared, began)
    known = sorted(t for t in took if t is not None)
    if not known:
        return {"n": count, "told": 0}
    share = lambda q: round(known[min(len(known) - 1, int(q * len(known)))], 3)
    return {"n": count, "told": len(known), "median_s": round(statistics.median(known), 3), "min_s": round(known[0], 3), "p90_s": share(0.9), "max_s": round(known[-1], 3)}


def measured(start, options):
    exporter, hook = Exporter(options.series), Hook()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="skewtrap-bench-"))
    processes = {}
    try:
        processes, fired, cleared = start(folder, exporter, hook)
        time.sleep(10)  # the first scrapes fill caches
        cost, per_s = idle(processes, exporter, options.idle)
        return {"idle": cost, "scrapes_per_s": per_s, "flip_to_webhook": flips(exporter, hook, fired, cleared, options.flips)}
    finally:
        for process in processes.values():
            process.terminate()
            process.wait(30)
        exporter.server.shutdown()
        hook.server.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=25)
    parser.add_argument("--idle", type=float, default=30)
    parser.add_argument("--series", type=int, default=5000)
    parser.add_argument("--binary", default=str(ROOT / "target/dist/skewtrap"))
    parser.add_argument("--without-peers", action="store_true")
    options = parser.parse_args()
    result = {"series": options.series, "load_before": os.getloadavg()[0]}
    result["skewtrap"] = measured(lambda *a: agent(*a, options.binary), options)
    if options.without_peers or not (shutil.which("prometheus") and shutil.which("prometheus-alertmanager")):
        result["peers"] = "SKIPPED: Prometheus and Alertmanager"
    else:
        result["peers"] = measured(peers, options)
    result["load_after"] = os.getloadavg()[0]
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
