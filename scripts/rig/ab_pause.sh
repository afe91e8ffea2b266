#!/bin/bash
# ab_pause.sh SECONDS [LENGTH]: the agent watches for LENGTH seconds (default 1), then is paused (SIGSTOP) for as long, in turns ABBA, for SECONDS in all.
# What the log gained meanwhile is read at the next turn: `with` pays for both.
# Short turns, because the load of a server drifts by several per cent from one ten seconds to the next; when each began goes to $R/ab.txt.
R=${R:-$W/rec}; length=${2:-1}; : > "$R/ab.txt"; "$RIG/agent.sh" stop; "$RIG/agent.sh" start "$BIN" "$BASE" "$SLOG" --watch-only; sleep 4
pid=$(cat "$W/agent/pid"); n=$(awk -v s="$1" -v l="$length" 'BEGIN { print int(s / l / 4) * 4 }')
for i in $(seq 0 $(( n - 1 ))); do
  case $(( i % 4 )) in 0|3) what=with; kill -CONT "$pid";; *) what=without; kill -STOP "$pid";; esac
  echo "$(date +%s.%N) $what" >> "$R/ab.txt"; sleep "$length"
done
echo "$(date +%s.%N) end" >> "$R/ab.txt"; kill -CONT "$pid"; "$RIG/agent.sh" stop
