"""check.py KUBERNETES-VALIDATE RENDERED: what the components have made of the example's own resources: theirs is kept, the
agent is added, every mount has its volume, every reference its ConfigMap."""
import subprocess
import sys
import tempfile

import yaml

VERSIONS = ["1.29", "1.33", "1.37"]


def judge(pod, config, args, server):
    containers = pod.get("initContainers", []) + pod["containers"]
    agent = next(c for c in containers if c["name"] == "skewtrap")
    assert agent["args"] == args, agent["args"]
    assert "readinessProbe" not in agent and "startupProbe" not in agent, "the agent could keep the server from serving"
    assert agent["securityContext"]["readOnlyRootFilesystem"]
    assert pod["containers"][0]["name"] == server, "the server is not the first container any more"
    volumes = {v["name"]: v for v in pod["volumes"]}
    assert "shm" in volumes, "a volume of the user's is gone"
    assert volumes["skewtrap-config"]["configMap"]["name"] == config, "the configuration is not the generated one"
    for container in containers:
        missing = {m["name"] for m in container.get("volumeMounts", [])} - volumes.keys()
        assert not missing, f"{container['name']} mounts {missing}"
    shared = [{m["name"] for m in c.get("volumeMounts", [])} for c in (agent, pod["containers"][0])]
    assert "skewtrap-data" in shared[0] & shared[1], "server and agent share no folder for profiles"


with open(sys.argv[2]) as file:
    found = {d["kind"]: d for d in yaml.safe_load_all(file) if d}
config = found["ConfigMap"]["metadata"]["name"]
watches = ["run", "--config", "/etc/skewtrap/skewtrap.yaml"]
brings = ["run", "--role", "node", "--config", "/etc/skewtrap/node.yaml"]
pod = found["Deployment"]["spec"]["template"]["spec"]
judge(pod, config, watches, "server")
assert [c["name"] for c in pod["initContainers"]] == ["skewtrap", "fetch"], "an init container of the user's is gone"
assert pod["initContainers"][0]["restartPolicy"] == "Always", "the agent is no native sidecar"
groups = found["LeaderWorkerSet"]["spec"]["leaderWorkerTemplate"]
judge(groups["leaderTemplate"]["spec"], config, watches, "server")
judge(groups["workerTemplate"]["spec"], config, brings, "server")
# Kubernetes' own schemas do not have LeaderWorkerSet; its templates are those of pods.
pods = [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": n}, "spec": groups[n + "Template"]["spec"]} for n in ("leader", "worker")]
with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
    yaml.safe_dump_all([found["Deployment"], found["ConfigMap"], *pods], file)
    file.flush()
    for version in VERSIONS:
        subprocess.run([sys.argv[1], "-k", version, "--strict", file.name], check=True, stdout=subprocess.DEVNULL)
print("kubernetes: the components patch a Deployment and a LeaderWorkerSet of the user's and leave what is theirs")
