# Sourced by the runs: unpacks what was carried, sets the environment. RIG is this folder, W a scratch folder, OUT the results.
export RIG W OUT PY RIG_SITE PYTHONUNBUFFERED=1
RIG=${RIG:-$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)}; W=${RIG_WORK:-/tmp/rig}; OUT=${OUT:-$W/out}; PY=${PY:-python3}; RIG_SITE=${RIG_SITE:-$W/site}
mkdir -p "$W" "$OUT"; T0=$(date +%s); say() { echo "[$(( $(date +%s) - T0 )) s] $*"; }
carried=$(cd "${RIG_CARRIED:-.whl}" 2>/dev/null && pwd)
if [ -f "$carried/site.tar.xz" ] && [ ! -d "$RIG_SITE" ]; then
  mkdir -p "$RIG_SITE"; tar -C "$RIG_SITE" -xJf "$carried/site.tar.xz" 2>/dev/null ||
    $PY -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])' "$carried/site.tar.xz" "$RIG_SITE"
  say "unpacked $(du -sm "$RIG_SITE" | cut -f1) MB"
  (cd "$RIG_SITE" && timeout 60 $PY -m compileall -q -j 0 -i hot-modules.txt >/dev/null 2>&1); say "compiled the hot modules"
fi
[ -d "$RIG_SITE" ] && export PYTHONPATH=$RIG_SITE${PYTHONPATH:+:$PYTHONPATH}
export TRITON_CACHE_DIR=$W/cache/triton TVM_FFI_CACHE_DIR=$W/cache/tvm-ffi TORCHINDUCTOR_CACHE_DIR=$W/cache/inductor
mkdir -p "$W/cache"
if [ -f "$carried/cache.tar.xz" ] && [ ! -e "$W/cache/seeded" ]; then
  tar -C "$W/cache" -xJf "$carried/cache.tar.xz" 2>/dev/null || $PY -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])' "$carried/cache.tar.xz" "$W/cache"
  touch "$W/cache/seeded"; say "kernel caches of an earlier run unpacked"
fi
bin=$(dirname "$($PY -c 'import sys; print(sys.executable)')"); export PATH=$bin:/usr/local/cuda/bin:$PATH
command -v curl >/dev/null || { mkdir -p "$W/bin"; cp "$RIG/curl.py" "$W/bin/curl"; chmod +x "$W/bin/curl"; export PATH=$W/bin:$PATH; say "no curl: a stand-in"; }
command -v nvcc >/dev/null && export CUDA_HOME=${CUDA_HOME:-$(dirname "$(dirname "$(readlink -f "$(command -v nvcc)")")")}
for d in /usr/local/nvidia/lib64 /usr/local/nvidia/lib; do [ -e $d/libcuda.so.1 ] && export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$d; done
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 SGLANG_IS_FLASHINFER_AVAILABLE=${SGLANG_IS_FLASHINFER_AVAILABLE:-false} TOKENIZERS_PARALLELISM=false
# No NVLink multicast, whatever starts us: a program that uses it can take a shared host's GPUs down. The newer all-reduce of
# SGLang (v2) can use it, the older one of sgl_kernel cannot.
export NCCL_NVLS_ENABLE=0 TORCH_SYMM_MEM_DISABLE_MULTICAST=1 NVSHMEM_DISABLE_NVLS=1 SGLANG_OPT_USE_CUSTOM_ALL_REDUCE_V2=0
export SGLANG_TORCH_PROFILER_DIR=$W/profiles; mkdir -p "$SGLANG_TORCH_PROFILER_DIR"
save_cache() { [ -d "$W/cache" ] && timeout 40 tar -C "$W/cache" --exclude seeded --exclude '*.lock' -cf - . | timeout 40 $PY -c 'import lzma, shutil, sys; shutil.copyfileobj(sys.stdin.buffer, lzma.open(sys.argv[1], "wb", preset=1))' "$OUT/cache.tar.xz"; ls -l "$OUT/cache.tar.xz"; }
logtail() { echo "---- $1 (end)"; grep -av 'HTTP/1.1\|Decode batch\|Prefill batch' "$1" 2>/dev/null | tr '\r' '\n' | tail -n "${2:-30}" | cut -c1-400; }
