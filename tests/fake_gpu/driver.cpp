// libcuda: what torch and Triton's launcher look up in it. Calls that nothing here makes say so.
#include <cstdio>
#define EXPORT extern "C"
EXPORT int cuInit(unsigned) { return 0; }
EXPORT int cuDriverGetVersion(int *v) { return *v = 13020, 0; }
EXPORT int cuGetErrorString(int, const char **s) { return *s = "fake", 0; }
EXPORT int cuDeviceGet(int *d, int i) { return *d = i, 0; }
EXPORT int cuDeviceGetAttribute(int *v, int, int) { return *v = 1, 0; }
EXPORT int cuDevicePrimaryCtxGetState(int, unsigned *flags, int *active) { return *flags = 0, *active = 1, 0; }
EXPORT int cuDevicePrimaryCtxRetain(void **c, int) { return *c = (void *)8, 0; }
EXPORT int cuCtxGetCurrent(void **c) { return *c = (void *)8, 0; }
EXPORT int cuCtxSetCurrent(void *) { return 0; }
#define ABSENT(n)                                                                                            \
  EXPORT int n() { return fprintf(stderr, "fake driver: %s\n", #n), 801; }
ABSENT(cuFuncGetAttribute)
ABSENT(cuFuncSetAttribute)
ABSENT(cuFuncSetCacheConfig)
ABSENT(cuLaunchCooperativeKernel)
ABSENT(cuLaunchKernel)
ABSENT(cuLinkAddData_v2)
ABSENT(cuLinkComplete)
ABSENT(cuLinkCreate_v2)
ABSENT(cuModuleGetFunction)
ABSENT(cuModuleLoad)
ABSENT(cuModuleLoadData)
ABSENT(cuModuleLoadDataEx)
ABSENT(cuModuleUnload)
ABSENT(cuOccupancyMaxActiveBlocksPerMultiprocessor)
ABSENT(cuPointerGetAttribute)
ABSENT(cuTensorMapEncodeTiled)
