"""The manifests of a stream of YAML, and whether they are right for the schemas of several Kubernetes versions."""
import subprocess
import tempfile

import yaml

VERSIONS = ["1.29", "1.33", "1.37"]
# Resources of the Prometheus Operator: no schema of Kubernetes' own.
FOREIGN = {"PodMonitor", "ServiceMonitor"}


def documents(text):
    return [d for d in yaml.safe_load_all(text) if d]


def validate(tool, found):
    """`tool` is kubernetes-validate; fails at the first resource that is wrong."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump_all([d for d in found if d["kind"] not in FOREIGN], file)
        file.flush()
        for version in VERSIONS:
            subprocess.run([tool, "-k", version, "--strict", file.name], check=True, stdout=subprocess.DEVNULL)
