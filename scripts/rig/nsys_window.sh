#!/bin/bash
# nsys_window.sh NAME SECONDS: one window of the running nsys session; its report goes to $OUT_NSYS/NAME.nsys-rep, the schedulers by process to processes.txt
[ -x "$NSYS" ] || exit 1
id=$("$NSYS" sessions list | awk 'NR > 1 { print $1; exit }')
"$NSYS" start --session="$id" -o "$OUT_NSYS/$1" --force-overwrite=true || exit 1
sleep "$2"
timeout 60 "$NSYS" stop --session="$id" 2>&1 | tr '\r' '\n' | tail -5
for f in /proc/[0-9]*/cmdline; do t=$(tr '\0' ' ' < "$f" 2>/dev/null); case $t in *sglang::scheduler*) p=${f#/proc/}; echo "${p%/cmdline} $t";; esac; done > "$OUT_NSYS/processes.txt"
ls -l "$OUT_NSYS"
