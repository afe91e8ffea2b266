#!/bin/bash
# A first look at a machine with a GPU (one GPU: 120 to 200 s): unpacks, imports, starts four DP ranks, asks for one answer, keeps the kernel caches.
# With two GPUs also one server of each preset, all at once, so that their kernels are compiled once.
here=$(cd "$(dirname "$0")" && pwd); RIG=$here; . "$here/prep.sh"
limit=${1:-240}; end=$(( T0 + limit ))
( timeout 90 $PY "$RIG/server.py" versions > "$W/versions.txt" 2>&1 ) &
v=$!
gpus=$(nvidia-smi -L 2>/dev/null | wc -l); say "$gpus GPUs"
chmod +x "$RIG"/*.sh; sv=(dp4 moe1)
"$RIG/run.sh" dp4 dp4 30000; "$RIG/run.sh" moe1 moe1 40000
if [ "$gpus" -ge 2 ]; then
  p=31000; for s in tp2 tp2-nccl dpa2 ep2 ep2-hot; do "$RIG/run.sh" $s $s $p; sv+=($s); p=$((p + 1000)); done
fi
wait $v; grep -v Warning "$W/versions.txt" | head -60
for s in "${sv[@]}"; do
  left=$(( end - $(date +%s) )); [ $left -gt 3 ] || left=3
  if "$RIG/run.sh" wait $s $left; then say "$s is up"
    port=$(cat "$W/$s.port")
    curl -s -m 5 "http://127.0.0.1:$port/v1/loads" | head -c 600; echo
    curl -s -m 5 "http://127.0.0.1:$port/metrics" | grep -v '^#' | head -8
    ok=0; for i in 1 2 3 4 5 6 7 8; do curl -s -m 30 -X POST "http://127.0.0.1:$port/generate" -H 'Content-Type: application/json' -d '{"input_ids": [5,6,7,8,9,10], "sampling_params": {"max_new_tokens": 64, "ignore_eos": true, "temperature": 0.7}}' | grep -q output_ids && ok=$((ok+1)); done; say "$s: $ok of 8 requests"
    curl -s -m 10 -X POST "http://127.0.0.1:$port/start_profile" -H 'Content-Type: application/json' -d '{"output_dir": "'"$W/profiles/$s"'", "num_steps": 5, "activities": ["GPU"], "with_stack": false, "record_shapes": false}'
    curl -s -m 30 -X POST "http://127.0.0.1:$port/generate" -H 'Content-Type: application/json' -d '{"input_ids": [5,6,7,8,9,10], "sampling_params": {"max_new_tokens": 64, "ignore_eos": true}}' | head -c 60; echo
    ls -l "$W/profiles/$s" 2>/dev/null
  else logtail "$W/$s.log" 40; fi
done
nvidia-smi --query-compute-apps=pid,used_memory --format=csv,noheader
for s in "${sv[@]}"; do "$RIG/run.sh" stop $s & done; wait
save_cache; cp "$W"/*.log "$OUT"/ 2>/dev/null; (cd "$OUT" && tar czf logs.tar.gz *.log && rm -f *.log); (cd "$W" && tar czf "$OUT/profiles.tar.gz" profiles)
say "probe is over"
