#!/bin/bash
# two_gpus.sh BIN [LIMIT_S] [PRESET ...]: lockstep groups over two GPUs, by default ep2-hot-big dpa2-big tp2-big ep2-big tp2-nccl nsys (a
# tp2-nccl inside of an nsys session, if this machine has one). All servers start together; the ones whose turn it is not are stopped (SIGSTOP).
# Each: healthy, GPU 1 disturbed, scheduler 1 starved, windows by the server's API, the agent watching; dpa2 then once more with windows by
# the agent itself. Results: $OUT/rec.tar, $OUT/traces.tar, $OUT/nsys.tar, $OUT/table.txt.
here=$(cd "$(dirname "$0")" && pwd); RIG=$here; . "$here/prep.sh"; chmod +x "$RIG"/*.sh
export BIN=$(cd "$(dirname "$1")" && pwd)/$(basename "$1"); shift; chmod +x "$BIN" 2>/dev/null
limit=555; sets=(); for x in "$@"; do case $x in [0-9]*) limit=$x;; *) sets+=("$x");; esac; done
[ ${#sets[@]} -gt 0 ] || sets=(ep2-hot-big dpa2-big tp2-big ep2-big tp2-nccl nsys)
end=$(( T0 + limit )); mkdir -p "$W/rec"; export SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK=0 OUT_NSYS=$W/nsys-out; mkdir -p "$OUT_NSYS"
nvidia-smi -L; nvidia-smi topo -m 2>/dev/null | head -4; . "$here/nsys_setup.sh"; p=30000
for s in "${sets[@]}"; do
  case $s in
  nsys) [ -n "$NSYS" ] && RIG_WRAP="$NSYS profile --start-later=true --session-new=rig --trace=cuda,nvtx --cuda-graph-trace=node --force-overwrite=true -o $OUT_NSYS/healthy" "$RIG/run.sh" nsys tp2-nccl $p;;
  *) "$RIG/run.sh" $s $s $p;;
  esac; p=$((p + 1000))
done
( timeout 60 $PY "$RIG/server.py" versions > "$W/rec/versions.txt" 2>&1 ) &
up=(); until=$(( T0 + 170 ))
for s in "${sets[@]}"; do
  [ -f "$W/$s.pid" ] || continue
  left=$(( until - $(date +%s) )); [ $left -gt 5 ] || left=5
  if "$RIG/run.sh" wait $s $left; then up+=($s); say "$s is up"; else logtail "$W/$s.log" 40; "$RIG/run.sh" stop $s; fi
done
nvidia-smi --query-gpu=index,memory.used --format=csv,noheader
# an nsys session that was stopped and continued did not answer within its 30 s
for s in "${up[@]}"; do [ $s = nsys ] || kill -STOP -- -"$(cat "$W/$s.pid")"; done
load() { timeout $(( left + 10 )) $PY "$RIG/load.py" "$RIG/scripts/$1.json" --base $base --out "$R" --ranks 2 --group "$g" --limit $left "${route[@]}" "${@:2}" 2>&1 | cut -c1-160; }
for s in "${up[@]}"; do
  left=$(( end - $(date +%s) - 45 )); [ $left -gt 25 ] || { say "no time for $s"; continue; }
  export g=$(cat "$W/$s.pid"); port=$(cat "$W/$s.port"); base=http://127.0.0.1:$port; R=$W/rec/$s; mkdir -p "$R"; kill -CONT -- -"$g"
  "$RIG/run.sh" wait $s 20 || { logtail "$W/$s.log" 20; continue; }
  export SGLANG_TORCH_PROFILER_DIR=$W/profiles/$s; mkdir -p "$SGLANG_TORCH_PROFILER_DIR"
  case $s in dpa2*) script=dpa; route=();; ep2-hot*) script=lockstep-hot; route=(--no-route);; nsys) script=lockstep-nsys; route=(--no-route);; *) script=lockstep; route=(--no-route);; esac
  timeout 20 $PY "$RIG/load.py" '[{"name": "warmup", "seconds": 4, "closed": 48}]' --base $base --out "$W/warm" --ranks 2 "${route[@]}" | tail -1
  $PY "$RIG/record.py" --base $base --log "$W/$s.log" --out "$R" --sink 9555 --agent-pid-file "$W/agent/pid" > "$R/record.log" 2>&1 & rec=$!
  rm -rf "$W/agent"; "$RIG/agent.sh" start "$BIN" $base "$W/$s.log" --watch-only
  curl -s -m 5 $base/server_info > "$R/server_info.json"
  [ $s = nsys ] && g=0            # nsys starts the server in a group of its own; no other server runs by then
  load $script
  left=$(( end - $(date +%s) - 45 ))
  case $s in dpa2*) [ $left -gt 25 ] && { "$RIG/agent.sh" stop; "$RIG/agent.sh" start "$BIN" $base "$W/$s.log"; load dpa-agent --append; cp -r "$W/agent/incidents" "$R/"; };; esac
  curl -s -m 5 http://127.0.0.1:9464/api/v1/signals > "$R/signals.json"; "$RIG/agent.sh" stop; cp "$W/agent/agent.log" "$R/"; kill -TERM $rec 2>/dev/null; sleep 0.7
  "$RIG/run.sh" stop $s            # not SIGSTOP: half of a collective left behind would spin on the GPUs of the next server
  say "$s done"
done
for s in "${up[@]}"; do "$RIG/run.sh" stop $s & done; wait
for f in "$OUT_NSYS"/*.nsys-rep; do [ -f "$f" ] && timeout 40 "$NSYS" export --type sqlite -o "${f%.nsys-rep}.sqlite" "$f" 2>&1 | tail -1; done
gzip -f "$OUT_NSYS"/*.sqlite 2>/dev/null; ls -l "$OUT_NSYS"; [ -n "$(ls "$OUT_NSYS")" ] && tar cf "$OUT/nsys.tar" -C "$OUT_NSYS" .
mkdir -p "$W/save"; cp -r "$W/rec/." "$W/save/"; cp "$W"/*.log "$W/save/"; gzip -f "$W"/save/*/{loads.jsonl,metrics.txt,server.stamped.log} "$W"/save/*.log 2>/dev/null
(cd "$W/save" && tar cf "$OUT/rec.tar" .); (cd "$W" && tar cf "$OUT/traces.tar" profiles)
cap() { [ "$(stat -c %s "$1" 2>/dev/null || echo 0)" -gt 16500000 ] && { split -b 16000000 -d "$1" "$1."; rm -f "$1"; }; }; for f in rec.tar traces.tar nsys.tar; do cap "$OUT/$f"; done
ls -l "$OUT"
for s in "${up[@]}"; do echo "== $s"; timeout 15 $PY "$RIG/judge_windows.py" "$W/rec/$s" --bin "$BIN" --traces "$W/profiles/$s" --incidents "$W/rec/$s/incidents"; done > "$OUT/table.txt" 2>&1
cat "$OUT/table.txt"; say "over"
