#!/bin/bash
# Makes the folder that is carried to a machine without a network: DEST/site.tar.xz (about 30 MB), unpacked there into one folder
# for PYTHONPATH. On a machine with a network none of this is needed: pip install "sglang[all]==0.5.16" (README.md).
#   setup.sh [DEST]      DEST defaults to ./.whl; needs pip, unzip, tar, xz and about 1.5 GB under ${RIG_CACHE:-/tmp/rig-cache}
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd); dest=$(mkdir -p "${1:-.whl}" && cd "${1:-.whl}" && pwd); cache=${RIG_CACHE:-/tmp/rig-cache}
mkdir -p "$cache/wheels"; site=$cache/site; rm -rf "$site"; mkdir -p "$site"
plat=(--only-binary=:all: --python-version 3.12 --implementation cp --platform manylinux_2_34_x86_64 --platform manylinux_2_28_x86_64
      --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform manylinux_2_12_x86_64 --platform manylinux2010_x86_64
      --platform manylinux_2_5_x86_64 --platform manylinux1_x86_64)
python3 -m pip -q install --no-deps --no-compile "${plat[@]}" --target "$site" -r "$here/requirements-carry.txt"
# The kernels of sgl_kernel without FlashAttention 3 (342 MB of the 383 MB wheel): custom all-reduce, norms, MoE and sampling stay the real ones.
ls "$cache"/wheels/sglang_kernel-0.4.5-*.whl >/dev/null 2>&1 ||
  python3 -m pip -q download --no-deps "${plat[@]}" -d "$cache/wheels" sglang-kernel==0.4.5
unzip -q -o "$cache"/wheels/sglang_kernel-0.4.5-*.whl 'sgl_kernel/*' 'sglang_kernel-0.4.5.dist-info/*' -d "$site" \
  -x 'sgl_kernel/flash_ops*' 'sgl_kernel/sm100/*' 'sgl_kernel/infllm_ops*' 'sgl_kernel/flashmla_ops*'
cp -r "$here"/stubs/. "$site"/
# transformers 5.12.1 refuses a tokenizers newer than 0.23.0; the tokenizer is not used here
sed -i 's/"tokenizers>=0.22.0,<=0.23.0"/"tokenizers>=0.22.0"/' "$site/transformers/dependency_versions_table.py"
rm -rf "$site"/bin "$site"/sglang/multimodal_gen "$site"/sglang/test "$site"/sglang/benchmark "$site"/sglang/srt/grpc/_core*.so \
  "$site"/sglang/srt/multimodal/_core*.so "$site"/sglang/jit_kernel/tests "$site"/sglang/jit_kernel/benchmark "$site"/triton_kernels
# of transformers' 480 model folders only what is asked for keeps its implementation
python3 - "$site/transformers/models" "$here/keep-models.txt" <<'P'
import pathlib, sys
keep = set(open(sys.argv[2]).read().split())
for f in pathlib.Path(sys.argv[1]).glob("*/*.py"):
    if f.parent.name not in keep and f.name != "__init__.py" and not f.name.startswith("configuration_"):
        f.unlink()
P
find "$site" -name __pycache__ -prune -exec rm -rf {} +
cp "$here/hot-modules.txt" "$site/hot-modules.txt"
tar -C "$site" -c . | nice xz -T2 -6 > "$dest/site.tar.xz"
ls -l "$dest"
