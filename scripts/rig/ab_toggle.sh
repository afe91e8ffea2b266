#!/bin/bash
# ab_toggle.sh ROUNDS SECONDS: the agent watches, or does not, in turn (with without without with ...); when each began goes to $R/ab.txt.
R=${R:-$W/rec}; : > "$R/ab.txt"; "$RIG/agent.sh" stop
for i in $(seq 0 $(( $1 - 1 ))); do
  case $(( i % 4 )) in 0|3) what=with;; *) what=without;; esac
  if [ "$what" != "$last" ]; then [ $what = with ] && "$RIG/agent.sh" start "$BIN" "$BASE" "$SLOG" --watch-only || "$RIG/agent.sh" stop; fi
  last=$what; echo "$(date +%s.%N) $what" >> "$R/ab.txt"; sleep "$2"
done
echo "$(date +%s.%N) end" >> "$R/ab.txt"; "$RIG/agent.sh" stop
