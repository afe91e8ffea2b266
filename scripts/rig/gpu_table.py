"""gpu_table.py REC...: what nvidia-smi told of each GPU in each phase of a recording (medians of gpu.csv from two seconds on)."""
import datetime, gzip, json, os, statistics, sys


def lines(folder, name):
    f = os.path.join(folder, name)
    return (gzip.open(f + ".gz", "rt") if os.path.exists(f + ".gz") else open(f)).read().splitlines()


for folder in sys.argv[1:]:
    rows, phases, begun = [], [], None
    for line in lines(folder, "gpu.csv"):
        w = [x.strip() for x in line.split(",")]
        at = datetime.datetime.strptime(w[0], "%Y/%m/%d %H:%M:%S.%f").replace(tzinfo=datetime.timezone.utc).timestamp()
        rows.append((at, w[1], float(w[2]), float(w[4]), float(w[5])))      # GPU, SM clock, use, power
    for e in map(json.loads, lines(folder, "events.jsonl")):
        if e["kind"] == "phase": begun = e["t"]
        if e["kind"] == "phase_end" and begun: phases.append((e["name"], begun, e["t"], e["tokens_per_s"])); begun = None
    print(folder)
    for name, a, b, tokens in phases:
        gpus = []
        for gpu in sorted({r[1] for r in rows}):
            seen = [r for r in rows if r[1] == gpu and a + 2 <= r[0] <= b]
            if seen: gpus.append("GPU %s: %4.0f MHz, busy %3.0f %%, %3.0f W" % (gpu, *(statistics.median(r[i] for r in seen) for i in (2, 3, 4))))
        print(f"  {name:<8} {tokens:7.0f} tokens/s  " + "  |  ".join(gpus))
