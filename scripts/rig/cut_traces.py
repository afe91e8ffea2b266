"""cut_traces.py FROM TO: copies the traces below FROM (*.trace.json.gz) to TO, without what `skewtrap compare` does not read.

Kept: kernels, copies and fills with their launch's number and grid, step annotations, names of processes, calls of the host that launch
something (name and time alone), and one CPU operator, which says that CPU activity was on. Names and times stay as the profiler wrote them.
The recordings of tests/data/recordings/two-gpus were made with it.
"""
import glob, gzip, json, os, sys

GPU = ("kernel", "gpu_memcpy", "gpu_memset")
CALLS = ("cuda_runtime", "cuda_driver")


def launches(e): return "Launch" in e["name"] or e["name"].endswith("Async") and "Mem" in e["name"]


def cut(trace):
    out, operators = [], 0
    for e in trace["traceEvents"]:
        cat, ph = e.get("cat"), e.get("ph")
        if cat in GPU and ph == "X":
            keep = {k: e["args"][k] for k in ("stream", "correlation", "grid") if k in e.get("args", {})}
            out.append({**{k: e[k] for k in ("ph", "cat", "name", "pid", "tid", "ts", "dur")}, "args": keep})
        elif cat in CALLS and ph == "X" and launches(e):
            out.append({k: e[k] for k in ("ph", "cat", "name", "tid", "ts", "dur")})
        elif cat in ("user_annotation", "gpu_user_annotation") and e["name"].startswith("step["):
            out.append({k: e[k] for k in ("ph", "cat", "name", "pid", "tid", "ts", "dur")})
        elif cat == "cpu_op" and not operators:
            operators = 1
            out.append({k: e[k] for k in ("ph", "cat", "name", "pid", "tid", "ts", "dur")})
        elif ph == "M" and e["name"] in ("process_name", "process_sort_index"):
            out.append(e)
    kept = {k: trace[k] for k in ("schemaVersion", "baseTimeNanoseconds") if k in trace}
    if "distributedInfo" in trace:
        kept["distributedInfo"] = {k: trace["distributedInfo"][k] for k in ("backend", "rank", "world_size")}
    return {**kept, "traceEvents": out}


source, target = sys.argv[1:]
for f in sorted(glob.glob(source + "/**/*.trace.json.gz", recursive=True)):
    to = os.path.join(target, os.path.relpath(f, source))
    os.makedirs(os.path.dirname(to), exist_ok=True)
    text = json.dumps(cut(json.load(gzip.open(f))), separators=(",", ":"))
    with open(to, "wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as z: z.write(text.encode())
