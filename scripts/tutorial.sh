#!/usr/bin/env bash
# Runs docs/tutorial/laptop.md as it is written: the commands are taken from the page. It takes about three minutes,
# because the simulated server runs in real time.
#
#   scripts/tutorial.sh [SKEWTRAP]      the program, by default target/release/skewtrap
#
# PICTURES=docs/pictures draws the page and the report for the book, where Chromium is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
program=$(realpath "${1:-target/release/skewtrap}")
page=$PWD/docs/tutorial/laptop.md
pictures=${PICTURES:+$(realpath "$PICTURES")}
folder=$(mktemp -d)
started=()
finish() {
  for process in "${started[@]}"; do kill "$process" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$folder"
}
trap finish EXIT
cd "$folder"
ln -s "$program" skewtrap
PATH=$folder:$PATH
# One free port for the server and one for the page, in place of those of the page: this machine may use them.
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
server=$(free_port)
listen=$(free_port)
export SKEWTRAP_AGENT=http://127.0.0.1:$listen
# The commands of the page that begin with these words.
command_of() {
  local found
  found=$(grep -E "^skewtrap $1" "$page" | head -1 | sed "s/31000/$server/g")
  [ -n "$found" ] || { echo "the page has no command \"skewtrap $1\"" >&2; exit 1; }
  echo "$found"
}
start() { # LOG COMMAND
  echo "+ $2"
  # Without a shell in between, so that a signal reaches the program.
  read -ra words <<<"$2"
  "${words[@]}" >"$1" 2>&1 &
  started+=($!)
}
start server.out "$(command_of demo)"
for _ in $(seq 100); do grep -q 'listens on' server.out && break; sleep 0.1; done
grep -q 'listens on' server.out || { cat server.out; exit 1; }
start agent.out "$(command_of run) --listen 127.0.0.1:$listen"
echo "waiting for the incident and its verdict ..."
for _ in $(seq 240); do
  ./skewtrap incidents --json --state-dir practice/state >incidents.json 2>/dev/null || true
  if python3 -c 'import json, sys; sys.exit(not any(i["verdict"] for i in json.load(open("incidents.json"))))' 2>/dev/null; then break; fi
  sleep 1
done
python3 - <<'PYTHON' || { tail -20 agent.out; exit 1; }
import json
incidents = json.load(open("incidents.json"))
compared = [i for i in incidents if i["verdict"]]
assert compared, f"no incident has a verdict: {[(i['rule'], i['capture']) for i in incidents]}"
assert compared[0]["finding"]["rank"] == {"dp_rank": 2}, compared[0]["finding"]["rank"]
print("verdict:", compared[0]["verdict"]["sentence"])
PYTHON
picture() { # NAME HEIGHT URL
  chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --user-data-dir="$folder/chromium" --timeout=20000 \
    --window-size="1280,$2" --screenshot="$pictures/$1.png" "$3" >/dev/null 2>&1
  echo "$pictures/$1.png"
}
if [ -n "$pictures" ]; then
  picture page 940 "http://127.0.0.1:$listen/"
  picture report 1000 "file://$(ls "$folder"/practice/incidents/*/report.html | head -1)"
fi
for words in status incidents why compare replay check; do
  command=$(command_of "$words")
  echo "+ $command"
  bash -c "$command" >out 2>&1 || { cat out; exit 1; }
  [ -s out ] || { echo "it says nothing"; exit 1; }
done
echo "the tutorial works as it is written"
