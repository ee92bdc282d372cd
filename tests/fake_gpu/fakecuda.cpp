// A CUDA runtime, cuBLAS and cuDNN that compute nothing: device memory is host memory, kernels are counted.
// Streams, events, captures, allocations and the rules of capture are kept, so that torch's own C++ runs.
#include <cuda_runtime_api.h>
#include <cxxabi.h>
#include <sys/mman.h>
#include <execinfo.h>
#include <atomic>
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
#define X extern "C" __attribute__((visibility("default")))
static std::recursive_mutex M;
#define L std::lock_guard<std::recursive_mutex> lock_(M)
struct Gr { long nodes = 0; std::map<std::string, long> by; };
struct Cap { unsigned long long id; cudaStreamCaptureMode mode; std::thread::id tid; struct St* origin; bool invalid=false; Gr* g; std::set<struct St*> unjoined, members; };
struct St { int dev=0; Cap* cap=nullptr; long launches=0; const char* what="stream"; };
struct Ev { int dev=-1; Cap* cap=nullptr; unsigned long long capid=0; St* st=nullptr; bool recorded=false; };
static thread_local int cur=0; static thread_local cudaStreamCaptureMode tmode=cudaStreamCaptureModeGlobal;
static thread_local cudaError_t last=cudaSuccess;
static std::set<Cap*> caps; static unsigned long long next_id=1;
static int ndev(){ static int n=getenv("FAKE_GPUS")?atoi(getenv("FAKE_GPUS")):1; return n; }
static double mem_gb=getenv("FAKE_MEM_GB")?atof(getenv("FAKE_MEM_GB")):141; static double memgb(){ return mem_gb; }
static FILE* lg(){ static FILE* f=getenv("FAKE_LOG")?fopen(getenv("FAKE_LOG"),"a"):stderr; return f; }
static std::map<std::string,long> eager, api; static std::map<int,size_t> used, peak; static std::set<int> touched;
static bool verbose(){ static bool v=getenv("FAKE_VERBOSE")!=nullptr; return v; }
static std::vector<std::string> complaints;  // what a real device refuses, or computes outside of a graph
static void say(const std::string&s){ L; fprintf(lg(),"%s\n",s.c_str()); fflush(lg()); }
static void complain(const std::string&s){ L; complaints.push_back(s); say(s); }
static void trace(){ if(!getenv("FAKE_BT")) return; void*b[40]; int n=backtrace(b,40); char**s=backtrace_symbols(b,n); for(int i=2;i<n&&i<26;i++){ std::string t=s[i]; auto p=t.find('('),q=t.find('+',p); if(p!=std::string::npos&&q!=std::string::npos){ int st; char*d=abi::__cxa_demangle(t.substr(p+1,q-p-1).c_str(),0,0,&st); if(d){ fprintf(lg(),"      %.140s\n",d); free(d);} } } free(s); fflush(lg()); }
static cudaError_t err(cudaError_t e,const std::string&why){ complain("ERROR "+std::to_string(e)+" "+why); trace(); last=e; return e; }
static St dflt[16]; static St* S(cudaStream_t s){ if(!s||s==(cudaStream_t)1||s==(cudaStream_t)2){ dflt[cur].dev=cur; dflt[cur].what="LEGACY"; return &dflt[cur]; } return (St*)s; }
static std::unordered_map<const void*,std::string> names;
static std::string shortn(const std::string&m){ int st; char*d=abi::__cxa_demangle(m.c_str(),0,0,&st); std::string r=d?d:m; free(d); return r; }
static Cap* mine(){ for(auto c:caps) if(c->tid==std::this_thread::get_id()) return c; return nullptr; }
static bool unsafe(const char*what){ // a call that no capture stands
  if(tmode==cudaStreamCaptureModeRelaxed) return false;
  for(auto c:caps){ bool own=c->tid==std::this_thread::get_id();
    if((own&&c->mode!=cudaStreamCaptureModeRelaxed)||(!own&&c->mode==cudaStreamCaptureModeGlobal&&tmode==cudaStreamCaptureModeGlobal)){ c->invalid=true; complain(std::string("UNSAFE in capture: ")+what); trace(); return true; } }
  return false; }
