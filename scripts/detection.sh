#!/usr/bin/env bash
# Rebuilds the table and the picture of docs/departure.md: labelled logs, the shipped rule through the
# whole core, the textbook detectors beside it.
#
#   scripts/detection.sh SIMLOAD.PY [DIR] [PYTHON]
#
# SIMLOAD.PY is the simulator, DIR keeps its logs (1.5 GB; those that are there are not made again), and
# PYTHON has numpy. Seeds 700 to 723 are for judging, none was tuned on; normal load is seeds 13000 to 13024.
# BASELINES=1 also prints the rows of the simulator's own detectors, which needs ruptures, too.
set -euo pipefail
simload=$(realpath "${1:?the path of simload.py}")
dir=$(realpath -m "${2:-target/detection}")
python=${3:-python3}
export OPENBLAS_NUM_THREADS=1 PYTHONPATH="$(dirname "$simload"):${PYTHONPATH:-}"

normal() { # DIR LOAD ROUTER: 25 x 50 minutes without any onset
  "$python" - "$@" <<'PY'
import json, os, sys, simload
out, load, router = sys.argv[1], int(sys.argv[2]), sys.argv[3]
os.makedirs(out, exist_ok=True)
labels = []
for seed in range(13000, 13025):
    name = f"normal_{router}_{load}_{seed}.log"
    _, label = simload.sim("normal", seed, load, 3000, f"{out}/{name}", router)
    labels.append(dict(label, file=name, router=router))
json.dump(labels, open(f"{out}/labels_{router}_{load}.json", "w"))
PY
}

for configuration in "24 rr" "8 rr" "24 random" "8 random"; do
  read -r load router <<<"$configuration"
  runs=$dir/${router}_$load
  [ -e "$runs/labels_${router}_$load.json" ] || "$python" "$simload" gen "$runs" 24 "$load" "$router" 480 700
  runs=$dir/normal_${router}_$load
  [ -e "$runs/labels_${router}_$load.json" ] || normal "$runs" "$load" "$router"
done
cargo run --release --quiet --features detect_eval --example detect_eval -- "$dir"/*/ --csv "$dir/frontier.csv" --svg docs/detection.svg
if [ -n "${BASELINES:-}" ]; then "$python" "$simload" eval 12 4 100; fi
