#!/bin/bash
# cpu_kernel.sh SITE SCALAR_TYPE_PY: lays the stand-in for sgl_kernel (cpu_sgl_kernel.py) into SITE, with the real package's scalar_type.py, which is
# plain Python. The real package refuses to be imported where there is no GPU.
here=$(cd "$(dirname "$0")" && pwd); mkdir -p "$1/sgl_kernel" && cp "$2" "$1/sgl_kernel/scalar_type.py" && cp "$here/cpu_sgl_kernel.py" "$1/sgl_kernel/__init__.py" || exit 1
for m in allreduce elementwise flash_attn kvcacheio mamba quantization spatial utils; do
  printf 'from sgl_kernel import _missing\n\n\ndef __getattr__(name):\n    if name.startswith("__"):\n        raise AttributeError(name)\n    return _missing(name)\n' > "$1/sgl_kernel/$m.py"
done
