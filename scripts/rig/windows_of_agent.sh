#!/bin/bash
# windows_of_agent.sh N SECONDS: asks the running agent for N windows, one every SECONDS; what it answers goes to $R/asked.txt.
R=${R:-$W/rec}
for i in $(seq "$1"); do
  t=$(date +%s.%N); echo "$t $(timeout 20 "$BIN" capture start --agent http://127.0.0.1:9464 --state-dir "$W/agent/state" --reason "window $i" 2>&1 | tr '\n' ' ' | cut -c1-300)" >> "$R/asked.txt"
  sleep "$2"
done
