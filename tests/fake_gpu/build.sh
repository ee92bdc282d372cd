#!/usr/bin/env bash
# Builds the fake CUDA runtime for the torch of a virtual environment:  build.sh OUT [PYTHON]
# then runs anything on it:  OUT/gpu.sh python -m ganlab train device=cuda ...  (see __main__.py)
# Needs g++ and nm, and the CUDA build of torch that PyPI gives by default.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$(mkdir -p "$1/drv" && cd "$1" && pwd)
site=$("${2:-python3}" -c 'import importlib.util as u, pathlib; print(pathlib.Path(u.find_spec("torch").origin).parents[1])')
include=$(ls -d "$site"/nvidia/cu*/include "$site"/nvidia/cuda_runtime/include 2>/dev/null | head -1 || true)
cd "$out"
compile=(g++ -O1 -fPIC -std=c++17 -I"$here" -I"$include" -c)
for part in runtime streams libraries; do "${compile[@]}" "$here/$part.cpp" -o "$part.o" & done
wait
for part in runtime streams libraries; do [ -f "$part.o" ]; done

# all that torch's libraries look up in CUDA's and that is not here becomes a launch, a silent success, or a complaint
nm runtime.o streams.o libraries.o | sed -n 's/.* T //p' | sort -u > have.txt
for lib in c10_cuda torch_cuda torch_cuda_linalg torch_python torch_nvshmem; do ls "$site/torch/lib/lib$lib.so" 2>/dev/null || true; done |
  xargs nm -D --undefined-only | sed -nE 's/.* U ((cuda|__cuda|cublas|cudnn|cusolver)[^@]*).*/\1/p' | sort -u | comm -23 - have.txt |
  grep -vE "cudnnGet(Cudart)?Version|cudnnGet(Last)?ErrorString|cublasLtGetVersion" > want.txt
{ echo 'int fake_unimpl(const char *); int fake_blas(void *, const char *);'
  while read -r name; do
    case $name in
      cublasLt*Create) body='(void **d) { *d = new char[256](); return 0; }' ;;
      cublasLt*Destroy | cublasLt*SetAttribute | cudnnSet* | cudnnDestroy*) body='() { return 0; }' ;;
      cublasS[gedansr]* | cublasD[gd]* | cublasGemm*) body="(void *h) { return fake_blas(h, \"$name\"); }" ;;
      *) body="() { return fake_unimpl(\"$name\"); }" ;;
    esac
    echo "extern \"C\" int $name$body"
  done < want.txt
} > rest.cpp
"${compile[@]}" rest.cpp -o rest.o
g++ -shared -o libfakecuda.so runtime.o streams.o libraries.o rest.o -lpthread
g++ -O1 -fPIC -std=c++17 -shared -Wl,-soname,libcuda.so.1 "$here/driver.cpp" -o drv/libcuda.so.1
cat > gpu.sh <<'SH'
#!/bin/bash
here=$(cd "$(dirname "$0")" && pwd)
export LD_PRELOAD=$here/libfakecuda.so LD_LIBRARY_PATH=$here/drv
exec "$@"
SH
chmod +x gpu.sh
echo "built in $out: $(wc -l < want.txt) stubs"
