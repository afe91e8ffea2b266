"""cut_traces.py FROM TO: copies the traces below FROM (*.trace.json.gz) to TO, without what `skewtrap compare` does not read.

Kept: kernels, copies and fills with their launch's number and grid, step annotations, names of processes, when the host called something
that launches, and one CPU operator, which says that CPU activity was on. Names, starts and durations of rows stay as the profiler wrote them;
launches are numbered anew, and calls of the host stand behind the rows: both compress better. What was cut can be cut again.
The recordings of tests/data/recordings/{one-gpu,two-gpus,four-gpus} were made with it.
"""
import glob, gzip, json, os, sys

GPU = ("kernel", "gpu_memcpy", "gpu_memset")
CALLS = ("cuda_runtime", "cuda_driver")


def launches(e): return "Launch" in e["name"] or e["name"].endswith("Async") and "Mem" in e["name"]


def cut(trace):
    out, calls, operators, numbers = [], [], 0, {}
    for e in trace["traceEvents"]:
        cat, ph = e.get("cat"), e.get("ph")
        keep = lambda *keys: {k: e[k] for k in keys if k in e}
        if cat in GPU and ph == "X":
            row, args = keep("ph", "cat", "name", "tid", "ts", "dur"), {}
            if "correlation" in e.get("args", {}): args["correlation"] = numbers.setdefault(e["args"]["correlation"], len(numbers))
            if "grid" in e.get("args", {}): args["grid"] = e["args"]["grid"]
            out.append({**row, "args": args} if args else row)
        elif cat in CALLS and ph == "X" and launches(e):
            calls.append({**keep("ph", "cat", "name", "tid", "ts"), "dur": 0})
        elif cat in ("user_annotation", "gpu_user_annotation") and e["name"].startswith("step["):
            out.append(keep("ph", "cat", "name", "pid", "tid", "ts", "dur"))
        elif cat == "cpu_op" and not operators:
            operators = 1
            out.append(keep("ph", "cat", "name", "pid", "tid", "ts", "dur"))
        elif ph == "M" and e["name"] in ("process_name", "process_sort_index"):
            out.append(e)
    kept = {k: trace[k] for k in ("schemaVersion", "baseTimeNanoseconds") if k in trace}
    if "distributedInfo" in trace:
        kept["distributedInfo"] = {k: trace["distributedInfo"][k] for k in ("backend", "rank", "world_size")}
    return {**kept, "traceEvents": out + calls}


source, target = sys.argv[1:]
for f in sorted(glob.glob(source + "/**/*.trace.json.gz", recursive=True)):
    to = os.path.join(target, os.path.relpath(f, source))
    os.makedirs(os.path.dirname(to), exist_ok=True)
    text = json.dumps(cut(json.load(gzip.open(f))), separators=(",", ":"))
    with open(to, "wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as z: z.write(text.encode())
