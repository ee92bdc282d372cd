// What the parts share: streams, captures and their rules, and the count of launches. Device memory is host
// memory. FAKE_GPUS: devices (1); FAKE_MEM_GB: of each (141); FAKE_LOG: a file for complaints (stderr);
// FAKE_BT: with backtraces.
#pragma once
#include <cuda_runtime_api.h>
#include <cxxabi.h>
#include <sys/mman.h>
#include <execinfo.h>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>
#include <algorithm>
#define EXPORT extern "C" __attribute__((visibility("default")))
inline std::recursive_mutex mutex;
#define LOCK std::lock_guard<std::recursive_mutex> lock_(mutex)
struct Graph {
  long nodes = 0;
  std::map<std::string, long> by;
};
struct Capture {
  unsigned long long id;
  cudaStreamCaptureMode mode;
  std::thread::id thread;
  struct Stream *origin;
  bool invalid = false;
  Graph *g;
  std::set<struct Stream *> unjoined, members;
};
struct Stream {
  int dev = 0;
  Capture *cap = nullptr;
  const char *what = "stream";
};
struct Event {
  int dev = -1;
  Capture *cap = nullptr;
  unsigned long long capid = 0;
  Stream *st = nullptr;
  bool recorded = false;
};
inline thread_local int current = 0;
inline thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;
inline thread_local cudaError_t last_error = cudaSuccess;
inline std::set<Capture *> captures;
inline unsigned long long next_id = 1;
inline int device_count() {
  static int n = getenv("FAKE_GPUS") ? atoi(getenv("FAKE_GPUS")) : 1;
  return n;
}
inline double memory_gb = getenv("FAKE_MEM_GB") ? atof(getenv("FAKE_MEM_GB")) : 141;
inline FILE *log_file() {
  static FILE *f = getenv("FAKE_LOG") ? fopen(getenv("FAKE_LOG"), "a") : stderr;
  return f;
}
inline std::map<int, size_t> used;
inline std::set<int> touched;
inline std::vector<std::string> complaints; // what a real device refuses, or computes outside of a graph
inline void say(const std::string &s) {
  LOCK;
  fprintf(log_file(), "%s\n", s.c_str());
  fflush(log_file());
}
inline void complain(const std::string &s) {
  LOCK;
  complaints.push_back(s);
  say(s);
}
inline void trace() {
  if (!getenv("FAKE_BT")) return;
  void *b[40];
  int n = backtrace(b, 40);
  char **s = backtrace_symbols(b, n);
  for (int i = 2; i < n && i < 26; i++) {
    std::string t = s[i];
    auto p = t.find('('), q = t.find('+', p);
    if (p != std::string::npos && q != std::string::npos) {
      int st;
      char *d = abi::__cxa_demangle(t.substr(p + 1, q - p - 1).c_str(), 0, 0, &st);
      if (d) {
        fprintf(log_file(), "      %.140s\n", d);
        free(d);
      }
    }
  }
  free(s);
  fflush(log_file());
}
inline cudaError_t refuse(cudaError_t e, const std::string &why) {
  complain("ERROR " + std::to_string(e) + " " + why);
  trace();
  last_error = e;
  return e;
}
inline Stream legacy[16];
inline Stream *stream_of(cudaStream_t s) {
  if (!s || s == (cudaStream_t)1 || s == (cudaStream_t)2) {
    legacy[current].dev = current;
    legacy[current].what = "LEGACY";
    return &legacy[current];
  }
  return (Stream *)s;
}
inline std::unordered_map<const void *, std::string> kernels;
inline std::string demangled(const std::string &m) {
  int st;
  char *d = abi::__cxa_demangle(m.c_str(), 0, 0, &st);
  std::string r = d ? d : m;
  free(d);
  return r;
}
inline Capture *own_capture() {
  for (auto c : captures)
    if (c->thread == std::this_thread::get_id()) return c;
  return nullptr;
}
inline bool unsafe(const char *what) { // a call that no capture stands
  if (thread_mode == cudaStreamCaptureModeRelaxed) return false;
  for (auto c : captures) {
    bool own = c->thread == std::this_thread::get_id();
    if ((own && c->mode != cudaStreamCaptureModeRelaxed) ||
        (!own && c->mode == cudaStreamCaptureModeGlobal && thread_mode == cudaStreamCaptureModeGlobal)) {
      c->invalid = true;
      complain(std::string("UNSAFE in capture: ") + what);
      trace();
      return true;
    }
  }
  return false;
}
inline cudaError_t launch(const std::string &name, cudaStream_t s) {
  LOCK;
  Stream *t = stream_of(s);
  if (t->dev != current)
    return refuse(cudaErrorInvalidResourceHandle, "launch of " + name + " on a stream of device " +
                                                      std::to_string(t->dev) + ", current is " +
                                                      std::to_string(current));
  touched.insert(current);
  if (t->cap) {
    if (t->cap->invalid) return refuse(cudaErrorStreamCaptureInvalidated, name);
    t->cap->g->nodes++;
    t->cap->g->by[name]++;
    if (t != t->cap->origin) t->cap->unjoined.insert(t);
  } else {
    if (own_capture()) complain("NOT CAPTURED: " + name + " on " + t->what + " while this thread captures");
  }
  return cudaSuccess;
}
struct Handle {
  cudaStream_t st = nullptr;
  int dev = 0;
};
inline int call(Handle *h, const char *n) { return launch(n, h->st) ? 13 : 0; }
