"""check.py KUBERNETES-VALIDATE FILE...: checks the rendered manifests against the schemas of several Kubernetes
versions, and what no schema knows: that the agent is a native sidecar, that nothing of it can keep the
server from serving, that both containers see the same folders as the same user."""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from schemas import VERSIONS, documents, validate


def judge(found):
    deployment = next(d for d in found if d["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    agent = next(c for c in pod["initContainers"] if c["name"] == "skewtrap")
    server = next(c for c in pod["containers"] if c["name"] == "sglang")
    assert agent["restartPolicy"] == "Always", "the agent is no native sidecar"
    assert "readinessProbe" not in agent and "startupProbe" not in agent, "the agent could keep the server from serving"
    assert agent["securityContext"]["readOnlyRootFilesystem"], "the agent could write anywhere"
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"]
    for container in (agent, server):
        assert "runAsUser" not in container.get("securityContext", {}), "server and agent run as different users"
    volume = {m["name"] for m in agent["volumeMounts"]} & {m["name"] for m in server["volumeMounts"]}
    assert "data" in volume, "server and agent share no folder for profiles"
    writable = [m["name"] for m in agent["volumeMounts"] if not m.get("readOnly")]
    assert writable == ["data"], f"the agent may write {writable}"
    monitor = next(d for d in found if d["kind"] == "PodMonitor")
    ports = [p["name"] for p in agent["ports"]]
    assert all(e["port"] in ports for e in monitor["spec"]["podMetricsEndpoints"]), "the PodMonitor names no port of the agent"
    if agent["image"].startswith("skewtrap"):
        return
    assert pod["shareProcessNamespace"] and agent["image"] == server["image"], "nsys needs the server's image and processes"
    tmp = lambda c: next(e["value"] for e in c["env"] if e["name"] == "TMPDIR")
    assert tmp(agent) == tmp(server), "nsys finds its session in TMPDIR"


for path in sys.argv[2:]:
    found = documents(pathlib.Path(path).read_text())
    judge(found)
    validate(sys.argv[1], found)
    print(f"kubernetes: {pathlib.Path(path).name}: {len(found)} resources are right for {', '.join(VERSIONS)}")
