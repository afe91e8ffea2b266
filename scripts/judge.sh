#!/usr/bin/env bash
# Judges the shipped rules over simulated servers and prints the table of docs/factors.md.
#
#   scripts/judge.sh                                      everything: hours
#   scripts/judge.sh --sources log --healthy 0 --runs 2   incidents only, two runs each
#   scripts/judge.sh --sources loads --runs 0 --hours 2   healthy worlds only
set -euo pipefail
cd "$(dirname "$0")/.."
exec nice cargo run --quiet --profile judge -p skewtrap-judge -- "$@"
