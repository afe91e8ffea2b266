"""What comparing the ranks of a capture costs, side by side with what people use today, in one run on one input.

    cargo build --profile dist
    python3 scripts/bench/compare.py [--mb 150] [--ranks 8] [--runs 3] [--without-peers] [--big GB]

Makes a capture with a known culprit (traces.py: 8 ranks, 1.2 GB of JSON), then runs one after the other: inflating
it alone (`gzip -dc`, and `pigz -p1 -dc` where that is installed), `skewtrap compare`, Python with orjson (kernel sums only), SGLang's own ProfileMerger (it merges,
and tells nothing), HTA 0.5.0 (loads, and three analyses). `--big GB` also compares one capture of so many GB. Prints a
table: CPU seconds (user and system, children too; the median of the runs), the largest resident memory of any of its
processes, and the CPU seconds as a multiple of skewtrap's. HTA and the merger run once: they take minutes.

The peers are installed with pip into --tools (default: ~/.cache/skewtrap-bench, about 0.6 GB) on the first run.
"""
import argparse
import importlib.util
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import zipfile

import traces

ROOT = pathlib.Path(__file__).resolve().parents[2]
PEERS = ["HolisticTraceAnalysis==0.5.0", "pandas<3", "numpy<2.4", "orjson==3.13.0"]
MERGER = "sglang/srt/utils/profile_merger.py"


def peer_orjson(folder, _tools):
    """Reads every rank whole, sums kernel time by name, and shows the largest excess over the median."""
    import collections
    import gzip
    import re

    import orjson

    sums = collections.defaultdict(dict)
    for path in sorted(folder.glob("[0-9]*-TP-*.json.gz")):
        rank = int(re.search(r"TP-(\d+)", path.name)[1])
        trace = orjson.loads(gzip.open(path).read())
        for event in trace["traceEvents"]:
            if event.get("cat") == "kernel":
                of = sums[event["name"]]
                of[rank] = of.get(rank, 0.0) + event["dur"]
        del trace
    excess = lambda by_rank: max(by_rank.values()) - statistics.median(by_rank.values())
    name = max(sums, key=lambda n: excess(sums[n]))
    print(f"rank {max(sums[name], key=sums[name].get)}: {name[:60]}")


def peer_merger(folder, tools):
    spec = importlib.util.spec_from_file_location("profile_merger", tools / "sglang" / MERGER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    merged = module.ProfileMerger(str(folder), traces.PROFILE).merge_chrome_traces()
    os.remove(merged)
    print("merged")


def peer_hta(folder, _tools):
    import warnings

    warnings.filterwarnings("ignore")
    from hta.trace_analysis import TraceAnalysis

    analysis = TraceAnalysis(trace_dir=str(folder))
    analysis.get_gpu_kernel_breakdown(visualize=False, num_kernels=10)
    print(analysis.get_temporal_breakdown(visualize=False).to_string())
    analysis.get_comm_comp_overlap(visualize=False)


def install(tools):
    """Installs the tools to compare with, by pip, once."""
    python = tools / "venv/bin/python"
    if not (tools / "sglang" / MERGER).exists():
        print("installing the peers with pip ...", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", tools / "venv"], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEERS], check=True)
        wheel = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", tools / "whl", "sglang==0.5.23"]
        subprocess.run([python, "-m", "pip", *wheel], check=True)
        with zipfile.ZipFile(next((tools / "whl").glob("sglang-*.whl"))) as whl:
            whl.extract(MERGER, tools / "sglang")
        shutil.rmtree(tools / "whl")
    return python


def measured(command, runs):
    """Median CPU seconds, largest resident MB, and what it printed last."""
    cpu, resident, said = [], [], ""
    for _ in range(runs):
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = subprocess.Popen(command, stdout=out, stderr=err)
            _, status, used = os.wait4(child.pid, 0)
            out.seek(0)
            err.seek(0)
            said = out.read().decode(errors="replace")
            if os.waitstatus_to_exitcode(status) != 0:
                return None, None, err.read().decode(errors="replace").strip()[-300:]
        cpu.append(used.ru_utime + used.ru_stime)
        resident.append(used.ru_maxrss / 1024)
    return statistics.median(cpu), max(resident), said


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    traces.arguments(parser)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "target/dist/skewtrap")
    parser.add_argument("--tools", type=pathlib.Path, default=pathlib.Path.home() / ".cache/skewtrap-bench")
    parser.add_argument("--folder", type=pathlib.Path, help="keep the capture here, and use the one that is here")
    parser.add_argument("--without-peers", action="store_true")
    parser.add_argument("--big", type=float, metavar="GB", help="also compare a capture of so many GB")
    parser.add_argument("--peer", choices=["orjson", "merger", "hta"], help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.peer:
        return globals()[f"peer_{told.peer}"](told.folder, told.tools)
    if not told.binary.exists():
        sys.exit(f"{told.binary} is not there: cargo build --profile dist")
    with tempfile.TemporaryDirectory() as temp:
        folder = told.folder or pathlib.Path(temp)
        if not list(folder.glob("*.trace.json.gz")):
            print("writing the capture ...", file=sys.stderr)
            traces.write(folder, told)
        side_by_side(folder, told)
    if told.big:
        with tempfile.TemporaryDirectory() as temp:
            folder = pathlib.Path(temp)
            told.mb = told.big * 1000 / told.ranks
            print(f"writing a capture of {told.big:g} GB ...", file=sys.stderr)
            size = traces.write(folder, told)
            cpu, resident, said = measured([told.binary, "compare", folder], 1)
            print(f"\n{size / 1e9:.1f} GB: {cpu:.2f} CPU-s, {resident:.0f} MB resident: {said.splitlines()[0]}")


def side_by_side(folder, told):
    files = sorted(folder.glob("*.trace.json.gz"))
    size = sum(int(subprocess.run(f"gzip -dc '{f}' | wc -c", shell=True, capture_output=True).stdout) for f in files)
    print(f"{len(files)} ranks, {size / 1e6:.0f} MB of JSON, {sum(f.stat().st_size for f in files) / 1e6:.0f} MB gzip")
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    ours = measured([told.binary, "compare", folder], told.runs)
    rows = [("skewtrap compare", told.runs, ours)]
    for inflate in ["gzip -dc", "pigz -p1 -dc"]:
        if shutil.which(inflate.split()[0]):
            command = ["sh", "-c", f"{inflate} '{folder}'/*.trace.json.gz >/dev/null"]
            rows.append((f"{inflate}, inflating alone", told.runs, measured(command, told.runs)))
        else:
            print(f"SKIPPED: {inflate} (it is not installed)", file=sys.stderr)
    if not told.without_peers:
        python = install(told.tools)
        for name, peer, runs in [
            ("Python and orjson: kernel sums", "orjson", told.runs),
            ("SGLang ProfileMerger: merges only", "merger", 1),
            ("HTA 0.5.0: load and 3 analyses", "hta", 1),
        ]:
            command = [python, __file__, "--peer", peer, "--folder", folder, "--tools", told.tools]
            rows.append((name, runs, measured(command, runs)))
    print("| what | runs | CPU-s | resident MB | times skewtrap |\n|---|---|---|---|---|")
    for name, runs, (cpu, resident, said) in rows:
        if cpu is None:
            print(f"| {name} | {runs} | failed: {said} | | |")
        else:
            print(f"| {name} | {runs} | {cpu:.2f} | {resident:,.0f} | {cpu / ours[0]:.1f} |")
    print(f"\nskewtrap says: {ours[2].splitlines()[0]}\n{ours[2].splitlines()[1]}")


if __name__ == "__main__":
    main()
