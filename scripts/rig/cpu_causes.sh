#!/bin/bash
# cpu_causes.sh BIN [--servers N] [--seconds S] [more arguments of cpu_causes.py]: a real SGLang of two DP ranks without a GPU, the agent BIN beside it
# with the shipped rules, no windows, and causes injected one after another (cpu_causes.py says which, and what is right); over after S seconds. With
# --servers 2 and more, so many of them at once, each on CPUs of its own (cpu_servers.py). Needs PY (setup_cpu.sh prints it), or what setup.sh carried;
# and root for `throttled`.
# Results: $OUT/incidents.jsonl (one trouble a line), events.jsonl (the truth), table.txt, the recording of the server, and what the agent told; of
# several servers causes.tar.xz (all of that but the recordings), recordings.tar, table.txt.
here=$(cd "$(dirname "$0")" && pwd); RIG=$here; export RIG_CPU_MODEL=${RIG_CPU_MODEL:-wide}; . "$here/prep.sh"; chmod +x "$RIG"/{cpu_causes,cpu_kernel,run}.sh 2>/dev/null
BIN=$(cd "$(dirname "$1")" && pwd)/$(basename "$1"); shift; servers=1; seconds=; rest=()
while [ $# -gt 0 ]; do case $1 in --servers) servers=$2; shift 2;; --seconds) seconds=$2; shift 2;; *) rest+=("$1"); shift;; esac; done
[ "$servers" -gt 1 ] && exec $PY "$RIG/cpu_servers.py" --bin "$BIN" --servers "$servers" --seconds "${seconds:-3600}" --started "$T0" "${rest[@]}"
[ -n "$seconds" ] && rest+=(--until $(( T0 + seconds - 12 )))
R=$OUT; A=$W/agent; port=${RIG_PORT:-30000}; sink=${RIG_SINK:-9555}; listen=127.0.0.1:${RIG_LISTEN:-9464}
# The memory that is free changes while several servers start; how much they take is bounded by the tokens.
[ -f "$W/causes.pid" ] && kill -0 "$(cat "$W/causes.pid")" 2>/dev/null || "$RIG/run.sh" causes ${RIG_PRESET:-cpu-dp2} $port --max-total-tokens 100000 --mem-fraction-static 0.8
"$RIG/run.sh" wait causes ${RIG_PATIENCE:-240} || { logtail "$W/causes.log" 60; "$RIG/run.sh" stop causes; exit 1; }
date +%s > "$W/up"; rm -rf "$A"; mkdir -p "$A"; cat > "$A/agent.yaml" <<Y
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
$PY "$RIG/record.py" --base http://127.0.0.1:$port --log "$W/causes.log" --out "$R" --sink $sink --agent-pid-file "$A/pid" --loads-every 1 --metrics-every 2 --no-gpu > "$R/record.log" 2>&1 & rec=$!
"$BIN" --version; nproc
$PY "$RIG/cpu_causes.py" --base http://127.0.0.1:$port --agent http://$listen --out "$R" --group "$(cat "$W/causes.pid")" --agent-pid $agent "${rest[@]}" 2>&1 | tee "$R/table.txt"
exit "${PIPESTATUS[0]}"