static cudaError_t launch(const std::string&name,cudaStream_t s){ L; St*t=S(s);
  if(t->dev!=cur) return err(cudaErrorInvalidResourceHandle,"launch of "+name+" on a stream of device "+std::to_string(t->dev)+", current is "+std::to_string(cur));
  touched.insert(cur);
  if(t->cap){ if(t->cap->invalid) return err(cudaErrorStreamCaptureInvalidated,name); t->cap->g->nodes++; t->cap->g->by[name]++; if(t!=t->cap->origin) t->cap->unjoined.insert(t); }
  else { eager[name]++; if(mine()) complain("NOT CAPTURED: "+name+" on "+t->what+" while this thread captures"); }
  t->launches++; return cudaSuccess; }
// ---- registration
X void** __cudaRegisterFatBinary(void*){ static void* h; return &h; }
X void __cudaRegisterFatBinaryEnd(void**){}
X void __cudaUnregisterFatBinary(void**){}
X void __cudaRegisterFunction(void**,const char*host,char*dev,const char*name,int,void*,void*,void*,void*,int*){ L; names[host]=name?name:dev; }
X void __cudaRegisterVar(void**,char*,char*,const char*,int,size_t,int,int){}
struct Cfg{dim3 g,b;size_t s;void*st;}; static thread_local std::vector<Cfg> cfg;
X char __cudaInitModule(void**){ return 0; }
X unsigned __cudaPushCallConfiguration(dim3 g,dim3 b,size_t s,void*st){ cfg.push_back({g,b,s,st}); return 0; }
X cudaError_t __cudaPopCallConfiguration(dim3*g,dim3*b,size_t*s,void*st){ auto c=cfg.back(); cfg.pop_back(); *g=c.g;*b=c.b;*s=c.s;*(void**)st=c.st; return cudaSuccess; }
X cudaError_t __cudaGetKernel(cudaKernel_t*k,const void*f){ *k=(cudaKernel_t)f; return cudaSuccess; }
static std::unordered_map<const void*,std::string> pretty;
static const std::string& nm(const void*f){ L; auto&p=pretty[f]; if(p.empty()){ auto i=names.find(f); p=i==names.end()?"?":shortn(i->second);} return p; }
static cudaError_t chk(dim3 g,dim3 b,const void*f){ if(!g.x||!g.y||!g.z||!b.x||b.x*b.y*b.z>1024||g.y>65535||g.z>65535) return err(cudaErrorInvalidConfiguration,"bad grid "+nm(f)); return cudaSuccess; }
X cudaError_t __cudaLaunchKernel(cudaKernel_t k,dim3 g,dim3 b,void**,size_t,cudaStream_t s){ if(auto e=chk(g,b,(void*)k)) return e; return launch(nm((void*)k),s); }
X cudaError_t cudaLaunchKernel(const void*f,dim3 g,dim3 b,void**,size_t,cudaStream_t s){ if(auto e=chk(g,b,f)) return e; return launch(nm(f),s); }
X cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*c,const void*f,void**){ return launch(nm(f),c->stream); }
X cudaError_t cudaLaunchHostFunc(cudaStream_t s,cudaHostFn_t fn,void*d){ launch("HOSTFUNC",s); L; if(!S(s)->cap) fn(d); return cudaSuccess; }
X cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*a,const void*){ memset(a,0,sizeof*a); a->maxThreadsPerBlock=1024; a->numRegs=32; a->binaryVersion=90; a->ptxVersion=90; a->maxDynamicSharedSizeBytes=49152; return cudaSuccess; }
X cudaError_t cudaFuncSetAttribute(const void*,cudaFuncAttribute,int){ return cudaSuccess; }
X cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int*n,const void*,int,size_t){ *n=2; return cudaSuccess; }
X cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int*n,const void*,int,size_t,unsigned){ *n=2; return cudaSuccess; }
// ---- devices
X cudaError_t cudaGetDeviceCount(int*n){ *n=ndev(); return cudaSuccess; }
X cudaError_t cudaGetDevice(int*d){ *d=cur; return cudaSuccess; }
X cudaError_t cudaSetDevice(int d){ if(d>=ndev()) return err(cudaErrorInvalidDevice,"cudaSetDevice"); cur=d; return cudaSuccess; }
X cudaError_t cudaDriverGetVersion(int*v){ *v=13020; return cudaSuccess; }
X cudaError_t cudaRuntimeGetVersion(int*v){ *v=13020; return cudaSuccess; }
X cudaError_t cudaGetDeviceProperties(cudaDeviceProp*p,int){ memset(p,0,sizeof*p); strcpy(p->name,"FAKE H200"); p->major=9;p->minor=0; p->totalGlobalMem=(size_t)(memgb()*1e9); p->sharedMemPerBlock=49152; p->sharedMemPerBlockOptin=232448; p->sharedMemPerMultiprocessor=233472; p->reservedSharedMemPerBlock=1024; p->regsPerBlock=65536; p->regsPerMultiprocessor=65536; p->warpSize=32; p->maxThreadsPerBlock=1024; p->maxThreadsPerMultiProcessor=2048; p->maxBlocksPerMultiProcessor=32; p->multiProcessorCount=132; p->l2CacheSize=60<<20; p->persistingL2CacheMaxSize=30<<20; for(int i=0;i<3;i++){p->maxThreadsDim[i]=i<2?1024:64; p->maxGridSize[i]=i?65535:2147483647;} p->unifiedAddressing=1; p->concurrentKernels=1; p->textureAlignment=512; p->memoryBusWidth=6144; return cudaSuccess; }
X cudaError_t cudaDeviceGetAttribute(int*v,cudaDeviceAttr a,int){ *v=1; switch((int)a){ case 1:*v=1024;break; case 2:case 3:*v=1024;break; case 4:*v=64;break; case 5:*v=2147483647;break; case 6:case 7:*v=65535;break; case 8:*v=49152;break; case 10:*v=32;break; case 12:*v=65536;break; case 16:*v=132;break; case 38:*v=60<<20;break; case 39:*v=2048;break; case 75:*v=9;break; case 76:*v=0;break; case 81:*v=233472;break; case 82:*v=65536;break; case 97:*v=232448;break; case 106:*v=32;break; } return cudaSuccess; }
X cudaError_t cudaDeviceGetStreamPriorityRange(int*a,int*b){ *a=0;*b=-5; return cudaSuccess; }
X cudaError_t cudaDeviceSynchronize(){ L; api["cudaDeviceSynchronize"]++; if(unsafe("cudaDeviceSynchronize")) return err(cudaErrorStreamCaptureUnsupported,"cudaDeviceSynchronize"); return cudaSuccess; }
X cudaError_t cudaDeviceCanAccessPeer(int*c,int,int){ *c=0; return cudaSuccess; }
X cudaError_t cudaDeviceGetPCIBusId(char*s,int n,int d){ snprintf(s,n,"0000:%02d:00.0",d); return cudaSuccess; }
X cudaError_t cudaGetLastError(){ auto e=last; last=cudaSuccess; return e; }
X cudaError_t cudaPeekAtLastError(){ return last; }
X const char* cudaGetErrorString(cudaError_t e){ static thread_local char b[64]; if(e==cudaErrorMemoryAllocation) return "out of memory"; snprintf(b,64,"fake error %d",(int)e); return b; }
X const char* cudaGetErrorName(cudaError_t e){ return cudaGetErrorString(e); }
X cudaError_t cudaGetDriverEntryPointByVersion(const char*n,void**f,unsigned,unsigned long long,cudaDriverEntryPointQueryResult*r){ *f=nullptr; if(r)*r=cudaDriverEntryPointSymbolNotFound; if(verbose()) say(std::string("driver entry wanted: ")+n); return cudaErrorSymbolNotFound; }
// ---- memory
struct Al{size_t n;int dev;int kind;}; static std::map<char*,Al> al;
static cudaError_t grab(void**p,size_t n,int dev,int kind){ L; size_t m=(n+4095)&~4095ul; if(kind==2&&used[dev]+m>memgb()*1e9){ last=cudaErrorMemoryAllocation; api["OOM"]++; return cudaErrorMemoryAllocation; } void*q=mmap(0,m?m:4096,PROT_READ|PROT_WRITE,MAP_PRIVATE|MAP_ANONYMOUS|MAP_NORESERVE,-1,0); if(q==MAP_FAILED) return err(cudaErrorMemoryAllocation,"mmap"); al[(char*)q]={m?m:4096,dev,kind}; if(kind==2){ used[dev]+=m; peak[dev]=std::max(peak[dev],used[dev]); touched.insert(dev);} *p=q; return cudaSuccess; }
static cudaError_t drop(void*p){ if(!p) return cudaSuccess; L; auto i=al.find((char*)p); if(i==al.end()) return err(cudaErrorInvalidValue,"free of unknown"); if(i->second.kind==2) used[i->second.dev]-=i->second.n; munmap(p,i->second.n); al.erase(i); return cudaSuccess; }
static Al* find(const void*p){ auto i=al.upper_bound((char*)p); if(i==al.begin()) return nullptr; --i; return (char*)p<i->first+i->second.n?&i->second:nullptr; }
X cudaError_t cudaMalloc(void**p,size_t n){ L; api["cudaMalloc"]++; if(unsafe("cudaMalloc")) return err(cudaErrorStreamCaptureUnsupported,"cudaMalloc"); return grab(p,n,cur,2); }
X cudaError_t cudaFree(void*p){ L; api["cudaFree"]++; if(p&&unsafe("cudaFree")) return err(cudaErrorStreamCaptureUnsupported,"cudaFree"); return drop(p); }
X cudaError_t cudaHostAlloc(void**p,size_t n,unsigned){ L; api["cudaHostAlloc"]++; if(unsafe("cudaHostAlloc")) return err(cudaErrorStreamCaptureUnsupported,"cudaHostAlloc"); return grab(p,n,cur,1); }
X cudaError_t cudaMallocHost(void**p,size_t n){ return cudaHostAlloc(p,n,0); }
X cudaError_t cudaFreeHost(void*p){ L; if(unsafe("cudaFreeHost")) return err(cudaErrorStreamCaptureUnsupported,"cudaFreeHost"); return drop(p); }
X cudaError_t cudaMemGetInfo(size_t*f,size_t*t){ L; *t=(size_t)(memgb()*1e9); *f=*t-used[cur]; return cudaSuccess; }
X cudaError_t cudaPointerGetAttributes(cudaPointerAttributes*a,const void*p){ L; memset(a,0,sizeof*a); auto i=find(p); a->type=!i?cudaMemoryTypeUnregistered:i->kind==1?cudaMemoryTypeHost:cudaMemoryTypeDevice; a->device=i?i->dev:-2; a->devicePointer=a->hostPointer=(void*)p; return cudaSuccess; }
static cudaError_t cpy(void*d,const void*s,size_t n,cudaMemcpyKind k,cudaStream_t st,bool sync){ L; St*t=S(st); api[std::string(sync?"memcpy ":"memcpyAsync ")+(k==1?"H2D":k==2?"D2H":k==3?"D2D":"?")]++;
  if(sync&&unsafe("cudaMemcpy")) return err(cudaErrorStreamCaptureUnsupported,"cudaMemcpy");
  auto e=launch("MEMCPY",st); if(e) return e; if(!t->cap&&n) memmove(d,s,n); return cudaSuccess; }
