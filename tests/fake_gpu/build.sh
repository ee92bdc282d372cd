#!/usr/bin/env bash
# Builds the fake CUDA runtime for the torch of a virtual environment:  build.sh OUT [PYTHON]
# then runs anything on it:  OUT/gpu.sh python -m ganlab train device=cuda ...  (see __main__.py)
# torch's real host code runs (allocator, autograd threads, graph capture, generators, foreach routing); kernels compute nothing.
# Needs g++ and nm, and the CUDA build of torch that PyPI gives by default. FAKE_GPUS=2, FAKE_MEM_GB=0.6: see fakecuda.cpp.
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd); OUT=$(mkdir -p "$1/drv" && cd "$1" && pwd); PY=${2:-python3}
SITE=$($PY -c 'import importlib.util as u, pathlib; print(pathlib.Path(u.find_spec("torch").origin).parents[1])')
T=$SITE/torch/lib; I=$(ls -d "$SITE"/nvidia/cu*/include 2>/dev/null | head -1 || true); [ -n "$I" ] || I=$(ls -d "$SITE"/nvidia/cuda_runtime/include | head -1)
cd "$OUT"
g++ -O1 -fPIC -std=c++17 -I"$HERE" -I"$I" -c "$HERE/fakecuda.cpp" -o fakecuda.o
nm fakecuda.o | grep " T " | sed 's/.* T //' | sort -u > have.txt
for l in libc10_cuda.so libtorch_cuda.so libtorch_cuda_linalg.so libtorch_python.so libtorch_nvshmem.so; do [ -f "$T/$l" ] && echo "$T/$l"; done |
  xargs nm -D --undefined-only | grep -E " U (cuda|__cuda|cublas|cudnn|cusolver)" | sed 's/.* U //;s/@.*//' | sort -u | comm -23 - have.txt |
  grep -v "cudnnGetVersion\|cudnnGetCudartVersion\|cudnnGetErrorString\|cudnnGetLastErrorString\|cublasLtGetVersion" > want.txt
{ echo 'int fake_unimpl(const char*); int fake_blas(void*,const char*);'
  while read -r n; do case $n in
   cublasLt*Create) echo "extern \"C\" int $n(void**d){ *d=new char[256](); return 0; }";;
   cublasLt*Destroy|cublasLt*SetAttribute) echo "extern \"C\" int $n(){ return 0; }";;
   cublasS[gedansr]*|cublasD[gd]*|cublasGemm*) echo "extern \"C\" int $n(void*h){ return fake_blas(h,\"$n\"); }";;
   cudnnSet*|cudnnDestroy*) echo "extern \"C\" int $n(){ return 0; }";;
   *) echo "extern \"C\" int $n(){ return fake_unimpl(\"$n\"); }";; esac; done < want.txt; } > gen.cpp
g++ -O1 -fPIC -std=c++17 -c gen.cpp -o gen.o
g++ -shared -o libfakecuda.so fakecuda.o gen.o -lpthread
cat > drv.cpp <<'D'
#include <cstdio>
#define X extern "C"
X int cuDevicePrimaryCtxGetState(int,unsigned*f,int*a){*f=0;*a=1;return 0;}
X int cuDevicePrimaryCtxRetain(void**c,int){*c=(void*)8;return 0;}
X int cuCtxGetCurrent(void**c){*c=(void*)8;return 0;} X int cuCtxSetCurrent(void*){return 0;}
X int cuDeviceGet(int*d,int i){*d=i;return 0;} X int cuInit(unsigned){return 0;} X int cuDriverGetVersion(int*v){*v=13020;return 0;}
X int cuGetErrorString(int,const char**s){*s="fake";return 0;}
X int cuDeviceGetAttribute(int*v,int,int){*v=1;return 0;}
#define U(n) X int n(){ fprintf(stderr,"fake driver: %s\n",#n); return 801; }
U(cuFuncGetAttribute)U(cuFuncSetAttribute)U(cuFuncSetCacheConfig)U(cuLaunchCooperativeKernel)U(cuLaunchKernel)U(cuLinkAddData_v2)U(cuLinkComplete)U(cuLinkCreate_v2)U(cuModuleGetFunction)U(cuModuleLoad)U(cuModuleLoadData)U(cuModuleLoadDataEx)U(cuModuleUnload)U(cuOccupancyMaxActiveBlocksPerMultiprocessor)U(cuPointerGetAttribute)U(cuTensorMapEncodeTiled)
D
g++ -shared -fPIC -Wl,-soname,libcuda.so.1 drv.cpp -o drv/libcuda.so.1
printf '#!/bin/bash\nexport LD_PRELOAD=%s/libfakecuda.so LD_LIBRARY_PATH=%s/drv\nexec "$@"\n' "$OUT" "$OUT" > gpu.sh; chmod +x gpu.sh
echo "built in $OUT: $(wc -l < want.txt) stubs"
