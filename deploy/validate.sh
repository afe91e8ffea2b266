#!/usr/bin/env bash
# Checks everything in this folder as far as the machine allows; each check that cannot run prints a
# line that begins with SKIPPED. Fails at the first error.
set -euo pipefail
cd "$(dirname "$0")"
root=$(cd .. && pwd)
venv="$root/target/deploy-venv"
mkdir -p "$root/target"
skipped() { echo "SKIPPED: $1"; }

if [ ! -x "$venv/bin/kubernetes-validate" ]; then
  if ! { python3 -m venv "$venv" && "$venv/bin/pip" install --quiet kubernetes-validate==1.37.0; } >"$root/target/deploy-venv.log" 2>&1; then
    tail -3 "$root/target/deploy-venv.log"
    skipped "the Kubernetes manifests against the schemas (kubernetes-validate cannot be installed)"
    rm -rf "$venv"
  fi
fi
# Helm's own code as a Python package: rendering needs no binary of it.
if [ -x "$venv/bin/python" ] && ! command -v helm >/dev/null && ! "$venv/bin/python" -c 'import helm_python' 2>/dev/null; then
  "$venv/bin/pip" install --quiet helm-python-sdk==0.2.2 >"$root/target/deploy-helm.log" 2>&1 || tail -3 "$root/target/deploy-helm.log"
fi
rendered=$(mktemp -d)
trap 'rm -rf "$rendered"' EXIT
for variant in sidecar nsys; do
  if command -v kubectl >/dev/null && kubectl kustomize --help >/dev/null 2>&1; then
    kubectl kustomize "kubernetes/$variant" >"$rendered/$variant.yaml"
  else
    skipped "rendering kubernetes/$variant with kustomize (no kubectl); its files are checked one by one"
    for file in kubernetes/base/networkpolicy.yaml kubernetes/base/podmonitor.yaml "kubernetes/$variant/deployment.yaml"; do
      cat "$file"
      echo "---"
    done >"$rendered/$variant.yaml"
  fi
done
if [ -x "$venv/bin/kubernetes-validate" ]; then
  "$venv/bin/python" kubernetes/check.py "$venv/bin/kubernetes-validate" "$rendered"/{sidecar,nsys}.yaml
fi

if [ -x "$venv/bin/kubernetes-validate" ]; then
  "$venv/bin/python" helm/check.py "$venv/bin/kubernetes-validate" "$rendered"
elif python3 -c 'import yaml' 2>/dev/null; then
  python3 helm/check.py "" "$rendered"
else
  skipped "the Helm charts (no PyYAML)"
fi
if command -v kubectl >/dev/null && [ -x "$venv/bin/kubernetes-validate" ]; then
  kubectl kustomize kubernetes/components/example >"$rendered/components"
  "$venv/bin/python" kubernetes/components/check.py "$venv/bin/kubernetes-validate" "$rendered/components"
else
  skipped "the kustomize components (no kubectl, or no kubernetes-validate)"
fi
bash -n slurm/server.sbatch
echo "slurm: server.sbatch is a right script"

if command -v promtool >/dev/null; then
  promtool check rules prometheus/alerts.yaml
  (cd prometheus && promtool test rules alerts_test.yaml)
else
  skipped "the alerts on the agent (no promtool)"
fi

if command -v systemd-analyze >/dev/null; then
  # The binary is not installed where this runs; everything else must be right.
  complaints=$(systemd-analyze verify systemd/skewtrap.service 2>&1 | grep -v "skewtrap is not executable" || true)
  [ -z "$complaints" ] || { echo "$complaints"; exit 1; }
  echo "systemd: skewtrap.service is right"
else
  skipped "the systemd unit (no systemd-analyze)"
fi

cp grafana/skewtrap.json "$rendered/before.json"
(cp grafana/make_dashboard.py "$rendered" && cd "$rendered" && python3 make_dashboard.py)
cmp "$rendered/skewtrap.json" grafana/skewtrap.json
echo "grafana: skewtrap.json is what make_dashboard.py writes"

