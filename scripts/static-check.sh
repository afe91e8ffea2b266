#!/usr/bin/env bash
# Checks that the binary needs no other file: a static build (of glibc here; the image's is musl) runs in
# an empty folder as its root, as a user without rights. Takes a release build; needs root for chroot.
set -euo pipefail
cd "$(dirname "$0")/.."
host=$(rustc -vV | sed -n 's/^host: //p')
RUSTFLAGS="-C target-feature=+crt-static" cargo build --release --locked --quiet --target "$host" --target-dir target/static
binary=target/static/$host/release/skewtrap
if ldd "$binary" 2>/dev/null | grep -q '=>'; then
  echo "the binary is not static:"; ldd "$binary"; exit 1
fi
echo "static binary: $(($(stat -c %s "$binary") / 1000)) kB"
if [ "$(id -u)" != 0 ]; then
  echo "SKIPPED: running it in an empty chroot (needs root)"; exit 0
fi
world=$(mktemp -d)
chmod 755 "$world" # the user without rights must be let in
trap 'rm -rf "$world"' EXIT
cp "$binary" "$world/skewtrap"
install -d -o 1000 -g 1000 "$world/data"
inside() { chroot --userspec=1000:1000 "$world" /skewtrap "$@"; }
inside --version
inside demo --out /data/demo >"$world/out" 2>&1 || { tail -20 "$world/out"; exit 1; }
tail -3 "$world/out"
written=$(find "$world" -newer "$world/skewtrap" -type f -not -path "$world/data/*" -not -path "$world/out")
[ -z "$written" ] || { echo "it wrote outside its folder: $written"; exit 1; }
echo "it runs in an empty world, as user 1000, and writes its own folder only"
