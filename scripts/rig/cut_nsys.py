"""cut_nsys.py FROM.sqlite[.gz] TO.sqlite.gz: an export of nsys without what `skewtrap compare` does not read: the environment and the output of
the profiled program are in it otherwise. Kept: kernels, copies and fills, launches of the host, ranges of steps, names of these and of processes."""
import gzip, os, sqlite3, sys, tempfile
source, target = sys.argv[1:]
with tempfile.TemporaryDirectory() as folder:
    whole, cut = os.path.join(folder, "whole"), os.path.join(folder, "cut")
    open(whole, "wb").write((gzip.open if source.endswith(".gz") else open)(source, "rb").read())
    db = sqlite3.connect(cut); db.execute("ATTACH ? AS w", (whole,))
    has = {r[0] for r in db.execute("SELECT name FROM w.sqlite_master")}
    keep = {"CUPTI_ACTIVITY_KIND_KERNEL": "start, end, deviceId, streamId, correlationId, globalPid, demangledName, shortName, gridX, gridY, gridZ",
            "CUPTI_ACTIVITY_KIND_MEMCPY": "start, end, streamId, correlationId, globalPid", "CUPTI_ACTIVITY_KIND_MEMSET": "start, end, streamId, correlationId, globalPid",
            "TARGET_INFO_SESSION_START_TIME": "utcEpochNs"}
    for t, columns in keep.items():
        if t in has: db.execute(f"CREATE TABLE {t} AS SELECT {columns} FROM w.{t}")
    db.execute("CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME AS SELECT r.start, r.end, r.globalTid, r.correlationId, r.nameId FROM w.CUPTI_ACTIVITY_KIND_RUNTIME r JOIN w.StringIds s ON s.id = r.nameId WHERE s.value LIKE '%Launch%'")
    db.execute("CREATE TABLE PROCESSES AS SELECT globalPid, pid, name FROM w.PROCESSES WHERE globalPid IN (SELECT globalPid FROM w.CUPTI_ACTIVITY_KIND_KERNEL)")
    db.execute("CREATE TABLE NVTX_EVENTS AS SELECT start, end, eventType, text, globalTid, textId FROM w.NVTX_EVENTS WHERE coalesce(text, '') LIKE 'step[%'")
    db.execute("CREATE TABLE StringIds (id INTEGER PRIMARY KEY, value TEXT)")
    db.execute("INSERT INTO StringIds SELECT id, value FROM w.StringIds WHERE id IN (SELECT demangledName FROM CUPTI_ACTIVITY_KIND_KERNEL UNION SELECT shortName FROM CUPTI_ACTIVITY_KIND_KERNEL UNION SELECT nameId FROM CUPTI_ACTIVITY_KIND_RUNTIME)")
    db.commit(); db.execute("DETACH w"); db.execute("VACUUM"); db.close()
    with open(target, "wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as z: z.write(open(cut, "rb").read())
