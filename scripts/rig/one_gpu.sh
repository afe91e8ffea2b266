#!/bin/bash
# one_gpu.sh BIN [troubles|ab|windows|windows-agent ...] [LIMIT_S]: a server of four DP ranks on one GPU, the agent BIN beside it, a script of phases.
# Ends by itself within LIMIT_S (default 555). Results: $OUT/rec.tar (recording), $OUT/agent.tar.gz, $OUT/traces.tar, $OUT/table.txt.
here=$(cd "$(dirname "$0")" && pwd); RIG=$here; . "$here/prep.sh"; chmod +x "$RIG"/*.sh
export BIN=$(cd "$(dirname "$1")" && pwd)/$(basename "$1"); shift; chmod +x "$BIN" 2>/dev/null
limit=555; scripts=(); for x in "$@"; do case $x in [0-9]*) limit=$x;; *) scripts+=("$x");; esac; done; [ ${#scripts[@]} -gt 0 ] || scripts=(troubles)
end=$(( T0 + limit )); export BASE=http://127.0.0.1:30000 SLOG=$W/dp4.log; R=$W/rec; mkdir -p "$R"
preset=${RIG_PRESET:-dp4}; ranks=${RIG_RANKS:-4}      # RIG_PRESET=cpu-dp2 RIG_RANKS=2 and the script `cpu` need no GPU
"$RIG/run.sh" dp4 $preset 30000
( timeout 60 $PY "$RIG/server.py" versions > "$R/versions.txt" 2>&1 ) &
if ! "$RIG/run.sh" wait dp4 200; then logtail "$W/dp4.log" 60; head -30 "$R/versions.txt"; "$RIG/run.sh" stop dp4; cp "$W/dp4.log" "$OUT/"; save_cache; exit 1; fi
say "server is up"; "$BIN" --version; head -1 "$R/versions.txt"
$PY "$RIG/record.py" --base $BASE --log "$SLOG" --out "$R" --sink 9555 --agent-pid-file "$W/agent/pid" > "$R/record.log" 2>&1 & rec=$!
# every shape is compiled before the first phase
[ $preset = dp4 ] && timeout 30 $PY "$RIG/load.py" '[{"name": "warmup", "seconds": 8, "rate": 80}, {"name": "warmlong", "seconds": 6, "shape": {"all": [1500, 3500, 0.5]}, "rate": 20}]' --base $BASE --out "$W/warm" --ranks 4 | tail -1
curl -s -m 10 $BASE/server_info > "$R/server_info.json"
grp=$(cat "$W/dp4.pid"); n=0
for s in "${scripts[@]}"; do
  left=$(( end - $(date +%s) - 40 )); [ $left -gt 20 ] || { say "no time for $s"; break; }
  case $s in troubles|windows-agent|cpu) "$RIG/agent.sh" start "$BIN" $BASE "$SLOG";; windows) "$RIG/agent.sh" stop; esac
  say "script $s, at most $left s"
  timeout $(( left + 25 )) $PY "$RIG/load.py" "$RIG/scripts/$s.json" --base $BASE --out "$R" --ranks $ranks --group "$grp" --itl --limit $left $([ $n -gt 0 ] && echo --append) 2>&1 | cut -c1-200; n=1
done
sleep 2; curl -s -m 5 http://127.0.0.1:9464/api/v1/status > "$R/status.json"; curl -s -m 5 http://127.0.0.1:9464/metrics > "$R/agent-metrics.txt"
"$RIG/agent.sh" stop; for p in $(grep -o '"pid": [0-9]*' "$R/events.jsonl" | grep -o '[0-9]*' | sort -u); do kill -CONT "$p" 2>/dev/null; done
kill -TERM $rec 2>/dev/null; sleep 1; "$RIG/run.sh" stop dp4
[ -f "$carried/cache.tar.xz" ] || save_cache
gzip -kf "$R/itl.csv"; timeout 20 $PY "$RIG/cost_table.py" "$R" "$W/agent/incidents" > "$OUT/cost.txt" 2>&1; cat "$OUT/cost.txt"; rm -f "$R/itl.csv"
timeout 20 $PY "$RIG/judge_windows.py" "$R" --bin "$BIN" --traces "$W/profiles" --incidents "$W/agent/incidents" > "$OUT/table.txt" 2>&1
(cd "$R" && gzip -f loads.jsonl metrics.txt server.stamped.log 2>/dev/null; tar cf "$OUT/rec.tar" .) & (cd "$W" && tar czf "$OUT/agent.tar.gz" --exclude '*.trace.json.gz' --exclude api-token agent) & (cd "$W" && tar cf "$OUT/traces.tar" --exclude evidence.jsonl profiles $([ -d agent/incidents ] && echo agent/incidents)) & wait
cap() { [ "$(stat -c %s "$1" 2>/dev/null || echo 0)" -gt 16500000 ] && { split -b 16000000 -d "$1" "$1."; rm -f "$1"; }; }; for f in rec.tar agent.tar.gz traces.tar; do cap "$OUT/$f"; done
grep -ac . "$W/agent/agent.log" 2>/dev/null; tail -5 "$W/agent/agent.log" | cut -c1-300; ls -l "$OUT"; cat "$OUT/table.txt"; say "over"
