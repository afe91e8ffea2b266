#!/usr/bin/env bash
# Prints the table of docs/factors.md that says which budget of false alarms a day is kept, in healthy worlds.
#
#   scripts/budgets.sh                           four seeds, ten hours, budgets of 0.2, 1 and 5 a day
#   scripts/budgets.sh --seeds 7 --budgets 1     one seed, one budget; other options are those of scripts/judge.sh
set -euo pipefail
cd "$(dirname "$0")/.."
exec scripts/judge.sh --hours 10 --sources log,loads --budgets 0.2,1,5 --seeds 2101,2102,2103,2104 "$@"
