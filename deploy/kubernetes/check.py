"""check.py KUBERNETES-VALIDATE FILE...: checks the rendered manifests against the schemas of several Kubernetes
versions, and what no schema knows: that the agent is a native sidecar, that nothing of it can keep the
server from serving, that both containers see the same folders as the same user."""
import subprocess
import sys
import tempfile

import yaml

VERSIONS = ["1.29", "1.33", "1.37"]
# Resources of the Prometheus Operator: no schema of Kubernetes' own.
FOREIGN = {"PodMonitor"}


def documents(path):
    with open(path) as file:
        return [d for d in yaml.safe_load_all(file) if d]


def validate(tool, path, found):
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump_all([d for d in found if d["kind"] not in FOREIGN], file)
        file.flush()
        for version in VERSIONS:
            subprocess.run([tool, "-k", version, "--strict", file.name], check=True, stdout=subprocess.DEVNULL)
    print(f"kubernetes: {path.rsplit('/', 1)[-1]}: {len(found)} resources are right for {', '.join(VERSIONS)}")


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
    found = documents(path)
    judge(found)
    validate(sys.argv[1], path, found)