X cudaError_t cudaMemcpyAsync(void*d,const void*s,size_t n,cudaMemcpyKind k,cudaStream_t st){ return cpy(d,s,n,k,st,false); }
X cudaError_t cudaMemcpy(void*d,const void*s,size_t n,cudaMemcpyKind k){ return cpy(d,s,n,k,0,true); }
X cudaError_t cudaMemcpyPeerAsync(void*d,int,const void*s,int,size_t n,cudaStream_t st){ return cpy(d,s,n,cudaMemcpyDeviceToDevice,st,false); }
X cudaError_t cudaMemcpy2DAsync(void*d,size_t dp,const void*s,size_t sp,size_t w,size_t h,cudaMemcpyKind k,cudaStream_t st){ L; auto e=launch("MEMCPY2D",st); if(e) return e; if(!S(st)->cap) for(size_t i=0;i<h;i++) memmove((char*)d+i*dp,(char*)s+i*sp,w); return cudaSuccess; }
X cudaError_t cudaMemsetAsync(void*p,int v,size_t n,cudaStream_t st){ L; auto e=launch("MEMSET",st); if(e) return e; if(!S(st)->cap&&n<(64u<<20)) memset(p,v,n); return cudaSuccess; }
X cudaError_t cudaMemset(void*p,int v,size_t n){ if(unsafe("cudaMemset")) return err(cudaErrorStreamCaptureUnsupported,"cudaMemset"); return cudaMemsetAsync(p,v,n,0); }
// ---- streams, events
static cudaError_t mk(cudaStream_t*s){ L; St*t=new St; t->dev=cur; *s=(cudaStream_t)t; api["streams"]++; return cudaSuccess; }
X cudaError_t cudaStreamCreate(cudaStream_t*s){ return mk(s); }
X cudaError_t cudaStreamCreateWithFlags(cudaStream_t*s,unsigned){ return mk(s); }
X cudaError_t cudaStreamCreateWithPriority(cudaStream_t*s,unsigned,int){ return mk(s); }
X cudaError_t cudaStreamDestroy(cudaStream_t){ return cudaSuccess; }
X cudaError_t cudaStreamGetPriority(cudaStream_t,int*p){ *p=0; return cudaSuccess; }
static cudaError_t wait_(St*t,const char*what){ api[what]++; if(t->cap){ t->cap->invalid=true; return err(cudaErrorStreamCaptureUnsupported,std::string(what)+" on a capturing stream"); } if(unsafe(what)) return err(cudaErrorStreamCaptureUnsupported,what); return cudaSuccess; }
X cudaError_t cudaStreamSynchronize(cudaStream_t s){ L; return wait_(S(s),"cudaStreamSynchronize"); }
X cudaError_t cudaStreamQuery(cudaStream_t s){ L; return wait_(S(s),"cudaStreamQuery"); }
X cudaError_t cudaEventCreateWithFlags(cudaEvent_t*e,unsigned){ Ev*v=new Ev; v->dev=cur; *e=(cudaEvent_t)v; return cudaSuccess; }
X cudaError_t cudaEventCreate(cudaEvent_t*e){ return cudaEventCreateWithFlags(e,0); }
X cudaError_t cudaEventDestroy(cudaEvent_t){ return cudaSuccess; }
X cudaError_t cudaEventRecord(cudaEvent_t e,cudaStream_t s){ L; Ev*v=(Ev*)e; St*t=S(s); if(v->dev!=t->dev) return err(cudaErrorInvalidResourceHandle,"event of device "+std::to_string(v->dev)+" on stream of "+std::to_string(t->dev)); v->st=t; v->recorded=true; v->cap=t->cap; v->capid=t->cap?t->cap->id:0; return cudaSuccess; }
X cudaError_t cudaEventRecordWithFlags(cudaEvent_t e,cudaStream_t s,unsigned){ return cudaEventRecord(e,s); }
static bool live(Ev*v){ return v->cap&&caps.count(v->cap)&&v->cap->id==v->capid; }
X cudaError_t cudaEventQuery(cudaEvent_t e){ L; Ev*v=(Ev*)e; if(live(v)){ v->cap->invalid=true; return err(cudaErrorCapturedEvent,"cudaEventQuery of a captured event"); } if(unsafe("cudaEventQuery")) return err(cudaErrorStreamCaptureUnsupported,"cudaEventQuery"); return cudaSuccess; }
X cudaError_t cudaEventSynchronize(cudaEvent_t e){ L; Ev*v=(Ev*)e; api["cudaEventSynchronize"]++; if(live(v)){ v->cap->invalid=true; return err(cudaErrorCapturedEvent,"cudaEventSynchronize of a captured event"); } if(unsafe("cudaEventSynchronize")) return err(cudaErrorStreamCaptureUnsupported,"cudaEventSynchronize"); return cudaSuccess; }
X cudaError_t cudaEventElapsedTime(float*ms,cudaEvent_t,cudaEvent_t){ *ms=1; return cudaSuccess; }
X cudaError_t cudaStreamWaitEvent(cudaStream_t s,cudaEvent_t e,unsigned){ L; Ev*v=(Ev*)e; St*t=S(s); if(!v->recorded) return cudaSuccess; bool vc=live(v);
  if(t->cap&&!vc&&v->st!=t){ t->cap->invalid=true; return err(cudaErrorStreamCaptureIsolation,"a capturing stream waits for work outside the capture"); }
  if(vc&&!t->cap){ if(t==&dflt[cur]){ v->cap->invalid=true; return err(cudaErrorStreamCaptureImplicit,"the legacy stream waits for a captured event"); } t->cap=v->cap; v->cap->unjoined.insert(t); v->cap->members.insert(t); }
  else if(vc&&t->cap){ v->cap->unjoined.erase(v->st); }
  return cudaSuccess; }
