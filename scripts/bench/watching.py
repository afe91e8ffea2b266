"""What watching costs: one server with its log, many servers, many ranks; Prometheus beside it in the same run.

    cargo build --profile dist
    python3 scripts/bench/watching.py RECORDING [--cases log,1,50,200,ranks,1000] [--seconds 30] [--runs 3] [--every 1]

RECORDING is a folder with `metrics.txt.gz`, `loads.jsonl.gz` and `server.stamped.log.gz`, played as live servers by
player.py. Cases: `log` is one server whose log is read too, a number is so many servers, `ranks` is one server of
256 ranks; 1,000 servers and more are asked every 5 s, all others every second. The agent watches with the shipped
rules; Prometheus (Debian: prometheus) scrapes the same pages at the same pace and evaluates nothing. Both run at
the same time, so a busy machine slows both. Prints the median of the runs as a table: CPU as percent of a core,
resident memory in MB, what a server costs, how much of the CPU the agent accounts for by stage, how late scrapes
begin, and how long and how large the API's answers are; with --strace also system calls for each log line, counted
in 10 s of their own. Needs only the standard library.
"""
import argparse
import json
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from processes import cpu_s, free_port, get, resident_mb, until

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RANKS = 256
MEASURED = 250  # so many servers have samples in one answer of /metrics
ANSWERS = ["/", "/api/v1/status", "/api/v1/history", "/api/v1/ranks", "/metrics"]


def address(index):
    return f"127.0.{1 + index // 250}.{1 + index % 250}"


class Case:
    def __init__(self, name, every):
        self.name, self.with_log, self.ranks = name, name == "log", RANKS if name == "ranks" else 0
        self.servers = int(name) if name.isdigit() else 1
        self.every = every or (5 if self.servers >= 1000 else 1)

    def words(self):
        if self.with_log:
            return "1 server, pages and a busy log"
        if self.ranks:
            return f"1 server of {RANKS} ranks"
        pace = "" if self.every == 1 else f", every {self.every} s"
        return f"{self.servers} server{'s' if self.servers > 1 else ''}{pace}"


