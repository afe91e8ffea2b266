#!/bin/sh
# Unpacks a real nsys (Nsight Systems 2022.4.2, Debian's non-free section) into a folder, for the tests that
# drive one. Installs nothing, and leaves the machine's apt configuration as it is: the non-free section is
# read through a private list of sources. Works without a GPU. Run it again: it does nothing.
#
#   scripts/install-nsys.sh FOLDER     then: FOLDER/nsys --version
set -eu

folder=${1:?usage: install-nsys.sh FOLDER}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
if [ -x "$folder/nsys" ] && "$folder/nsys" --version >/dev/null 2>&1; then
    echo "nsys is in $folder already: $("$folder/nsys" --version)" >&2
    exit 0
fi
command -v apt-get >/dev/null && command -v dpkg >/dev/null || {
    echo "install-nsys.sh: needs apt-get and dpkg (Debian 12): take nsys from elsewhere and put it on PATH" >&2
    exit 1
}
[ "$(dpkg --print-architecture)" = amd64 ] || { echo "install-nsys.sh: only amd64 is packaged" >&2; exit 1; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/archives/partial"

# The mirror and the release that this machine uses anyway.
mirror=$(apt-get indextargets --format '$(REPO_URI)' | grep -m1 '/debian/*$') || {
    echo "install-nsys.sh: this machine's apt names no Debian mirror" >&2
    exit 1
}
. /etc/os-release
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keyring] $mirror ${VERSION_CODENAME:-bookworm} main non-free" >"$work/sources.list"
apt() {
    apt-get -qq -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=- \
        -o Dir::State::Lists="$work/lists" -o Dir::Cache::Archives="$work/archives" \
        -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User=root "$@"
}
apt update
(cd "$work/archives" && apt download nsight-systems nsight-systems-target libssh-4)

for package in "$work"/archives/*.deb; do
    dpkg -x "$package" "$work/root"
done

# nsys looks for its importer in ../host-linux-x64 of its real path, so symbolic links do not work.
rm -rf "$folder/nsight"
mkdir "$folder/nsight"
mv "$work"/root/usr/lib/nsight-systems/host-linux-x64 "$folder/nsight/"
mv "$work"/root/usr/lib/x86_64-linux-gnu/nsight-systems/target-linux-x64 "$folder/nsight/"
cp "$work"/root/usr/lib/x86_64-linux-gnu/libssh.so.4.* "$folder/nsight/host-linux-x64/libssh.so.4"
ln -sfn libssh.so.4 "$folder/nsight/host-linux-x64/libssh.so"
ln -sfn nsight/target-linux-x64/nsys "$folder/nsys"
"$folder/nsys" --version >&2
