// Streams, events and captures with their rules; and what a test asks, through ctypes.
#include "fake.h"
// ---- streams, events
static cudaError_t make_stream(cudaStream_t *s) {
  LOCK;
  Stream *t = new Stream;
  t->dev = current;
  *s = (cudaStream_t)t;
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamCreate(cudaStream_t *s) { return make_stream(s); }
EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned) { return make_stream(s); }
EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned, int) { return make_stream(s); }
EXPORT cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
EXPORT cudaError_t cudaStreamGetPriority(cudaStream_t, int *p) {
  *p = 0;
  return cudaSuccess;
}
static cudaError_t wait_for(Stream *t, const char *what) {
  if (t->cap) {
    t->cap->invalid = true;
    return refuse(cudaErrorStreamCaptureUnsupported, std::string(what) + " on a capturing stream");
  }
  if (unsafe(what)) return refuse(cudaErrorStreamCaptureUnsupported, what);
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t s) {
  LOCK;
  return wait_for(stream_of(s), "cudaStreamSynchronize");
}
EXPORT cudaError_t cudaStreamQuery(cudaStream_t s) {
  LOCK;
  return wait_for(stream_of(s), "cudaStreamQuery");
}
EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned) {
  Event *v = new Event;
  v->dev = current;
  *e = (cudaEvent_t)v;
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventCreate(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, 0); }
EXPORT cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
EXPORT cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
  LOCK;
  Event *v = (Event *)e;
  Stream *t = stream_of(s);
  if (v->dev != t->dev)
    return refuse(cudaErrorInvalidResourceHandle,
                  "event of device " + std::to_string(v->dev) + " on stream of " + std::to_string(t->dev));
  v->st = t;
  v->recorded = true;
  v->cap = t->cap;
  v->capid = t->cap ? t->cap->id : 0;
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned) {
  return cudaEventRecord(e, s);
}
static bool captured(Event *v) { return v->cap && captures.count(v->cap) && v->cap->id == v->capid; }
EXPORT cudaError_t cudaEventQuery(cudaEvent_t e) {
  LOCK;
  Event *v = (Event *)e;
  if (captured(v)) {
    v->cap->invalid = true;
    return refuse(cudaErrorCapturedEvent, "cudaEventQuery of a captured event");
  }
  if (unsafe("cudaEventQuery")) return refuse(cudaErrorStreamCaptureUnsupported, "cudaEventQuery");
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t e) {
  LOCK;
  Event *v = (Event *)e;
  if (captured(v)) {
    v->cap->invalid = true;
    return refuse(cudaErrorCapturedEvent, "cudaEventSynchronize of a captured event");
  }
  if (unsafe("cudaEventSynchronize"))
    return refuse(cudaErrorStreamCaptureUnsupported, "cudaEventSynchronize");
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t, cudaEvent_t) {
  *ms = 1;
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) {
  LOCK;
  Event *v = (Event *)e;
  Stream *t = stream_of(s);
  if (!v->recorded) return cudaSuccess;
  bool joins = captured(v);
  if (t->cap && !joins && v->st != t) {
    t->cap->invalid = true;
    return refuse(cudaErrorStreamCaptureIsolation, "a capturing stream waits for work outside the capture");
  }
  if (joins && !t->cap) {
    if (t == &legacy[current]) {
      v->cap->invalid = true;
      return refuse(cudaErrorStreamCaptureImplicit, "the legacy stream waits for a captured event");
    }
    t->cap = v->cap;
    v->cap->unjoined.insert(t);
    v->cap->members.insert(t);
  } else if (joins && t->cap) {
    v->cap->unjoined.erase(v->st);
  }
  return cudaSuccess;
}
// ---- capture
EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode m) {
  LOCK;
  if (!s) return refuse(cudaErrorStreamCaptureUnsupported, "capture on the legacy stream");
  Stream *t = stream_of(s);
  if (t->cap) return refuse(cudaErrorIllegalState, "already capturing");
  Capture *c = new Capture{next_id++, m, std::this_thread::get_id(), t};
  c->g = new Graph;
  t->cap = c;
  captures.insert(c);
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g) {
  LOCK;
  Stream *t = stream_of(s);
  Capture *c = t->cap;
  *g = nullptr;
  if (!c) return refuse(cudaErrorIllegalState, "no capture");
  bool loose = false;
  for (auto u : c->unjoined)
    if (u != t) loose = true;
  for (auto u : c->members)
    if (u->cap == c) u->cap = nullptr;
  t->cap = nullptr;
  captures.erase(c);
  if (c->thread != std::this_thread::get_id())
    return refuse(cudaErrorStreamCaptureWrongThread, "end of capture");
  if (c->invalid) return refuse(cudaErrorStreamCaptureInvalidated, "end of capture");
  if (loose) return refuse(cudaErrorStreamCaptureUnjoined, "end of capture");
  *g = (cudaGraph_t)c->g;
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, cudaStreamCaptureStatus *st,
                                            unsigned long long *id, cudaGraph_t *g, const cudaGraphNode_t **d,
                                            const cudaGraphEdgeData **e, size_t *n) {
  LOCK;
  Capture *c = stream_of(s)->cap;
  *st = !c           ? cudaStreamCaptureStatusNone
        : c->invalid ? cudaStreamCaptureStatusInvalidated
                     : cudaStreamCaptureStatusActive;
  if (id) *id = c ? c->id : 0;
  if (g) *g = c ? (cudaGraph_t)c->g : nullptr;
  if (d) *d = nullptr;
  if (e) *e = nullptr;
  if (n) *n = 0;
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus *st) {
  return cudaStreamGetCaptureInfo(s, st, 0, 0, 0, 0, 0);
}
EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode *m) {
  auto t = *m;
  *m = thread_mode;
  thread_mode = t;
  return cudaSuccess;
}
static std::string last_graph;
static long graphs = 0;
static std::string dump(const std::map<std::string, long> &by, long total, const char *title) {
  std::vector<std::pair<long, std::string>> v;
  for (auto &i : by) v.push_back({i.second, i.first});
  std::sort(v.rbegin(), v.rend());
  std::string o = std::string(title) + " " + std::to_string(total);
  for (auto &i : v) { o += "\n    " + std::to_string(i.first) + "  " + i.second.substr(0, 300); }
  return o;
}
EXPORT cudaError_t cudaGraphInstantiate(cudaGraphExec_t *x, cudaGraph_t g, unsigned long long) {
  Graph *r = (Graph *)g;
  graphs++;
  last_graph = dump(r->by, r->nodes, "GRAPH nodes");
  *x = (cudaGraphExec_t)r;
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *x, cudaGraph_t g, unsigned long long f) {
  return cudaGraphInstantiate(x, g, f);
}
EXPORT cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *, size_t *n) {
  *n = ((Graph *)g)->nodes;
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t s) {
  LOCK;
  Stream *t = stream_of(s);
  if (t->dev != current)
    return refuse(cudaErrorInvalidResourceHandle, "graph launch on another device's stream");
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphDestroy(cudaGraph_t) { return cudaSuccess; }
EXPORT cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) { return cudaSuccess; }
// ---- what a test asks
EXPORT const char *fake_graph() { return last_graph.c_str(); }
EXPORT long fake_graphs() { return graphs; }
EXPORT long fake_used(int dev) {
  LOCK;
  return (long)used[dev];
}
EXPORT void fake_memory(double gb) {
  LOCK;
  memory_gb = gb;
}
EXPORT int fake_touched(int dev) {
  LOCK;
  return (int)touched.count(dev);
}
EXPORT const char *fake_complaints() {
  LOCK;
  static std::string all;
  all.clear();
  for (auto &c : complaints) all += c + "\n";
  complaints.clear();
  return all.c_str();
}
