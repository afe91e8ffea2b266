#!/bin/bash
# cpu_causes.sh BIN [more arguments of cpu_causes.py]: a real SGLang of two DP ranks without a GPU, the agent BIN beside it with the shipped rules, no
# windows, and causes injected one after another (cpu_causes.py says which, and what is right). Needs PY (setup_cpu.sh prints it), and root for `throttled`.
# Results: $OUT/incidents.jsonl (one trouble a line), events.jsonl (the truth), table.txt, the recording of the server, and what the agent told.
here=$(cd "$(dirname "$0")" && pwd); RIG=$here; export RIG_CPU_MODEL=${RIG_CPU_MODEL:-wide} SGLANG_CPU_OMP_THREADS_BIND=${SGLANG_CPU_OMP_THREADS_BIND:-"0|1"}; . "$here/prep.sh"
BIN=$(cd "$(dirname "$1")" && pwd)/$(basename "$1"); shift; R=$OUT; A=$W/agent; port=${RIG_PORT:-30000}; sink=${RIG_SINK:-9555}; listen=127.0.0.1:${RIG_LISTEN:-9464}
[ -f "$W/causes.pid" ] && kill -0 "$(cat "$W/causes.pid")" 2>/dev/null || "$RIG/run.sh" causes ${RIG_PRESET:-cpu-dp2} $port --max-total-tokens 100000
"$RIG/run.sh" wait causes 240 || { logtail "$W/causes.log" 60; "$RIG/run.sh" stop causes; exit 1; }
rm -rf "$A"; mkdir -p "$A"; cat > "$A/agent.yaml" <<Y
targets: [{ name: rig, url: "http://127.0.0.1:$port", engine: sglang, logs: ["$W/causes.log"] }]
watch_only: true
budget: { false_alarms: ${RIG_FALSE_ALARMS:-1 per day} }
receivers: [{ name: sink, webhook: { url: "http://127.0.0.1:$sink/" } }]
state_dir: $A/state
incident_dir: $A/incidents
listen: $listen
Y
trap 'kill -TERM $agent $rec 2>/dev/null; [ -n "$RIG_KEEP_SERVER" ] || "$RIG/run.sh" stop causes' EXIT
"$BIN" run --config "$A/agent.yaml" > "$A/agent.log" 2>&1 & agent=$!; echo $agent > "$A/pid"
$PY "$RIG/record.py" --base http://127.0.0.1:$port --log "$W/causes.log" --out "$R" --sink $sink --agent-pid-file "$A/pid" --loads-every 1 > "$R/record.log" 2>&1 & rec=$!
"$BIN" --version; nproc
$PY "$RIG/cpu_causes.py" --base http://127.0.0.1:$port --agent http://$listen --out "$R" --group "$(cat "$W/causes.pid")" --agent-pid $agent "$@" 2>&1 | tee "$R/table.txt"
