#!/bin/bash
# The same server without a GPU: a Python 3.12 venv in DIR (about 8 GB, ten minutes) in which sgl_kernel is a stub of plain torch.
# HTTP, schedulers, DP controller, log, metrics and profiler are the real ones; speed means nothing.
#   setup_cpu.sh [DIR]      DIR defaults to ~/.cache/skewtrap-rig-0.5.16; PYTHON names a python 3.12
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd); dir=${1:-$HOME/.cache/skewtrap-rig-0.5.16}; cache=${RIG_CACHE:-/tmp/rig-cache}; mkdir -p "$dir" "$cache/wheels"
[ -e "$dir/ready" ] && { echo "already built: $dir"; exit 0; }
"${PYTHON:-python3.12}" -m venv "$dir/venv"; pip="$dir/venv/bin/pip -q --disable-pip-version-check"
$pip install torch==2.11.0 torchvision==0.26.0 torchaudio==2.11.0 transformers==5.12.1 numpy aiohttp accelerate anyio einops httpx numba nvidia-ml-py pandas \
  pillow prometheus-client psutil pyyaml regex requests safetensors scipy sentencepiece setuptools tiktoken tqdm uvloop xxhash timm ninja
$pip install --no-deps -r "$here/requirements-carry.txt"
site=$("$dir/venv/bin/python" -c 'import site; print(site.getsitepackages()[0])'); cp -r "$here"/stubs/. "$site"/
ls "$cache"/wheels/sglang_kernel-0.4.5-*.whl >/dev/null 2>&1 || $pip download --no-deps --only-binary=:all: -d "$cache/wheels" sglang-kernel==0.4.5
unzip -q -o -j "$cache"/wheels/sglang_kernel-0.4.5-*.whl sgl_kernel/scalar_type.py -d "$cache"
"$here/cpu_kernel.sh" "$site" "$cache/scalar_type.py"
touch "$dir/ready"; echo "built: PY=$dir/venv/bin/python"