// ---- capture
X cudaError_t cudaStreamBeginCapture(cudaStream_t s,cudaStreamCaptureMode m){ L; if(!s) return err(cudaErrorStreamCaptureUnsupported,"capture on the legacy stream"); St*t=S(s); if(t->cap) return err(cudaErrorIllegalState,"already capturing"); Cap*c=new Cap{next_id++,m,std::this_thread::get_id(),t}; c->g=new Gr; t->cap=c; caps.insert(c); return cudaSuccess; }
X cudaError_t cudaStreamEndCapture(cudaStream_t s,cudaGraph_t*g){ L; St*t=S(s); Cap*c=t->cap; *g=nullptr; if(!c) return err(cudaErrorIllegalState,"no capture"); bool un=false; for(auto u:c->unjoined) if(u!=t) un=true; for(auto u:c->members) if(u->cap==c) u->cap=nullptr; t->cap=nullptr; caps.erase(c); if(c->tid!=std::this_thread::get_id()) return err(cudaErrorStreamCaptureWrongThread,"end of capture"); if(c->invalid) return err(cudaErrorStreamCaptureInvalidated,"end of capture"); if(un) return err(cudaErrorStreamCaptureUnjoined,"end of capture"); *g=(cudaGraph_t)c->g; return cudaSuccess; }
X cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s,cudaStreamCaptureStatus*st,unsigned long long*id,cudaGraph_t*g,const cudaGraphNode_t**d,const cudaGraphEdgeData**e,size_t*n){ L; Cap*c=S(s)->cap; *st=!c?cudaStreamCaptureStatusNone:c->invalid?cudaStreamCaptureStatusInvalidated:cudaStreamCaptureStatusActive; if(id)*id=c?c->id:0; if(g)*g=c?(cudaGraph_t)c->g:nullptr; if(d)*d=nullptr; if(e)*e=nullptr; if(n)*n=0; return cudaSuccess; }
X cudaError_t cudaStreamIsCapturing(cudaStream_t s,cudaStreamCaptureStatus*st){ return cudaStreamGetCaptureInfo(s,st,0,0,0,0,0); }
X cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*m){ auto t=*m; *m=tmode; tmode=t; return cudaSuccess; }
static std::string last_graph; static long graphs=0;
static std::string dump(const std::map<std::string,long>&by,long total,const char*title){ std::vector<std::pair<long,std::string>> v; for(auto&i:by) v.push_back({i.second,i.first}); std::sort(v.rbegin(),v.rend()); std::string o=std::string(title)+" "+std::to_string(total); for(auto&i:v){ o+="\n    "+std::to_string(i.first)+"  "+i.second.substr(0,300);} return o; }
X cudaError_t cudaGraphInstantiate(cudaGraphExec_t*x,cudaGraph_t g,unsigned long long){ Gr*r=(Gr*)g; graphs++; last_graph=dump(r->by,r->nodes,"GRAPH nodes"); if(getenv("FAKE_GRAPHS")) say(last_graph); *x=(cudaGraphExec_t)r; return cudaSuccess; }
X cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t*x,cudaGraph_t g,unsigned long long f){ return cudaGraphInstantiate(x,g,f); }
X cudaError_t cudaGraphGetNodes(cudaGraph_t g,cudaGraphNode_t*,size_t*n){ *n=((Gr*)g)->nodes; return cudaSuccess; }
X cudaError_t cudaGraphLaunch(cudaGraphExec_t,cudaStream_t s){ L; api["cudaGraphLaunch"]++; St*t=S(s); if(t->dev!=cur) return err(cudaErrorInvalidResourceHandle,"graph launch on another device's stream"); return cudaSuccess; }
X cudaError_t cudaGraphDestroy(cudaGraph_t){ return cudaSuccess; }
X cudaError_t cudaGraphExecDestroy(cudaGraphExec_t){ return cudaSuccess; }
// ---- libraries
struct H{ cudaStream_t st=nullptr; int dev=0; }; static int blas(H*h,const char*n){ return launch(n,h->st)?13:0; }
X int cublasCreate_v2(H**h){ L; if(unsafe("cublasCreate")) return 13; *h=new H; (*h)->dev=cur; api["cublasCreate"]++; return 0; }
X int cublasSgemmStridedBatched(H*h){ return blas(h,"cublasSgemmStridedBatched"); }
X int cublasDestroy_v2(H*){ return 0; }
X int cublasSetStream_v2(H*h,cudaStream_t s){ h->st=s; return 0; }
X int cublasSetWorkspace_v2(H*,void*,size_t){ return 0; }
X int cublasSetMathMode(H*,int m){ L; api["math mode "+std::to_string(m)]++; return 0; }
X int cublasGetMathMode(H*,int*m){ *m=0; return 0; }
X int cublasSetPointerMode_v2(H*,int){ return 0; }
X int cublasGetPointerMode_v2(H*,int*m){ *m=0; return 0; }
X int cublasLtMatmul(void*,void*,const void*,const void*,void*,const void*,void*,const void*,const void*,void*,void*,void*,const void*,void*,size_t,cudaStream_t s){ return launch("cublasLtMatmul",s)?13:0; }
X int cublasLtMatmulAlgoGetHeuristic(void*,void*,void*,void*,void*,void*,void*,int n,void*res,int*got){ *got=1; memset(res,0,96); return 0; }
X int cudnnCreate(H**h){ *h=new H; api["cudnnCreate"]++; return 0; }
X int cudnnSetStream(H*h,cudaStream_t s){ h->st=s; return 0; }
X int cudnnGetStream(H*h,cudaStream_t*s){ *s=h->st; return 0; }
X int cudnnBackendCreateDescriptor(int,void**d){ *d=calloc(1,64); return 0; }
X int cudnnBackendDestroyDescriptor(void*){ return 0; }
X int cudnnBackendSetAttribute(void*,int,int,int64_t,const void*){ return 0; }
X int cudnnBackendFinalize(void*){ return 0; }
X int cudnnBackendGetAttribute(void*,int a,int type,int64_t want,int64_t*got,void*out){ if(got)*got=want>0?std::min<int64_t>(want,1):1; if(out&&want>0){ if(type==3||type==8) *(int64_t*)out=0; } return 0; }
X int cudnnBackendExecute(H*h,void*,void*){ return blas(h,"cudnnBackendExecute"); }
X int cudnnBatchNormalizationForwardTrainingEx(H*h){ return blas(h,"cudnnBNForward"); }
X int cudnnBatchNormalizationForwardInference(H*h){ return blas(h,"cudnnBNInference"); }
X int cudnnBatchNormalizationBackwardEx(H*h){ return blas(h,"cudnnBNBackward"); }
X int cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(H*,int,int,void*,void*,void*,void*,void*,size_t*n){ *n=0; return 0; }
X int cudnnGetBatchNormalizationBackwardExWorkspaceSize(H*,int,int,void*,void*,void*,void*,void*,void*,void*,size_t*n){ *n=0; return 0; }
X int cudnnGetBatchNormalizationTrainingExReserveSpaceSize(H*,int,int,void*,void*,size_t*n){ *n=0; return 0; }
#define DESC(n) X int n(void**d){ *d=calloc(1,256); return 0; }
DESC(cudnnCreateTensorDescriptor) DESC(cudnnCreateFilterDescriptor) DESC(cudnnCreateConvolutionDescriptor) DESC(cudnnCreateActivationDescriptor) DESC(cudnnCreateDropoutDescriptor) DESC(cudnnCreatePoolingDescriptor)
X int cudnnPoolingForward(H*h){ return blas(h,"cudnnPoolingForward"); }
int fake_unimpl(const char*n){ complain(std::string("UNIMPLEMENTED ")+n); trace(); return 0; }
int fake_blas(void*h,const char*n){ return blas((H*)h,n); }
__attribute__((destructor)) static void bye(){ if(!getenv("FAKE_END")&&!getenv("FAKE_EAGER")) return; long t=0; for(auto&i:eager) t+=i.second; std::string o; if(getenv("FAKE_EAGER")) o=dump(eager,t,"EAGER launches")+"\n"; o+=dump(api,0,"API"); for(auto&i:peak) o+="\n  device "+std::to_string(i.first)+" peak reserved MB "+std::to_string(i.second>>20); o+="\n  devices touched:"; for(int d:touched) o+=" "+std::to_string(d); say(o); }
// ---- what a test asks, through ctypes
X const char* fake_graph(){ return last_graph.c_str(); }
X long fake_graphs(){ return graphs; }
X long fake_used(int dev){ L; return (long)used[dev]; }
X long fake_calls(const char*n){ L; return api[n]; }
X void fake_memory(double gb){ L; mem_gb=gb; }
X int fake_touched(int dev){ L; return (int)touched.count(dev); }
X const char* fake_complaints(){ L; static std::string all; all.clear(); for(auto&c:complaints) all+=c+"\n"; complaints.clear(); return all.c_str(); }
X long fake_launches(){ L; long t=0; for(auto&i:eager) t+=i.second; for(auto c:caps) t+=c->g->nodes; return t; }