class Run:
    """The player, the agent and Prometheus, until the block ends."""

    def __init__(self, case, options):
        self.case, self.options, self.processes = case, options, []
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="skewtrap-bench-"))

    def __enter__(self):
        # What was started ends also where the rest of it does not come up.
        try:
            self.begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def begin(self):
        case, folder, port = self.case, self.folder, free_port()
        log = ["--log", folder / "server.log"] if case.with_log else []
        ranks = ["--ranks", str(case.ranks)] if case.ranks else []
        player = self.start("player", [sys.executable, HERE / "player.py", self.options.recording, str(port), *log, *ranks])
        until(lambda: get(f"http://127.0.0.1:{port}/health") == b"", player, folder / "player.out")
        self.api = f"http://127.0.0.1:{free_port()}"
        targets = "".join(f"  - {{ name: s{i}, url: 'http://{address(i)}:{port}', poll: {case.every}s{', logs: [' + str(folder / 'server.log') + ']' if case.with_log else ''} }}\n" for i in range(case.servers))
        (folder / "skewtrap.yaml").write_text(f"targets:\n{targets}watch_only: true\nstate_dir: {folder}/state\nincident_dir: {folder}/incidents\nlisten: {self.api[7:]}\n")
        self.agent = self.start("agent", [self.options.binary, "run", "--config", folder / "skewtrap.yaml"])
        self.prometheus = None
        if self.options.peer:
            web = f"127.0.0.1:{free_port()}"
            hosts = ", ".join(f"'{address(i)}:{port}'" for i in range(case.servers))
            (folder / "prometheus.yml").write_text(f"global: {{ scrape_interval: {case.every}s, scrape_timeout: {case.every}s }}\nscrape_configs: [{{ job_name: sglang, static_configs: [{{ targets: [{hosts}] }}] }}]\n")
            self.prometheus = self.start("prometheus", ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb", f"--web.listen-address={web}"])
            until(lambda: get(f"http://{web}/-/ready"), self.prometheus, folder / "prometheus.out")
        until(lambda: get(f"{self.api}/readyz"), self.agent, folder / "agent.out")

    def start(self, name, command):
        out = open(self.folder / f"{name}.out", "w")
        process = subprocess.Popen([str(part) for part in command], stdout=out, stderr=out)
        self.processes.append(process)
        return process

    def __exit__(self, *_):
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            process.wait(60)
        if self.options.keep:
            print(self.folder, file=sys.stderr)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def calls_of_lines(self):
        """System calls of the whole agent for each line of the log."""
        lines = lambda: (self.folder / "server.log").read_bytes().count(b"\n")
        began = lines()
        return self.system_calls(10) / max(1, lines() - began)

    def system_calls(self, seconds):
        counts = self.folder / "strace"
        strace = self.start("strace", ["strace", "-f", "-c", "-o", counts, "-p", self.agent.pid])
        time.sleep(seconds)
        strace.send_signal(signal.SIGINT)
        strace.wait(30)
        return int(re.search(r"(\d+)\s+(?:\d+\s+)?total", counts.read_text())[1])

    def metric(self, name):
        """The sum of an own metric over its labels, and its rows."""
        rows = re.findall(rf"^{name}(\{{[^}}]*\}})? (\S+)", get(f"{self.api}/metrics").decode(), re.M)
        return sum(float(value) for _, value in rows), {labels: float(value) for labels, value in rows}


def measured(case, options):
    with Run(case, options) as run:
        time.sleep(options.settle)
        watched = {"skewtrap": run.agent, "Prometheus": run.prometheus}
        watched = {name: process for name, process in watched.items() if process}
        samples, _ = run.metric("skewtrap_source_samples_total")
        before, began = {name: cpu_s(process) for name, process in watched.items()}, time.monotonic()
        time.sleep(options.seconds)
        took = time.monotonic() - began
        found = {f"{name} CPU %": 100 * (cpu_s(process) - before[name]) / took for name, process in watched.items()}
        found |= {f"{name} MB": resident_mb(process) for name, process in watched.items()}
        found["CPU % a server"] = found["skewtrap CPU %"] / case.servers
        if peer := found.get("Prometheus CPU %"):
            found["CPU of Prometheus'"] = found["skewtrap CPU %"] / peer
        found["stages of CPU"] = run.metric("skewtrap_stage_cpu_seconds_total")[0] / run.metric("process_cpu_seconds_total")[0]
        found["samples a second"] = (run.metric("skewtrap_source_samples_total")[0] - samples) / took / min(case.servers, MEASURED)
        slowest, largest = 0.0, 0
        for path in ANSWERS:
            begun = time.monotonic()
            size = len(get(run.api + path))
            slowest, largest = max(slowest, time.monotonic() - begun), max(largest, size)
        found |= {"slowest answer ms": 1e3 * slowest, "largest answer kB": largest / 1e3}
        late = p99(run.metric("skewtrap_scrape_lateness_seconds_bucket")[1])
        if late is not None:
            found["p99 of lateness ms"] = 1e3 * late
        if options.strace and case.with_log:
            found["system calls a line"] = run.calls_of_lines()
        found |= {f"{stage} s": value for stage, value in run.metric("skewtrap_stage_cpu_seconds_total")[1].items()} if options.stages else {}
    return found


def p99(rows):
    """The upper bound of the bucket in which the 99th percentile lies."""
    buckets = {}
    for labels, count in rows.items():
        bound = float(re.search(r'le="([^"]+)"', labels)[1])
        buckets[bound] = buckets.get(bound, 0) + count
    total = max(buckets.values(), default=0)
    return next((bound for bound, count in sorted(buckets.items()) if total and count >= 0.99 * total), None)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=pathlib.Path)
    parser.add_argument("--cases", default="log,1,50,200,ranks,1000")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--settle", type=float, default=10, help="seconds before measuring begins")
    parser.add_argument("--every", type=int, help="seconds between scrapes (default: 5 from 1,000 servers on, otherwise 1)")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--binary", default=str(ROOT / "target/dist/skewtrap"))
    parser.add_argument("--without-peers", action="store_true")
    parser.add_argument("--stages", action="store_true", help="the agent's own account of its CPU time")
    parser.add_argument("--strace", action="store_true")
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    options.peer = not options.without_peers and shutil.which("prometheus") is not None
    if not (options.peer or options.without_peers):
        print("SKIPPED: Prometheus is not installed", file=sys.stderr)
    table = {}
    for name in options.cases.split(","):
        case = Case(name, options.every)
        runs = [measured(case, options) for _ in range(options.runs)]
        table[case.words()] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        print(json.dumps({case.words(): {k: round(v, 2) for k, v in table[case.words()].items()}}), file=sys.stderr, flush=True)
    columns = list(dict.fromkeys(key for row in table.values() for key in row))
    print(f"| | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for words, row in table.items():
        print(f"| {words} | {' | '.join(f'{row[key]:.3f}' if key in row else '' for key in columns)} |")


if __name__ == "__main__":
    main()
