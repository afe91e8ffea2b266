# Sourced by two_gpus.sh: sets NSYS to an nsys that can make reports, if this machine has one. Nsight Compute brings an nsys whose importer
# lies in another folder than it is looked for in, so the two are put beside each other in $W/nsys.
NSYS=$(command -v nsys)
if [ -z "$NSYS" ]; then
  target=$(find /opt/nvidia /usr/local -type f -name nsys -path '*target-linux-x64*' 2>/dev/null | head -1)
  importer=$(find /opt/nvidia /usr/local -type f -name QdstrmImporter 2>/dev/null | head -1)
  echo "nsys: ${target:-none}, importer: ${importer:-none}"
  if [ -n "$target" ]; then
    mkdir -p "$W/nsys"; cp -r "$(dirname "$target")" "$W/nsys/target-linux-x64"
    [ -n "$importer" ] && cp -rL "$(dirname "$importer")" "$W/nsys/host-linux-x64"
    NSYS=$W/nsys/target-linux-x64/nsys
    "$NSYS" --version; ls "$W/nsys/host-linux-x64" 2>/dev/null | wc -l; ls "$(dirname "$(dirname "$target")")"
  fi
fi
export NSYS
# Its importer wants libdw, which the machine may lack: carried in .whl/lib (apt-get download libdw1 libelf1; dpkg -x).
[ -d "$carried/lib" ] && ! ldconfig -p | grep -q libdw.so.1 && { cp -n "$carried"/lib/* /usr/lib/x86_64-linux-gnu/; ldconfig; }
[ -n "$NSYS" ] && export PATH=$(dirname "$NSYS"):$PATH
