#!/usr/bin/env bash
# Builds what is shipped, and checks each piece: into target/package.
#
#   scripts/package.sh [binary] [deb] [image] [sbom] [crates]       by default all of them
#
# PROFILE=dev builds quickly, to try this script; TARGET is a target of rustup, by default x86-64 with musl.
# What cannot be built here says so in a line that begins with SKIPPED.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
profile=${PROFILE:-dist}
target=${TARGET:-x86_64-unknown-linux-musl}
out=$root/target/package
most_kilobytes=18000
tools=${SKEWTRAP_TOOLS:-$HOME/.cache/skewtrap-ci/tools}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
export PATH="$tools/bin:$PATH"
mkdir -p "$out"
step() { printf '\n== %s (%ss)\n' "$1" "$SECONDS"; }
skipped() { echo "SKIPPED: $1"; }
tool() { command -v "$1" >/dev/null || cargo install --quiet --locked --root "$tools" "$1" || return 1; }

folder=$profile
[ "$profile" = dev ] && folder=debug
built=$root/target/$target/$folder/skewtrap

binary() {
  step "the static binary ($target, $profile)"
  rustup target list --installed | grep -qx "$target" || rustup target add "$target"
  case $target in *-musl)
    command -v "${target%%-*}-linux-musl-gcc" musl-gcc >/dev/null || {
      echo "SQLite and the TLS are built by a C compiler for musl, and there is none: apt-get install musl-tools"; exit 1; } ;;
  esac
  # Packed relocations: the binary moves as before, and is half a megabyte smaller. C code unwinds nothing: no panic
  # goes through SQLite or the TLS of `ring`.
  local flags=CFLAGS_${target//-/_}
  export "$flags=-fno-asynchronous-unwind-tables -fno-unwind-tables"
  local linking=(-Clink-arg=-Wl,-z,pack-relative-relocs) linker
  # The linker that comes with the toolchain folds functions of the same code into one: 0.15 MB less.
  linker=$(find "$(rustc --print sysroot)" -path '*/gcc-ld/ld.lld' | head -1)
  [ -z "$linker" ] || linking+=(-Clink-arg=-B"$(dirname "$linker")" -Clink-arg=-fuse-ld=lld -Clink-arg=-Wl,--icf=all,-O2)
  cargo rustc --locked --profile "$profile" --features dist --target "$target" --bin skewtrap -- "${linking[@]}"
  if file -L "$built" | grep -q 'dynamically linked' || ldd "$built" 2>/dev/null | grep -q '=>'; then
    echo "the binary is not static:"; ldd "$built"; exit 1
  fi
  install -m 755 "$built" "$out/skewtrap"
  "$out/skewtrap" --version
  local kilobytes=$(($(stat -c %s "$out/skewtrap") / 1000))
  echo "$kilobytes kB (at most $most_kilobytes)"
  [ "$profile" != dist ] || [ "$kilobytes" -le "$most_kilobytes" ] || { echo "the binary has grown too large"; exit 1; }
  # What belongs to it: completions and manual pages, of the same definitions as its help.
  rm -rf "$out/man" "$out/completions"
  mkdir -p "$out/man" "$out/completions"
  "$out/skewtrap" man "$out/man"
  for shell in bash zsh fish; do "$out/skewtrap" completions "$shell" >"$out/completions/skewtrap.$shell"; done
  for page in "$out"/man/*.1; do gzip -9nf "$page"; done
  [ "$(find "$out/man" -name '*.1.gz' | wc -l)" -ge 20 ] || { echo "too few manual pages"; exit 1; }
  bash -n "$out/completions/skewtrap.bash"
  # It needs nothing: an empty folder as its root, a user without rights.
  if [ "$(id -u)" = 0 ]; then
    local world
    world=$(mktemp -d)
    chmod 755 "$world"
    cp "$out/skewtrap" "$world/skewtrap"
    chroot --userspec=1000:1000 "$world" /skewtrap check >/dev/null
    rm -rf "$world"
    echo "it runs in an empty folder, as a user without rights"
  else
    skipped "running the binary in an empty folder (needs root)"
  fi
  local name=skewtrap-$version-$target
  rm -rf "${out:?}/$name"
  mkdir -p "$out/$name"
  cp -r "$out/skewtrap" "$out/man" "$out/completions" README.md CHANGELOG.md LICENSE deploy/systemd deploy/examples "$out/$name"
  tar -C "$out" --owner=0 --group=0 --sort=name -czf "$out/$name.tar.gz" "$name"
  rm -rf "${out:?}/$name"
  echo "$out/$name.tar.gz: $(($(stat -c %s "$out/$name.tar.gz") / 1000)) kB"
}

deb() {
  step "the Debian package"
  [ -x "$out/skewtrap" ] || binary
  tool cargo-deb || { skipped "the Debian package (cargo-deb cannot be installed)"; return; }
  command -v dpkg-deb >/dev/null || { skipped "the Debian package (no dpkg)"; return; }
  # Its assets are what `binary` has built; nothing is built again. A package installs into /usr.
  mkdir -p "$out/systemd"
  sed 's,^ExecStart=/usr/local/bin/,ExecStart=/usr/bin/,' deploy/systemd/skewtrap.service >"$out/systemd/skewtrap.service"
  cargo deb --no-build --no-strip --output "$out/skewtrap_${version}_amd64.deb"
  local listed path
  listed=$(dpkg-deb --contents "$out/skewtrap_${version}_amd64.deb")
  for path in ./usr/bin/skewtrap ./usr/share/man/man1/skewtrap-run.1.gz ./usr/share/bash-completion/completions/skewtrap \
    ./etc/skewtrap/skewtrap.yaml lib/systemd/system/skewtrap.service ./usr/share/doc/skewtrap/README.md; do
    grep -qF "$path" <<<"$listed" || { echo "the package lacks $path:"; echo "$listed"; exit 1; }
  done
  local unpacked
  unpacked=$(mktemp -d)
  dpkg-deb --extract "$out/skewtrap_${version}_amd64.deb" "$unpacked"
  "$unpacked/usr/bin/skewtrap" check "$unpacked/etc/skewtrap/skewtrap.yaml" >/dev/null
  unit=$(find "$unpacked" -name skewtrap.service)
  grep -q '^ExecStart=/usr/bin/skewtrap ' "$unit" || { echo "the unit starts another binary"; exit 1; }
  if command -v systemd-analyze >/dev/null; then
    complaints=$(systemd-analyze verify "$unit" 2>&1 | grep -v 'is not executable' || true)
    [ -z "$complaints" ] || { echo "$complaints"; exit 1; }
  fi
  rm -rf "$unpacked"
  echo "the package holds binary, unit, configuration, manual pages and completions"
}

image() {
  step "the image"
  if docker info >/dev/null 2>&1; then
    docker build -q -f deploy/docker/Dockerfile --build-arg VERSION="$version" -t "skewtrap:$version" .
    docker run --rm "skewtrap:$version" --version
    docker inspect --format '{{index .Config.Labels "org.opencontainers.image.version"}}' "skewtrap:$version" | grep -qx "$version"
  else
    skipped "building the image (no Docker daemon)"
  fi
}

sbom() {
  step "the list of what is in it (CycloneDX)"
  tool cargo-cyclonedx || { skipped "the SBOM (cargo-cyclonedx cannot be installed)"; return; }
  # It writes beside each manifest.
  cargo cyclonedx --format json --features dist --target "$target" --override-filename skewtrap.cdx --quiet
  mv skewtrap.cdx.json "$out/skewtrap-$version.cdx.json"
  find crates -name skewtrap.cdx.json -delete
  python3 - "$out/skewtrap-$version.cdx.json" <<'PYTHON'
import json, sys
bom = json.load(open(sys.argv[1]))
names = {component["name"] for component in bom["components"]}
lacking = {"tokio", "rustls", "rusqlite", "clap_mangen", "ratatui"} - names
sys.exit(f"the SBOM lacks {lacking}" if bom["bomFormat"] != "CycloneDX" or lacking else 0)
PYTHON
  echo "$out/skewtrap-$version.cdx.json"
}

crates() {
  step "the crates, as they would be published"
  # All at once: those that depend on another are checked against it as it is here.
  local verify=()
  [ "$profile" = dev ] && verify=(--no-verify)
  cargo publish --workspace --dry-run --locked --allow-dirty "${verify[@]}"
}

wanted=("$@")
[ $# -gt 0 ] || wanted=(binary deb image sbom crates)
for piece in "${wanted[@]}"; do
  case $piece in
  binary | deb | image | sbom | crates) "$piece" ;;
  *) echo "there is no piece $piece: binary, deb, image, sbom, crates" >&2; exit 2 ;;
  esac
done

step "checksums"
cd "$out"
find . -maxdepth 1 -type f \( -name '*.tar.gz' -o -name '*.deb' -o -name '*.cdx.json' \) -printf '%f\n' | sort | xargs -r sha256sum | tee SHA256SUMS
sha256sum --quiet -c SHA256SUMS
