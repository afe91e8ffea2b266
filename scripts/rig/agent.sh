#!/bin/bash
# agent.sh start BIN BASE LOG [more arguments of `skewtrap run`] | stop | kill9; environment as prep.sh makes it. Everything under $W/agent.
# RIG_MAX_STALL, RIG_MAX_STALL_SLOW_HOST: what a window may cost, in place of 300ms. RIG_NSYS: an nsys session, whose windows stand in for the server's own.
d=$W/agent; mkdir -p "$d"
case $1 in
start)
  bin=$2; base=$3; log=$4; shift 4
  if [ ! -f "$d/agent.yaml" ]; then
    # the shipped rules with a short cooldown, so that a run of minutes sees several windows
    mkdir -p "$d/rules"
    for r in dp-load-skew kv-usage-skew starved-rank slow-rank queue-skew-idle-peer stuck-rank crowded-scheduler dp-attention-tokens expert-imbalance; do
      [ -f "$RIG/../../rules/$r.yaml" ] && cp "$RIG/../../rules/$r.yaml" "$d/rules/"
    done
    how="{ http: { max_stall: ${RIG_MAX_STALL:-300ms}${RIG_MAX_STALL_SLOW_HOST:+, max_stall_slow_host: $RIG_MAX_STALL_SLOW_HOST} } }"
    [ -n "$RIG_NSYS" ] && how="{ nsys: { session: $RIG_NSYS, duration: ${RIG_NSYS_DURATION:-500ms} } }"
    sed -i -e '/^    limits:/d' -e "s/^    capture: { http: {.*} }$/    capture: $how\n    limits: { cooldown: 20s, captures: 40, per: 1h }/" "$d"/rules/*.yaml
    conf() { cat <<Y
targets:
  - { name: rig, url: "$base", engine: sglang, logs: ["$log"] }
capture: { http: { output_dir: "$W/profiles" } }
budget: { windows: 60, stalled: 30m }
$1
receivers:
  - name: sink
    webhook: { url: "http://127.0.0.1:9555/" }
state_dir: $d/state
incident_dir: $d/incidents
listen: 127.0.0.1:9464
Y
    }
    conf "rules: [$d/rules]" > "$d/agent.yaml"
    if ! "$bin" check "$d/agent.yaml" > "$d/check.txt" 2>&1; then
      echo "own limits refused: $(grep -m3 -i error "$d/check.txt")"; conf "" > "$d/agent.yaml"
      "$bin" check "$d/agent.yaml" >> "$d/check.txt" 2>&1 || { echo "configuration refused, flags alone:"; tail -3 "$d/check.txt"; rm -f "$d/agent.yaml"; }
    fi
  fi
  if [ -f "$d/agent.yaml" ]; then
    setsid "$bin" run --config "$d/agent.yaml" "$@" >> "$d/agent.log" 2>&1 < /dev/null &
  else
    setsid "$bin" run --url "$base" --log "$log" --output-dir "$W/profiles" --state-dir "$d/state" --incident-dir "$d/incidents" --listen 127.0.0.1:9464 "$@" >> "$d/agent.log" 2>&1 < /dev/null &
  fi
  echo $! > "$d/pid"; echo "$bin" > "$d/bin"; echo "$base" > "$d/base"; echo "$log" > "$d/log";;
stop) kill -TERM "$(cat "$d/pid" 2>/dev/null)" 2>/dev/null; sleep 0.5; kill -KILL "$(cat "$d/pid" 2>/dev/null)" 2>/dev/null;;
kill9)
  # waits until the server says that a window was asked for, kills the agent at once, starts it again a second later
  n0=$(grep -ac start_profile "$(cat "$d/log")"); t=$(date +%s); why="in mid-window"
  while [ "$(grep -ac start_profile "$(cat "$d/log")")" -le "$n0" ]; do
    [ $(( $(date +%s) - t )) -lt 17 ] || { why="without a window: none came in 17 s"; break; }
    sleep 0.02
  done
  kill -KILL "$(cat "$d/pid")"; echo "$(date +%s.%N) killed $why" >> "$d/kill9.txt"; sleep 1
  "$0" start "$(cat "$d/bin")" "$(cat "$d/base")" "$(cat "$d/log")";;
esac
exit 0
