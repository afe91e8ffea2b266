#!/bin/bash
# nsys_window.sh NAME SECONDS: one window of the session $NSYS_SESSION; its report goes to $OUT_NSYS/NAME.nsys-rep, the schedulers by process to
# processes.txt. `start` has defaults of its own, which sample all CPUs: without --sample=none it ran into its 30 s on a virtual machine.
[ -x "$NSYS" ] || exit 1
t=$(date +%s.%N); since() { echo "$1 after $(awk -v a="$t" -v b="$(date +%s.%N)" 'BEGIN { printf "%.2f", b - a }') s"; }
timeout 40 "$NSYS" start --session="${NSYS_SESSION:-rig}" --sample=none --cpuctxsw=none -o "$OUT_NSYS/$1" --force-overwrite=true || { since "start failed"; exit 1; }
since started; sleep "$2"
timeout 60 "$NSYS" stop --session="${NSYS_SESSION:-rig}" 2>&1 | tr '\r' '\n' | grep -v '^\[' | tail -4; since stopped
for f in /proc/[0-9]*/cmdline; do c=$(tr '\0' ' ' < "$f" 2>/dev/null); case $c in *sglang::scheduler*) p=${f#/proc/}; echo "${p%/cmdline} $c";; esac; done > "$OUT_NSYS/processes.txt"
"$NSYS" sessions list; ls -l "$OUT_NSYS"
