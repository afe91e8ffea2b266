#!/bin/bash
# nsys_window.sh NAME SECONDS: one window of the running nsys session; its report and its SQLite export go to $OUT_NSYS/NAME.*
[ -x "$NSYS" ] || exit 1
id=$("$NSYS" sessions list | awk 'NR > 1 { print $1; exit }')
"$NSYS" start --session="$id" -o "$OUT_NSYS/$1" --force-overwrite=true || exit 1
sleep "$2"
timeout 60 "$NSYS" stop --session="$id" 2>&1 | tr '\r' '\n' | tail -5
ls -l "$OUT_NSYS"
