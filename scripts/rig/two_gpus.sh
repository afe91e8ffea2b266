#!/bin/bash
# two_gpus.sh BIN [LIMIT_S] [PRESET ...]: lockstep groups over two GPUs: tp2-nccl, dpa2, ep2, tp2 (custom all-reduce), ep2-hot. All servers
# start together; the ones whose turn it is not are stopped (SIGSTOP). Each: healthy, GPU 1 disturbed, scheduler 1 starved, windows by the
# server's API, the agent watching. Results: $OUT/rec.tar, $OUT/traces.tar, $OUT/table.txt.
here=$(cd "$(dirname "$0")" && pwd); RIG=$here; . "$here/prep.sh"; chmod +x "$RIG"/*.sh
export BIN=$(cd "$(dirname "$1")" && pwd)/$(basename "$1"); shift; chmod +x "$BIN" 2>/dev/null
limit=555; sets=(); for x in "$@"; do case $x in [0-9]*) limit=$x;; *) sets+=("$x");; esac; done; [ ${#sets[@]} -gt 0 ] || sets=(tp2-nccl dpa2 ep2 tp2 ep2-hot)
end=$(( T0 + limit )); mkdir -p "$W/rec"; export SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK=0
nvidia-smi -L; nvidia-smi topo -m 2>/dev/null | head -4; p=30000; for s in "${sets[@]}"; do "$RIG/run.sh" $s $s $p; p=$((p + 1000)); done
( timeout 60 $PY "$RIG/server.py" versions > "$W/rec/versions.txt" 2>&1 ) &
up=(); until=$(( T0 + 230 ))
for s in "${sets[@]}"; do
  left=$(( until - $(date +%s) )); [ $left -gt 5 ] || left=5
  if "$RIG/run.sh" wait $s $left; then up+=($s); say "$s is up"; else logtail "$W/$s.log" 40; "$RIG/run.sh" stop $s; fi
done
case " ${up[*]} " in *" ep2-hot "*) up=(ep2-hot $(printf "%s\n" "${up[@]}" | grep -vx ep2-hot));; esac   # the shortest first
for s in "${up[@]}"; do kill -STOP -- -"$(cat "$W/$s.pid")"; done
todo=${#up[@]}
for s in "${up[@]}"; do
  left=$(( (end - $(date +%s) - 35) / todo )); todo=$(( todo - 1 )); [ $left -gt 25 ] || { say "no time for $s"; continue; }
  g=$(cat "$W/$s.pid"); port=$(cat "$W/$s.port"); base=http://127.0.0.1:$port; R=$W/rec/$s; mkdir -p "$R"; kill -CONT -- -"$g"
  "$RIG/run.sh" wait $s 20 || { logtail "$W/$s.log" 20; continue; }
  export SGLANG_TORCH_PROFILER_DIR=$W/profiles/$s; mkdir -p "$SGLANG_TORCH_PROFILER_DIR"
  case $s in dpa2) script=dpa; route=();; ep2-hot) script=lockstep-healthy; route=(--no-route);; *) script=lockstep; route=(--no-route);; esac
  timeout 20 $PY "$RIG/load.py" '[{"name": "warmup", "seconds": 5, "closed": 48}]' --base $base --out "$W/warm" --ranks 2 "${route[@]}" | tail -1
  $PY "$RIG/record.py" --base $base --log "$W/$s.log" --out "$R" --sink 9555 --agent-pid-file "$W/agent/pid" > "$R/record.log" 2>&1 & rec=$!
  rm -rf "$W/agent"; "$RIG/agent.sh" start "$BIN" $base "$W/$s.log" --watch-only
  curl -s -m 5 $base/server_info > "$R/server_info.json"
  timeout $(( left + 15 )) $PY "$RIG/load.py" "$RIG/scripts/$script.json" --base $base --out "$R" --ranks 2 --group "$g" --limit $(( left - 8 )) "${route[@]}" 2>&1 | cut -c1-160
  curl -s -m 5 http://127.0.0.1:9464/api/v1/signals > "$R/signals.json"; "$RIG/agent.sh" stop; cp "$W/agent/agent.log" "$R/"; kill -TERM $rec 2>/dev/null; sleep 0.7; kill -STOP -- -"$g"
  say "$s done"
done
for s in "${up[@]}"; do "$RIG/run.sh" stop $s & done; wait
[ -f "$carried/cache.tar.xz" ] || save_cache
for s in "${up[@]}"; do echo "== $s"; timeout 15 $PY "$RIG/judge_windows.py" "$W/rec/$s" --bin "$BIN" --traces "$W/profiles/$s"; done > "$OUT/table.txt" 2>&1
cp "$W"/*.log "$W/rec/"; gzip -f "$W"/rec/*/{loads.jsonl,metrics.txt,server.stamped.log} "$W"/rec/*.log 2>/dev/null; (cd "$W/rec" && tar cf "$OUT/rec.tar" .); (cd "$W" && tar cf "$OUT/traces.tar" profiles)
cap() { [ "$(stat -c %s "$1" 2>/dev/null || echo 0)" -gt 16500000 ] && { split -b 16000000 -d "$1" "$1."; rm -f "$1"; }; }; for f in rec.tar traces.tar; do cap "$OUT/$f"; done
ls -l "$OUT"; cat "$OUT/table.txt"; say "over"