if docker compose version >/dev/null 2>&1; then
  (cd docker && docker compose config --quiet)
  echo "docker: compose.yaml is right"
else
  skipped "docker compose config (no docker compose)"
fi
if docker info >/dev/null 2>&1; then
  (cd "$root" && docker build --check -f deploy/docker/Dockerfile .)
else
  skipped "building the image (no Docker daemon)"
fi

for label in title description version licenses; do
  grep -q "org.opencontainers.image.$label=" docker/Dockerfile || { echo "docker/Dockerfile has no label $label"; exit 1; }
done
echo "docker: the image has its labels"

for script in debian/postinst debian/postrm; do sh -n "$script"; done
# The placeholder is what cargo-deb replaces with the lines for the unit.
for script in debian/postinst debian/postrm; do grep -qx '#DEBHELPER#' "$script"; done
echo "debian: the scripts of the package are right"

# The configurations themselves: as the agent reads them, by tests/it/deploy.rs, and here by a binary that is there.
binary=$(ls -t "$root"/target/{release,debug}/skewtrap 2>/dev/null | head -1 || true)
if [ -n "$binary" ]; then
  # The chart's, as Helm rendered them, where it could.
  charts=$(find "$rendered" -maxdepth 1 -name 'chart-*.yaml')
  for file in docker/skewtrap.yaml examples/{full,dp8,tp8}.yaml kubernetes/{nsys,sidecar}/skewtrap.yaml kubernetes/components/example/{skewtrap,node}.yaml slurm/{skewtrap,node}.yaml systemd/skewtrap.yaml $charts; do
    "$binary" check "$file" >"$rendered/check" 2>&1 || { cat "$rendered/check"; exit 1; }
  done
  echo "every configuration passes \`skewtrap check\`"
else
  skipped "skewtrap check of the configurations (no binary is built)"
fi

if [ -x "$venv/bin/python" ] && "$venv/bin/python" -c 'import yaml' 2>/dev/null; then
  "$venv/bin/python" - "$root" <<'PYTHON'
import pathlib, re, sys, yaml
root = pathlib.Path(sys.argv[1])
for path in (root / ".github/workflows").glob("*.yml"):
    jobs = yaml.safe_load(path.read_text())["jobs"]
    for name, job in jobs.items():
        for need in [job.get("needs", [])] if isinstance(job.get("needs", []), str) else job.get("needs", []):
            assert need in jobs, f"{path.name}: {name} needs {need}"
        for step in job["steps"]:
            for script in re.findall(r"(?<![\w/])((?:scripts|\.ci)/[\w.]+)", step.get("run", "")):
                assert (root / script).is_file(), f"{path.name}: there is no {script}"
    print(f"{path.name}: its jobs and scripts are there")
PYTHON
else
  skipped "the release workflow (no PyYAML)"
fi

# What is added here is checked here: every file is named above, or by tests/it/deploy.rs.
known='^(README.md|validate.sh|debian/post(inst|rm)|docker/(Dockerfile|compose.yaml|skewtrap.yaml)|examples/(full|dp8|tp8).yaml|grafana/(make_dashboard.py|skewtrap.json)|helm/(check.py|(skewtrap|example)/(Chart|values).yaml|skewtrap/values.schema.json|(skewtrap|example)/templates/[a-zA-Z_]+.(yaml|tpl|txt))|kubernetes/(check.py|base/(kustomization|networkpolicy|podmonitor).yaml|(nsys|sidecar)/(deployment|kustomization|skewtrap).yaml|components/(check.py|[a-z-]+/[a-z-]+.yaml))|schemas.py|slurm/(server.sbatch|(skewtrap|node).yaml)|prometheus/alerts(_test)?.yaml|systemd/skewtrap.(service|yaml))$'
unknown=$(git ls-files . | grep -vE "$known" || true)
[ -z "$unknown" ] || { echo "nothing checks these files:"; echo "$unknown"; exit 1; }
