#!/bin/bash
# two_gpus.sh BIN [LIMIT_S] [PRESET ...]: lockstep groups over two GPUs, or four (tp4 dpa4 ep4-big), by default ep2-hot-big dpa2-big tp2-big
# ep2-big tp2-nccl. All servers start together; the ones whose turn it is not are stopped (SIGSTOP).
# Each: healthy, GPU 1 disturbed, a scheduler starved, windows by the server's API, the agent watching; RIG_AGENT=tp4,dpa2 then once more with
# windows by the agent itself, RIG_AB=tp2 then with and without it in turn (ab-even), RIG_NO_SCRIPT=1 these alone. The preset nsys (or nsys-launch) is tp2-nccl inside of an nsys session, if this machine has one: a window by hand,
# one by the agent; nsys-try says which form of a session answers at all.
# Results: $OUT/rec.tar, $OUT/traces.tar, $OUT/nsys.tar, $OUT/table.txt.
here=$(cd "$(dirname "$0")" && pwd); RIG=$here; . "$here/prep.sh"; chmod +x "$RIG"/*.sh
export BIN=$(cd "$(dirname "$1")" && pwd)/$(basename "$1"); shift; chmod +x "$BIN" 2>/dev/null
limit=555; sets=(); for x in "$@"; do case $x in [0-9]*) limit=$x;; *) sets+=("$x");; esac; done
[ ${#sets[@]} -gt 0 ] || sets=(ep2-hot-big dpa2-big tp2-big ep2-big tp2-nccl)
end=$(( T0 + limit )); mkdir -p "$W/rec"; export SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK=0 OUT_NSYS=$W/nsys-out; mkdir -p "$OUT_NSYS"
nvidia-smi -L; nvidia-smi topo -m 2>/dev/null | head -6; . "$here/nsys_setup.sh"; p=30000; trace="--trace=cuda,nvtx --cuda-graph-trace=node"
for s in "${sets[@]}"; do
  case $s in
  nsys-try) [ -n "$NSYS" ] && { timeout 150 $PY "$RIG/nsys_try.py" "$NSYS" "$W/try" > "$W/rec/nsys-try.txt" 2>&1 & }; continue;;
  nsys) [ -n "$NSYS" ] && RIG_WRAP="$NSYS profile --start-later=true --session-new=rig-nsys --sample=none --cpuctxsw=none $trace --force-overwrite=true -o $OUT_NSYS/healthy" "$RIG/run.sh" nsys tp2-nccl $p --mem-fraction-static 0.9;;
  nsys-launch) [ -n "$NSYS" ] && RIG_WRAP="$NSYS launch --session-new=rig-nsys-launch $trace" "$RIG/run.sh" nsys-launch tp2-nccl $p --mem-fraction-static 0.9;;
  *-big) "$RIG/run.sh" $s $s $p;;
  *) "$RIG/run.sh" $s $s $p --mem-fraction-static 0.9;;
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
for s in "${up[@]}"; do case $s in nsys*) ;; *) kill -STOP -- -"$(cat "$W/$s.pid")";; esac; done   # what nsys talks to must run
own_group() { $PY -c 'import os, sys
for p in filter(str.isdigit, os.listdir("/proc")):
    try: words = open(f"/proc/{p}/cmdline").read().split("\0")
    except OSError: continue
    if "python" in words[0] and "serve" in words and "--port" in words and words[words.index("--port") + 1] == sys.argv[1]: print(os.getpgid(int(p))); break' "$1"; }
load() { timeout $(( left + 10 )) $PY "$RIG/load.py" "$RIG/scripts/$1.json" --base $base --out "$R" --ranks $n --group "${g:-0}" --limit $left "${route[@]}" "${@:2}" 2>&1 | cut -c1-160; }
for s in "${up[@]}"; do
  left=$(( end - $(date +%s) - 45 )); [ $left -gt 25 ] || { say "no time for $s"; continue; }
  [ $s = nsys-launch ] && ls "$OUT_NSYS"/*.nsys-rep > /dev/null 2>&1 && { "$RIG/run.sh" stop $s; continue; }
  n=2; case $s in tp4*|dpa4*|ep4*) n=4;; esac; args=(--watch-only); unset RIG_NSYS
  export g=$(cat "$W/$s.pid"); port=$(cat "$W/$s.port"); base=http://127.0.0.1:$port; R=$W/rec/$s; mkdir -p "$R"; kill -CONT -- -"$g"
  "$RIG/run.sh" wait $s 20 || { logtail "$W/$s.log" 20; continue; }
  export SGLANG_TORCH_PROFILER_DIR=$W/profiles/$s; mkdir -p "$SGLANG_TORCH_PROFILER_DIR"
  case $s in dpa2*) script=dpa; route=();; dpa4*) script=dpa4; route=();; ep2-hot*) script=lockstep-hot; route=(--no-route);;
  nsys*) script=lockstep-nsys; route=(--no-route); args=(); export RIG_NSYS=rig-$s NSYS_SESSION=rig-$s
    g=$(own_group $port);;         # nsys starts the server in a group of its own
  tp4*|ep4*) script=lockstep4; route=(--no-route);; *) script=lockstep; route=(--no-route);; esac
  timeout 20 $PY "$RIG/load.py" '[{"name": "warmup", "seconds": 4, "closed": 48}]' --base $base --out "$W/warm" --ranks $n "${route[@]}" | tail -1
  $PY "$RIG/record.py" --base $base --log "$W/$s.log" --out "$R" --sink 9555 --agent-pid-file "$W/agent/pid" > "$R/record.log" 2>&1 & rec=$!
  rm -rf "$W/agent"; "$RIG/agent.sh" start "$BIN" $base "$W/$s.log" "${args[@]}"
  curl -s -m 5 $base/server_info > "$R/server_info.json"
  [ -n "$RIG_NO_SCRIPT" ] && [ "${s#nsys}" = "$s" ] || load $script
  left=$(( end - $(date +%s) - 45 ))
  case ",$RIG_AGENT," in *,$s,*) [ $left -gt 25 ] && {
    "$RIG/agent.sh" stop; rm -rf "$W/agent/rules" "$W/agent/agent.yaml"; RIG_MAX_STALL=${RIG_AGENT_STALL:-300ms} RIG_MAX_STALL_SLOW_HOST=${RIG_AGENT_STALL_SLOW_HOST:-2s} "$RIG/agent.sh" start "$BIN" $base "$W/$s.log"
    case $s in dpa*) script=dpa-agent;; *) script=lockstep-agent;; esac; load $script --append; };; esac
  left=$(( end - $(date +%s) - 45 ))
  [ "$RIG_AB" = $s ] && [ $left -gt 60 ] && { export R BASE=$base SLOG=$W/$s.log; load ab-even --append; $PY "$RIG/cost_table.py" "$R" none | tee "$R/cost.txt"; }
  [ -d "$W/agent/incidents" ] && cp -r "$W/agent/incidents" "$R/"; cp "$W/agent/agent.yaml" "$R/"
  curl -s -m 5 http://127.0.0.1:9464/api/v1/signals > "$R/signals.json"; "$RIG/agent.sh" stop; cp "$W/agent/agent.log" "$R/"; kill -TERM $rec 2>/dev/null; sleep 0.7
  "$RIG/run.sh" stop $s            # not SIGSTOP: half of a collective left behind would spin on the GPUs of the next server
  say "$s done"
done
for s in "${up[@]}"; do "$RIG/run.sh" stop $s & done; wait
for f in "$OUT_NSYS"/*.nsys-rep "$W"/rec/*/incidents/*/traces/*.nsys-rep; do [ -f "$f" ] && [ ! -f "${f%.nsys-rep}.sqlite" ] && timeout 40 "$NSYS" export --type sqlite -o "${f%.nsys-rep}.sqlite" "$f" 2>&1 | tail -1; done
gzip -f "$OUT_NSYS"/*.sqlite "$W"/rec/*/incidents/*/traces/*.sqlite 2>/dev/null; ls -l "$OUT_NSYS"; [ -n "$(ls "$OUT_NSYS")" ] && tar cf "$OUT/nsys.tar" -C "$OUT_NSYS" .
mkdir -p "$W/save"; cp -r "$W/rec/." "$W/save/"; cp "$W"/*.log "$W/save/"; gzip -f "$W"/save/*/{loads.jsonl,metrics.txt,server.stamped.log} "$W"/save/*.log 2>/dev/null
(cd "$W/save" && tar cf "$OUT/rec.tar" .); (cd "$W" && tar cf "$OUT/traces.tar" profiles)
cap() { [ "$(stat -c %s "$1" 2>/dev/null || echo 0)" -gt 16500000 ] && { split -b 16000000 -d "$1" "$1."; rm -f "$1"; }; }; for f in rec.tar traces.tar nsys.tar; do cap "$OUT/$f"; done
ls -l "$OUT"
for s in "${up[@]}"; do echo "== $s"; timeout 15 $PY "$RIG/judge_windows.py" "$W/rec/$s" --bin "$BIN" --traces "$W/profiles/$s" --incidents "$W/rec/$s/incidents"; done > "$OUT/table.txt" 2>&1
cat "$OUT/table.txt"; say "over"
