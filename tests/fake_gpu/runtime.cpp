// The CUDA runtime but for streams: kernels, devices, memory. Kernels compute nothing; copies are made.
#include "fake.h"
// ---- kernels
EXPORT void **__cudaRegisterFatBinary(void *) {
  static void *h;
  return &h;
}
EXPORT void __cudaRegisterFatBinaryEnd(void **) {}
EXPORT void __cudaUnregisterFatBinary(void **) {}
EXPORT void __cudaRegisterFunction(void **, const char *host, char *dev, const char *name, int, void *,
                                   void *, void *, void *, int *) {
  LOCK;
  kernels[host] = name ? name : dev;
}
EXPORT void __cudaRegisterVar(void **, char *, char *, const char *, int, size_t, int, int) {}
struct Configuration {
  dim3 g, b;
  size_t s;
  void *st;
};
static thread_local std::vector<Configuration> configurations;
EXPORT char __cudaInitModule(void **) { return 0; }
EXPORT unsigned __cudaPushCallConfiguration(dim3 g, dim3 b, size_t s, void *st) {
  configurations.push_back({g, b, s, st});
  return 0;
}
EXPORT cudaError_t __cudaPopCallConfiguration(dim3 *g, dim3 *b, size_t *s, void *st) {
  auto c = configurations.back();
  configurations.pop_back();
  *g = c.g;
  *b = c.b;
  *s = c.s;
  *(void **)st = c.st;
  return cudaSuccess;
}
EXPORT cudaError_t __cudaGetKernel(cudaKernel_t *k, const void *f) {
  *k = (cudaKernel_t)f;
  return cudaSuccess;
}
static std::unordered_map<const void *, std::string> readable;
static const std::string &kernel_name(const void *f) {
  LOCK;
  auto &p = readable[f];
  if (p.empty()) {
    auto i = kernels.find(f);
    p = i == kernels.end() ? "?" : demangled(i->second);
  }
  return p;
}
static cudaError_t check_grid(dim3 g, dim3 b, const void *f) {
  if (!g.x || !g.y || !g.z || !b.x || b.x * b.y * b.z > 1024 || g.y > 65535 || g.z > 65535)
    return refuse(cudaErrorInvalidConfiguration, "bad grid " + kernel_name(f));
  return cudaSuccess;
}
EXPORT cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3 g, dim3 b, void **, size_t, cudaStream_t s) {
  if (auto e = check_grid(g, b, (void *)k)) return e;
  return launch(kernel_name((void *)k), s);
}
EXPORT cudaError_t cudaLaunchKernel(const void *f, dim3 g, dim3 b, void **, size_t, cudaStream_t s) {
  if (auto e = check_grid(g, b, f)) return e;
  return launch(kernel_name(f), s);
}
EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **) {
  return launch(kernel_name(f), c->stream);
}
EXPORT cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t fn, void *d) {
  launch("HOSTFUNC", s);
  LOCK;
  if (!stream_of(s)->cap) fn(d);
  return cudaSuccess;
}
EXPORT cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *a, const void *) {
  memset(a, 0, sizeof *a);
  a->maxThreadsPerBlock = 1024;
  a->numRegs = 32;
  a->binaryVersion = 90;
  a->ptxVersion = 90;
  a->maxDynamicSharedSizeBytes = 49152;
  return cudaSuccess;
}
EXPORT cudaError_t cudaFuncSetAttribute(const void *, cudaFuncAttribute, int) { return cudaSuccess; }
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *, int, size_t) {
  *n = 2;
  return cudaSuccess;
}
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *, int, size_t,
                                                                          unsigned) {
  *n = 2;
  return cudaSuccess;
}
// ---- devices
EXPORT cudaError_t cudaGetDeviceCount(int *n) {
  *n = device_count();
  return cudaSuccess;
}
EXPORT cudaError_t cudaGetDevice(int *d) {
  *d = current;
  return cudaSuccess;
}
EXPORT cudaError_t cudaSetDevice(int d) {
  if (d >= device_count()) return refuse(cudaErrorInvalidDevice, "cudaSetDevice");
  current = d;
  return cudaSuccess;
}
EXPORT cudaError_t cudaDriverGetVersion(int *v) {
  *v = 13020;
  return cudaSuccess;
}
EXPORT cudaError_t cudaRuntimeGetVersion(int *v) {
  *v = 13020;
  return cudaSuccess;
}
EXPORT cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "FAKE H200");
  p->major = 9;
  p->minor = 0;
  p->totalGlobalMem = (size_t)(memory_gb * 1e9);
  p->sharedMemPerBlock = 49152;
  p->sharedMemPerBlockOptin = 232448;
  p->sharedMemPerMultiprocessor = 233472;
  p->reservedSharedMemPerBlock = 1024;
  p->regsPerBlock = 65536;
  p->regsPerMultiprocessor = 65536;
  p->warpSize = 32;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsPerMultiProcessor = 2048;
  p->maxBlocksPerMultiProcessor = 32;
  p->multiProcessorCount = 132;
  p->l2CacheSize = 60 << 20;
  p->persistingL2CacheMaxSize = 30 << 20;
  for (int i = 0; i < 3; i++) {
    p->maxThreadsDim[i] = i < 2 ? 1024 : 64;
    p->maxGridSize[i] = i ? 65535 : 2147483647;
  }
  p->unifiedAddressing = 1;
  p->concurrentKernels = 1;
  p->textureAlignment = 512;
  p->memoryBusWidth = 6144;
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetAttribute(int *v, cudaDeviceAttr a, int) {
  *v = 1;
  switch ((int)a) {
  case 1: *v = 1024; break;
  case 2:
  case 3: *v = 1024; break;
  case 4: *v = 64; break;
  case 5: *v = 2147483647; break;
  case 6:
  case 7: *v = 65535; break;
  case 8: *v = 49152; break;
  case 10: *v = 32; break;
  case 12: *v = 65536; break;
  case 16: *v = 132; break;
  case 38: *v = 60 << 20; break;
  case 39: *v = 2048; break;
  case 75: *v = 9; break;
  case 76: *v = 0; break;
  case 81: *v = 233472; break;
  case 82: *v = 65536; break;
  case 97: *v = 232448; break;
  case 106: *v = 32; break;
  }
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int *a, int *b) {
  *a = 0;
  *b = -5;
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceSynchronize() {
  LOCK;
  if (unsafe("cudaDeviceSynchronize"))
    return refuse(cudaErrorStreamCaptureUnsupported, "cudaDeviceSynchronize");
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceCanAccessPeer(int *c, int, int) {
  *c = 0;
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetPCIBusId(char *s, int n, int d) {
  snprintf(s, n, "0000:%02d:00.0", d);
  return cudaSuccess;
}
EXPORT cudaError_t cudaGetLastError() {
  auto e = last_error;
  last_error = cudaSuccess;
  return e;
}
EXPORT cudaError_t cudaPeekAtLastError() { return last_error; }
EXPORT const char *cudaGetErrorString(cudaError_t e) {
  static thread_local char b[64];
  if (e == cudaErrorMemoryAllocation) return "out of memory";
  snprintf(b, 64, "fake error %d", (int)e);
  return b;
}
EXPORT const char *cudaGetErrorName(cudaError_t e) { return cudaGetErrorString(e); }
EXPORT cudaError_t cudaGetDriverEntryPointByVersion(const char *, void **f, unsigned, unsigned long long,
                                                    cudaDriverEntryPointQueryResult *r) {
  *f = nullptr;
  if (r) *r = cudaDriverEntryPointSymbolNotFound;
  return cudaErrorSymbolNotFound;
}
// ---- memory
struct Block {
  size_t n;
  int dev;
  int kind;
};
static std::map<char *, Block> blocks;
static cudaError_t grab(void **p, size_t n, int dev, int kind) {
  LOCK;
  size_t m = (n + 4095) & ~4095ul;
  if (kind == 2 && used[dev] + m > memory_gb * 1e9) {
    last_error = cudaErrorMemoryAllocation;
    return cudaErrorMemoryAllocation;
  }
  void *q = mmap(0, m ? m : 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (q == MAP_FAILED) return refuse(cudaErrorMemoryAllocation, "mmap");
  blocks[(char *)q] = {m ? m : 4096, dev, kind};
  if (kind == 2) {
    used[dev] += m;
    touched.insert(dev);
  }
  *p = q;
  return cudaSuccess;
}
static cudaError_t drop(void *p) {
  if (!p) return cudaSuccess;
  LOCK;
  auto i = blocks.find((char *)p);
  if (i == blocks.end()) return refuse(cudaErrorInvalidValue, "free of unknown");
  if (i->second.kind == 2) used[i->second.dev] -= i->second.n;
  munmap(p, i->second.n);
  blocks.erase(i);
  return cudaSuccess;
}
static Block *find(const void *p) {
  auto i = blocks.upper_bound((char *)p);
  if (i == blocks.begin()) return nullptr;
  --i;
  return (char *)p < i->first + i->second.n ? &i->second : nullptr;
}
EXPORT cudaError_t cudaMalloc(void **p, size_t n) {
  LOCK;
  if (unsafe("cudaMalloc")) return refuse(cudaErrorStreamCaptureUnsupported, "cudaMalloc");
  return grab(p, n, current, 2);
}
EXPORT cudaError_t cudaFree(void *p) {
  LOCK;
  if (p && unsafe("cudaFree")) return refuse(cudaErrorStreamCaptureUnsupported, "cudaFree");
  return drop(p);
}
EXPORT cudaError_t cudaHostAlloc(void **p, size_t n, unsigned) {
  LOCK;
  if (unsafe("cudaHostAlloc")) return refuse(cudaErrorStreamCaptureUnsupported, "cudaHostAlloc");
  return grab(p, n, current, 1);
}
EXPORT cudaError_t cudaMallocHost(void **p, size_t n) { return cudaHostAlloc(p, n, 0); }
EXPORT cudaError_t cudaFreeHost(void *p) {
  LOCK;
  if (unsafe("cudaFreeHost")) return refuse(cudaErrorStreamCaptureUnsupported, "cudaFreeHost");
  return drop(p);
}
EXPORT cudaError_t cudaMemGetInfo(size_t *f, size_t *t) {
  LOCK;
  *t = (size_t)(memory_gb * 1e9);
  *f = *t - used[current];
  return cudaSuccess;
}
EXPORT cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *a, const void *p) {
  LOCK;
  memset(a, 0, sizeof *a);
  auto i = find(p);
  a->type = !i ? cudaMemoryTypeUnregistered : i->kind == 1 ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
  a->device = i ? i->dev : -2;
  a->devicePointer = a->hostPointer = (void *)p;
  return cudaSuccess;
}
static cudaError_t copy(void *d, const void *s, size_t n, cudaMemcpyKind k, cudaStream_t st, bool sync) {
  LOCK;
  Stream *t = stream_of(st);
  if (sync && unsafe("cudaMemcpy")) return refuse(cudaErrorStreamCaptureUnsupported, "cudaMemcpy");
  auto e = launch("MEMCPY", st);
  if (e) return e;
  if (!t->cap && n) memmove(d, s, n);
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpyAsync(void *d, const void *s, size_t n, cudaMemcpyKind k, cudaStream_t st) {
  return copy(d, s, n, k, st, false);
}
EXPORT cudaError_t cudaMemcpy(void *d, const void *s, size_t n, cudaMemcpyKind k) {
  return copy(d, s, n, k, 0, true);
}
EXPORT cudaError_t cudaMemcpyPeerAsync(void *d, int, const void *s, int, size_t n, cudaStream_t st) {
  return copy(d, s, n, cudaMemcpyDeviceToDevice, st, false);
}
EXPORT cudaError_t cudaMemcpy2DAsync(void *d, size_t dp, const void *s, size_t sp, size_t w, size_t h,
                                     cudaMemcpyKind k, cudaStream_t st) {
  LOCK;
  auto e = launch("MEMCPY2D", st);
  if (e) return e;
  if (!stream_of(st)->cap)
    for (size_t i = 0; i < h; i++) memmove((char *)d + i * dp, (char *)s + i * sp, w);
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemsetAsync(void *p, int v, size_t n, cudaStream_t st) {
  LOCK;
  auto e = launch("MEMSET", st);
  if (e) return e;
  if (!stream_of(st)->cap && n < (64u << 20)) memset(p, v, n);
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemset(void *p, int v, size_t n) {
  if (unsafe("cudaMemset")) return refuse(cudaErrorStreamCaptureUnsupported, "cudaMemset");
  return cudaMemsetAsync(p, v, n, 0);
}