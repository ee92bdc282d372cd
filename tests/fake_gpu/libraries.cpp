// cuBLAS and cuDNN: each call is a launch. What is not here is made by build.sh, as a launch or as
// UNIMPLEMENTED.
#include "fake.h"
EXPORT int cublasCreate_v2(Handle **h) {
  LOCK;
  if (unsafe("cublasCreate")) return 13;
  *h = new Handle;
  (*h)->dev = current;
  return 0;
}
EXPORT int cublasSgemmStridedBatched(Handle *h) { return call(h, "cublasSgemmStridedBatched"); }
EXPORT int cublasDestroy_v2(Handle *) { return 0; }
EXPORT int cublasSetStream_v2(Handle *h, cudaStream_t s) {
  h->st = s;
  return 0;
}
EXPORT int cublasSetWorkspace_v2(Handle *, void *, size_t) { return 0; }
EXPORT int cublasSetMathMode(Handle *, int) { return 0; }
EXPORT int cublasGetMathMode(Handle *, int *m) {
  *m = 0;
  return 0;
}
EXPORT int cublasSetPointerMode_v2(Handle *, int) { return 0; }
EXPORT int cublasGetPointerMode_v2(Handle *, int *m) {
  *m = 0;
  return 0;
}
EXPORT int cublasLtMatmul(void *, void *, const void *, const void *, void *, const void *, void *,
                          const void *, const void *, void *, void *, void *, const void *, void *, size_t,
                          cudaStream_t s) {
  return launch("cublasLtMatmul", s) ? 13 : 0;
}
EXPORT int cublasLtMatmulAlgoGetHeuristic(void *, void *, void *, void *, void *, void *, void *, int n,
                                          void *res, int *got) {
  *got = 1;
  memset(res, 0, 96);
  return 0;
}
EXPORT int cudnnCreate(Handle **h) {
  *h = new Handle;
  return 0;
}
EXPORT int cudnnSetStream(Handle *h, cudaStream_t s) {
  h->st = s;
  return 0;
}
EXPORT int cudnnGetStream(Handle *h, cudaStream_t *s) {
  *s = h->st;
  return 0;
}
EXPORT int cudnnBackendCreateDescriptor(int, void **d) {
  *d = calloc(1, 64);
  return 0;
}
EXPORT int cudnnBackendDestroyDescriptor(void *) { return 0; }
EXPORT int cudnnBackendSetAttribute(void *, int, int, int64_t, const void *) { return 0; }
EXPORT int cudnnBackendFinalize(void *) { return 0; }
EXPORT int cudnnBackendGetAttribute(void *, int a, int type, int64_t want, int64_t *got, void *out) {
  if (got) *got = want > 0 ? std::min<int64_t>(want, 1) : 1;
  if (out && want > 0) {
    if (type == 3 || type == 8) *(int64_t *)out = 0;
  }
  return 0;
}
EXPORT int cudnnBackendExecute(Handle *h, void *, void *) { return call(h, "cudnnBackendExecute"); }
EXPORT int cudnnBatchNormalizationForwardTrainingEx(Handle *h) { return call(h, "cudnnBNForward"); }
EXPORT int cudnnBatchNormalizationForwardInference(Handle *h) { return call(h, "cudnnBNInference"); }
EXPORT int cudnnBatchNormalizationBackwardEx(Handle *h) { return call(h, "cudnnBNBackward"); }
EXPORT int cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(Handle *, int, int, void *, void *,
                                                                    void *, void *, void *, size_t *n) {
  *n = 0;
  return 0;
}
EXPORT int cudnnGetBatchNormalizationBackwardExWorkspaceSize(Handle *, int, int, void *, void *, void *,
                                                             void *, void *, void *, void *, size_t *n) {
  *n = 0;
  return 0;
}
EXPORT int cudnnGetBatchNormalizationTrainingExReserveSpaceSize(Handle *, int, int, void *, void *,
                                                                size_t *n) {
  *n = 0;
  return 0;
}
#define DESC(n)                                                                                              \
  EXPORT int n(void **d) {                                                                                   \
    *d = calloc(1, 256);                                                                                     \
    return 0;                                                                                                \
  }
DESC(cudnnCreateTensorDescriptor)
DESC(cudnnCreateFilterDescriptor)
DESC(cudnnCreateConvolutionDescriptor) DESC(cudnnCreateActivationDescriptor)
    DESC(cudnnCreateDropoutDescriptor) DESC(cudnnCreatePoolingDescriptor) EXPORT
    int cudnnPoolingForward(Handle *h) {
  return call(h, "cudnnPoolingForward");
}
int fake_unimpl(const char *n) {
  complain(std::string("UNIMPLEMENTED ") + n);
  trace();
  return 0;
}
int fake_blas(void *h, const char *n) { return call((Handle *)h, n); }