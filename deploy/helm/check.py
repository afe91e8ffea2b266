"""check.py [KUBERNETES-VALIDATE]: renders the charts with Helm (the binary, or the same code as a Python package) and checks
what comes out; refuses what values.schema.json must refuse. Without Helm it says SKIPPED and checks what can be read."""
import importlib.util
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import yaml

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.resolve().parent))
from schemas import documents, validate

STORE = {"store": "s3://traces/skewtrap", "pool": "prod-a"}
NODES = {"nodes": {"enabled": True, "config": STORE}, "sidecar": {"enabled": False}}
# What must be refused, and the value that the refusal must name.
REFUSED = [
    ({"nodes": {"enabled": True}}, "store"),
    ({"nodes": {"enabld": True}}, "enabld"),
    ({"nodes": {"hostPath": "profiles"}}, "hostPath"),
    ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
    ({"serviceMonitor": {"enabled": True}}, "podSelector"),
    ({"sidecar": {"config": {"targets": []}}}, "targets"),
    ({"sidecar": {"dataSize": "much"}}, "dataSize"),
    ({"lease": {"enabled": True, "name": "Prod_A"}}, "name"),
]


def with_binary(chart, values):
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(values, file)
        file.flush()
        command = ["helm", "template", "demo", str(chart), "--namespace", "prod", "-f", file.name]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(done.stderr)
        return done.stdout


def with_package(chart, values):
    import helm_python as helm

    try:
        with helm.Chart.load(str(chart)) as loaded:
            rendered = loaded.render(values, name="demo", namespace="prod")
    except helm.HelmError as error:
        raise ValueError(str(error)) from None
    return "\n---\n".join(text for name, text in sorted(rendered.items()) if name.endswith(".yaml"))


def renderer():
    if shutil.which("helm"):
        return with_binary
    return with_package if importlib.util.find_spec("helm_python") else None


def one(found, kind):
    chosen = [d for d in found if d["kind"] == kind]
    assert len(chosen) == 1, f"{len(chosen)} of {kind}"
    return chosen[0]


def validated(tool, found, what):
    if tool:
        validate(tool, found)
    print(f"helm: {what}: {len(found)} resources are right")


def mounts_exist(pod):
    volumes = {v["name"] for v in pod["volumes"]}
    for container in pod.get("initContainers", []) + pod["containers"]:
        missing = {m["name"] for m in container["volumeMounts"]} - volumes
        assert not missing, f"{container['name']} mounts {missing}, which the pod does not have"


def rendered_checks(render, tool, folder):
    chart = HERE / "skewtrap"
    example = folder / "example"
    shutil.copytree(HERE / "example", example)
    shutil.copytree(chart, example / "charts" / "skewtrap")
    found = documents(render(example, {}))
    pod = one(found, "Deployment")["spec"]["template"]["spec"]
    agent = next(c for c in pod["initContainers"] if c["name"] == "skewtrap")
    assert agent["restartPolicy"] == "Always" and "readinessProbe" not in agent and "startupProbe" not in agent
    assert agent["image"] == "skewtrap:0.2.0"
    mounts_exist(pod)
    config = one(found, "ConfigMap")
    assert {"configMap": {"name": config["metadata"]["name"]}, "name": "skewtrap-config"} in pod["volumes"]
    text = config["data"]["skewtrap.yaml"]
    assert yaml.safe_load(text)["token"] == {"file": "/etc/skewtrap-secret/token"}
    (folder / "chart-sidecar.yaml").write_text(text)
    service, monitor = one(found, "Service"), one(found, "ServiceMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    assert wanted <= service["metadata"]["labels"].items(), "the ServiceMonitor does not select its Service"
    assert service["spec"]["ports"][0]["targetPort"] in [p["name"] for p in agent["ports"]]
    labels = one(found, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    validated(tool, found, "the sidecar in a chart of one's own")

    found = documents(render(chart, NODES))
    daemons = one(found, "DaemonSet")["spec"]["template"]
    mounts_exist(daemons["spec"])
    args = daemons["spec"]["containers"][0]["args"]
    assert args[:3] == ["run", "--role", "node"], args
    folders = [v["hostPath"] for v in daemons["spec"]["volumes"] if "hostPath" in v]
    assert [f["type"] for f in folders] == ["Directory"], "a folder that Kubernetes makes is root's alone"
    assert daemons["spec"]["automountServiceAccountToken"] is False, "the agent of a node asks Kubernetes nothing"
    assert not [d for d in found if d["kind"] in ("Role", "ClusterRole", "RoleBinding")]
    (folder / "chart-node.yaml").write_text(one(found, "ConfigMap")["data"]["skewtrap.yaml"])
    validated(tool, found, "an agent on every node")
    assert documents(render(chart, {"sidecar": {"enabled": False}})) == []

    found = documents(render(chart, {"discovery": {"enabled": True, "serviceAccount": "chat"}, "sidecar": {"enabled": False}}))
    role, binding = one(found, "Role"), one(found, "RoleBinding")
    assert role["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}], role["rules"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "chat", "namespace": "prod"}], binding["subjects"]
    validated(tool, found, "the role that lists pods")

    lease = {"enabled": True, "name": "skewtrap-prod-a", "serviceAccount": "chat"}
    found = documents(render(chart, {"lease": lease, "sidecar": {"enabled": False}}))
    role, binding = one(found, "Role"), one(found, "RoleBinding")
    of_leases = {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"]}
    by_name = {"resourceNames": ["skewtrap-prod-a"], "verbs": ["get", "update"]}
    assert role["rules"] == [of_leases | {"verbs": ["create"]}, of_leases | by_name], role["rules"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "chat", "namespace": "prod"}], binding["subjects"]
    validated(tool, found, "the role that keeps the lease of a pool")

    for values, named in REFUSED:
        try:
            render(chart, values)
        except ValueError as error:
            assert named in str(error), f"{values}: the refusal does not name {named}: {error}"
        else:
            raise AssertionError(f"{values} was not refused")
    print(f"helm: values.schema.json refuses {len(REFUSED)} mistakes by their names")


def structural_checks():
    schema = json.loads((HERE / "skewtrap/values.schema.json").read_text())
    values = yaml.safe_load((HERE / "skewtrap/values.yaml").read_text())
    used = set()
    for path in (HERE / "skewtrap/templates").iterdir():
        text = path.read_text()
        used |= {tuple(u.split(".")) for u in re.findall(r"\.Values\.([A-Za-z.]+)", text)}
        for name in re.findall(r'include "([^"]+)"', re.sub(r"/\*.*?\*/", "", text, flags=re.S)):
            assert any(f'define "{name}"' in p.read_text() for p in (HERE / "skewtrap/templates").glob("*.tpl")), name
    for path in used:
        at, known = values, schema
        for key in path:
            assert key in at, f".Values.{'.'.join(path)} has no default"
            assert key in known["properties"], f".Values.{'.'.join(path)} is not in the schema"
            at, known = at[key], known["properties"][key]
    print(f"helm: every one of the {len(used)} values that templates use has a default and a schema")


tool = sys.argv[1] if len(sys.argv) > 1 and sys.argv[1] else None
folder = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else pathlib.Path(tempfile.mkdtemp())
structural_checks()
render = renderer()
if render:
    rendered_checks(render, tool, folder)
else:
    print("SKIPPED: rendering the Helm charts (neither helm nor the Python package helm-python-sdk)")
