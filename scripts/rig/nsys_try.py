"""nsys_try.py NSYS OUT: which form of a session answers on this machine. A program of two processes (a GPU each, where there are two) runs
inside of a session of each form; one window each, with its times. Nothing of SGLang: a minute at most."""
import os, subprocess, sys, time
CHILD = """
import multiprocessing as mp, time, torch
def work(d):
    torch.cuda.set_device(d % torch.cuda.device_count()); x = torch.randn(2048, 2048, device="cuda"); end = time.time() + 60
    while time.time() < end: torch.mm(x, x); torch.cuda.synchronize()
if __name__ == "__main__":
    mp.set_start_method("spawn"); ps = [mp.Process(target=work, args=(d,)) for d in range(2)]; [p.start() for p in ps]; [p.join() for p in ps]
"""
nsys, out = sys.argv[1:]; os.makedirs(out, exist_ok=True); child = os.path.join(out, "child.py"); open(child, "w").write(CHILD)
none = ["--sample=none", "--cpuctxsw=none"]; trace = ["--trace=cuda,nvtx", "--cuda-graph-trace=node"]
FORMS = {"profile-none": (["profile", "--start-later=true", *none], none), "launch-none": (["launch"], none),
         "profile-start-none": (["profile", "--start-later=true"], none), "profile-defaults": (["profile", "--start-later=true"], [])}
for name, (wrap, start) in FORMS.items():
    rep = ["--force-overwrite=true", "-o", f"{out}/{name}"]
    p = subprocess.Popen([nsys, wrap[0], f"--session-new=try-{name}", *wrap[1:], *trace, *(rep if wrap[0] == "profile" else []), sys.executable, child],
                         stdout=open(f"{out}/{name}.log", "w"), stderr=subprocess.STDOUT, start_new_session=True)
    time.sleep(9); said = []
    for what in (["start", f"--session=try-{name}", *start, *rep], ["stop", f"--session=try-{name}"]):
        b = time.time()
        try: r = subprocess.run([nsys, *what], capture_output=True, text=True, timeout=35); text = f"rc {r.returncode} {(r.stderr + r.stdout).split('Generating')[-1].strip()[-120:]!r}"
        except subprocess.TimeoutExpired: text = "no answer"
        said.append(f"{what[0]} {time.time() - b:.2f} s {text}"); time.sleep(0.5)
    print(name, "|", "; ".join(said), "|", [f for f in os.listdir(out) if f.startswith(name) and not f.endswith("log")], flush=True)
    try: os.killpg(p.pid, 15)
    except OSError: pass
    subprocess.run([nsys, "shutdown", f"--session=try-{name}", "--kill=sigkill"], capture_output=True, timeout=20)
