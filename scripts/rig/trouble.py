"""What is done to one scheduler of the rig's server, which is found by its title: stopped in turns, crowded, throttled. Each returns what ends it."""
import asyncio, os, re, signal, subprocess, sys


def schedulers(group=0):
    """pid by (dp, tp) of the server's scheduler processes, by their titles (sglang::scheduler_DP0_TP0...); group: only of that process group."""
    out = {}
    for p in os.listdir("/proc"):
        if not p.isdigit(): continue
        try:
            cmd = open(f"/proc/{p}/cmdline").read().replace("\0", " ")
            if "sglang::scheduler" not in cmd: continue
            if group and os.getpgid(int(p)) != group: continue
        except OSError: continue
        part = lambda n: int((re.search(n + r"(\d+)", cmd) or [0, 0])[1])
        out[(part("DP"), part("TP"))] = int(p)
    return out


def pid_of(rank, group=0):
    s = schedulers(group)
    for key in ((rank, 0), (0, rank), (rank, rank)):
        if key in s: return s[key]
    return None


def threads(pid): return [int(t) for t in os.listdir(f"/proc/{pid}/task")]


async def duty(pid, on, off):
    try:
        while True:
            os.kill(pid, signal.SIGSTOP); await asyncio.sleep(off); os.kill(pid, signal.SIGCONT); await asyncio.sleep(on)
    finally:
        try: os.kill(pid, signal.SIGCONT)
        except OSError: pass


def pin(pid, cores):
    for i in threads(pid):
        try: os.sched_setaffinity(i, cores)
        except OSError: pass


def crowd(pid, core, n):
    """That scheduler and n busy loops on one core."""
    was = os.sched_getaffinity(pid)
    loops = [subprocess.Popen([sys.executable, "-c", f"import os\nos.sched_setaffinity(0, {{{core}}})\nwhile True: pass"]) for _ in range(n)]
    pin(pid, {core})
    def over():
        for q in loops: q.kill()
        for q in loops: q.wait()
        pin(pid, was)
    return over


def cannot_throttle():
    """Why a process cannot be throttled here; None if it can: it is tried with one that sleeps."""
    q = subprocess.Popen(["sleep", "60"])
    try: throttle(q.pid, 0.5)()
    except (OSError, StopIteration) as e: return f"no cgroup whose CPU time can be limited: {e!r}"
    finally: q.kill(); q.wait()


def throttle(pid, share):
    """A cgroup of its own that may use this share of one CPU in each tenth of a second. Needs root; version 2 or 1."""
    second = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
    root = "/sys/fs/cgroup" if second else "/sys/fs/cgroup/cpu"
    if second: write(root + "/cgroup.subtree_control", "+cpu")
    lines = [line.strip().split(":", 2) for line in open(f"/proc/{pid}/cgroup")]
    was = next(path for _, controllers, path in lines if (controllers == "" if second else "cpu" in controllers.split(",")))
    folder = f"{root}/skewtrap-rig-{pid}"; os.makedirs(folder, exist_ok=True)
    quota = int(share * 100000)
    if second: write(folder + "/cpu.max", f"{quota} 100000")
    else: write(folder + "/cpu.cfs_period_us", "100000"); write(folder + "/cpu.cfs_quota_us", str(quota))
    write(folder + "/cgroup.procs", str(pid))
    def over():
        write(root + was.rstrip("/") + "/cgroup.procs", str(pid))
        os.rmdir(folder)
    return over


def write(path, text):
    with open(path, "w") as f: f.write(text)
