// A fake CUDA runtime, driver, cuBLAS and cuFFT for running PyTorch's and Triton's host code with no GPU.
// Kernels do nothing. Memory is host memory. What is emulated are the rules of stream capture.
#include <cuda.h>
#include <driver_types.h>
#include <vector_types.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <dlfcn.h>
#include <unistd.h>
#include <sys/syscall.h>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>
#include <set>
#include <algorithm>

struct cudaDeviceProp;
#define API extern "C" __attribute__((visibility("default")))
typedef cudaError_t E;

static pthread_mutex_t big = PTHREAD_MUTEX_INITIALIZER;
struct Lock { Lock() { pthread_mutex_lock(&big); } ~Lock() { pthread_mutex_unlock(&big); } };

struct Graph { std::vector<std::string> nodes; };
struct Capture { unsigned long long id; int mode; long thread; bool invalid; Graph graph; void* origin; };
struct Stream { int number; int priority; unsigned flags; Capture* cap; };
struct Event { Capture* cap; struct timespec at; bool recorded; };

static Stream legacy = {0, 0, 0, nullptr};
static std::set<Capture*> active;
static unsigned long long next_capture = 1;
static int next_stream = 1;
static thread_local int tl_mode = 0;
static thread_local int tl_device = 0;
static thread_local E last_error = cudaSuccess;
static std::vector<std::string> launches;       // kernels and copies in order, since reset
static std::vector<std::string> violations;
static long graph_launches = 0, kernel_launches = 0, module_loads = 0;
static int recording = 0;
static std::unordered_map<const void*, std::string>* names;
static std::map<uintptr_t, size_t>* device_memory;
static std::map<uintptr_t, size_t>* host_memory;
static size_t used = 0;
static const size_t TOTAL = 80ull << 30;
static int devices() { const char* n = getenv("FAKE_DEVICES"); return n ? atoi(n) : 1; }
static bool verbose() { return getenv("FAKE_VERBOSE") != nullptr; }
static long tid() { return syscall(SYS_gettid); }

static Stream* S(void* s) { return (s == nullptr || s == (void*)1 || s == (void*)2) ? &legacy : (Stream*)s; }
static E fail(E e) { last_error = e; return e; }

static void violation(const std::string& what) {
  violations.push_back(what);
  if (verbose()) fprintf(stderr, "[fakecuda] VIOLATION %s (thread %ld)\n", what.c_str(), tid());
}
// "potentially unsafe" calls: cudaMalloc, cudaFree, module loading, event queries ...
static bool unsafe(const char* what) {
  Lock l;
  if (tl_mode == cudaStreamCaptureModeRelaxed) return false;
  for (Capture* c : active) {
    if (c->invalid) continue;
    if (c->thread == tid() && c->mode != cudaStreamCaptureModeRelaxed) {
      violation(std::string(what) + " by the capturing thread"); c->invalid = true; return true;
    }
    if (c->thread != tid() && tl_mode == cudaStreamCaptureModeGlobal && c->mode == cudaStreamCaptureModeGlobal) {
      violation(std::string(what) + " while another thread captures in mode global"); c->invalid = true; return true;
    }
  }
  return false;
}
static bool whole_device(const char* what) {  // illegal while any stream of the context captures, in any mode
  Lock l; bool bad = false;
  for (Capture* c : active) if (!c->invalid) {
    violation(std::string(what) + (c->thread == tid() ? " by the capturing thread" : " while ANOTHER thread captures"));
    c->invalid = true; bad = true;
  }
  return bad;
}
static E enqueue(void* stream, const std::string& what, bool kernel = true) {
  Lock l; Stream* s = S(stream);
  if (kernel) kernel_launches++;
  if (s->cap) {
    if (s->cap->invalid) return fail(cudaErrorStreamCaptureInvalidated);
    s->cap->graph.nodes.push_back(what);
  } else if (recording) launches.push_back(what + " @" + std::to_string(s->number));
  return cudaSuccess;
}
static bool capturing(void* stream) { Lock l; return S(stream)->cap != nullptr; }

// ---------------------------------------------------------------- interface for the tests (ctypes)
API void fake_record(int on) { Lock l; recording = on; launches.clear(); }
API long fake_launch_count() { Lock l; return (long)launches.size(); }
API const char* fake_launch(long i) { return launches[i].c_str(); }
API long fake_violation_count() { Lock l; return (long)violations.size(); }
API const char* fake_violation(long i) { return violations[i].c_str(); }
API void fake_clear() { Lock l; violations.clear(); launches.clear(); }
API long fake_graph_launches() { return graph_launches; }
API long fake_kernel_launches() { return kernel_launches; }
API long fake_module_loads() { return module_loads; }
static Graph last_graph;
API long fake_graph_nodes() { return (long)last_graph.nodes.size(); }
API const char* fake_graph_node(long i) { return last_graph.nodes[i].c_str(); }

// ---------------------------------------------------------------- devices
API E cudaGetDeviceCount(int* n) { *n = devices(); return cudaSuccess; }
API E cudaSetDevice(int d) { tl_device = d; return cudaSuccess; }
API E cudaInitDevice(int, unsigned, unsigned) { return cudaSuccess; }
API E cudaGetDevice(int* d) { *d = tl_device; return cudaSuccess; }
API E cudaDriverGetVersion(int* v) { *v = 13000; return cudaSuccess; }
API E cudaRuntimeGetVersion(int* v) { *v = 13000; return cudaSuccess; }
API E cudaDeviceSynchronize() { return whole_device("cudaDeviceSynchronize") ? fail(cudaErrorStreamCaptureUnsupported) : cudaSuccess; }
API E cudaDeviceGetStreamPriorityRange(int* a, int* b) { *a = 0; *b = -5; return cudaSuccess; }
API E cudaDeviceCanAccessPeer(int* c, int, int) { *c = 1; return cudaSuccess; }
API E cudaDeviceEnablePeerAccess(int, unsigned) { return cudaSuccess; }
API E cudaDeviceGetPCIBusId(char* s, int n, int) { snprintf(s, n, "0000:01:00.0"); return cudaSuccess; }
API E cudaDeviceSetLimit(int, size_t) { return cudaSuccess; }
API E cudaDeviceGetLimit(size_t* v, int) { *v = 1 << 20; return cudaSuccess; }
API E cudaDeviceReset() { return cudaSuccess; }
API E cudaSetDeviceFlags(unsigned) { return cudaSuccess; }
API E cudaGetDeviceFlags(unsigned* f) { *f = 0; return cudaSuccess; }
API E cudaGetLastError() { E e = last_error; last_error = cudaSuccess; return e; }
API E cudaPeekAtLastError() { return last_error; }
API const char* cudaGetErrorString(E e) {
  switch ((int)e) {
    case 0: return "no error"; case 2: return "out of memory";
    case 900: return "operation not permitted when stream is capturing";
    case 901: return "operation failed due to a previous error during capture";
    default: return "some fake CUDA error";
  }
}
API const char* cudaGetErrorName(E e) { return cudaGetErrorString(e); }

static int capability() { const char* c = getenv("FAKE_CAPABILITY"); return c ? atoi(c) : 90; }
static int attribute(int a) {
  int cc = capability(), optin = cc == 90 || cc == 100 ? 232448 : cc == 80 ? 166912 : 101376;
  switch (a) {
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X: case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y: return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z: return 64;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X: return 2147483647;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y: case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z: return 65535;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: return 49152;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: return optin;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: return optin + 1024;
    case CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK: return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR: return 65536;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: return 32;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return 132;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return cc / 10;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: return cc % 10;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: return cc == 90 || cc == 80 || cc == 100 ? 2048 : 1536;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR: return 32;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: return 50 << 20;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: return 1980000;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: return 2619000;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: return 5120;
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING: return 1;
    case CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT: return 512;
    case CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS: return 1;
    case CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH: return 1;
    default: return 0;
  }
}
API E cudaDeviceGetAttribute(int* v, int a, int) { *v = attribute(a); return cudaSuccess; }
static E properties(cudaDeviceProp* p) {
  memset(p, 0, sizeof *p);
  snprintf(p->name, 256, "Fake H100 (no GPU)");
  p->totalGlobalMem = TOTAL; p->sharedMemPerBlock = 49152; p->regsPerBlock = 65536; p->warpSize = 32;
  p->maxThreadsPerBlock = 1024; p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024; p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647; p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->major = capability() / 10; p->minor = capability() % 10; p->multiProcessorCount = 132;
  p->totalConstMem = 65536; p->textureAlignment = 512; p->unifiedAddressing = 1; p->l2CacheSize = 50 << 20;
  p->memoryBusWidth = 5120;
  p->maxThreadsPerMultiProcessor = attribute(CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR);
  p->sharedMemPerMultiprocessor = attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR);
  p->regsPerMultiprocessor = 65536; p->cooperativeLaunch = 1; p->concurrentKernels = 1;
  p->sharedMemPerBlockOptin = attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
  p->maxBlocksPerMultiProcessor = 32; p->reservedSharedMemPerBlock = 1024; p->asyncEngineCount = 3;
  p->streamPrioritiesSupported = 1; p->canMapHostMemory = 1;
  return cudaSuccess;
}
API E cudaGetDeviceProperties(cudaDeviceProp* p, int) { return properties(p); }
API E cudaGetDeviceProperties_v2(cudaDeviceProp* p, int) { return properties(p); }
API E cudaMemGetInfo(size_t* f, size_t* t) { Lock l; *t = TOTAL; *f = TOTAL - used; return cudaSuccess; }

// ---------------------------------------------------------------- memory
static void* take(size_t size, std::map<uintptr_t, size_t>*& table) {
  if (!table) table = new std::map<uintptr_t, size_t>;
  void* p = mmap(nullptr, size ? size : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) return nullptr;
  if (size <= (64u << 20)) memset(p, 1, size);
  (*table)[(uintptr_t)p] = size;
  return p;
}
API E cudaMalloc(void** p, size_t size) {
  if (unsafe("cudaMalloc")) return fail(cudaErrorStreamCaptureUnsupported);
  Lock l;
  if (used + size > TOTAL) return fail(cudaErrorMemoryAllocation);
  *p = take(size, device_memory); used += size; return cudaSuccess;
}
API E cudaFree(void* p) {
  if (!p) return cudaSuccess;
  if (unsafe("cudaFree")) return fail(cudaErrorStreamCaptureUnsupported);
  Lock l; auto it = device_memory->find((uintptr_t)p);
  if (it == device_memory->end()) return fail(cudaErrorInvalidValue);
  munmap(p, it->second ? it->second : 1); used -= it->second; device_memory->erase(it); return cudaSuccess;
}
API E cudaHostAlloc(void** p, size_t size, unsigned) {
  if (unsafe("cudaHostAlloc")) return fail(cudaErrorStreamCaptureUnsupported);
  Lock l; *p = take(size, host_memory); return cudaSuccess;
}
API E cudaMallocHost(void** p, size_t size) { return cudaHostAlloc(p, size, 0); }
API E cudaFreeHost(void* p) {
  if (unsafe("cudaFreeHost")) return fail(cudaErrorStreamCaptureUnsupported);
  Lock l; auto it = host_memory->find((uintptr_t)p);
  if (it != host_memory->end()) { munmap(p, it->second ? it->second : 1); host_memory->erase(it); }
  return cudaSuccess;
}
API E cudaHostRegister(void*, size_t, unsigned) { return cudaSuccess; }
API E cudaHostUnregister(void*) { return cudaSuccess; }
API E cudaHostGetDevicePointer(void** d, void* h, unsigned) { *d = h; return cudaSuccess; }
static bool within(std::map<uintptr_t, size_t>* t, const void* p) {
  if (!t || t->empty()) return false;
  auto it = t->upper_bound((uintptr_t)p);
  if (it == t->begin()) return false;
  --it; return (uintptr_t)p < it->first + it->second;
}
static bool on_device(const void* p) { Lock l; return within(device_memory, p); }
static bool pinned(const void* p) { Lock l; return within(host_memory, p); }
API E cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
  memset(a, 0, sizeof *a);
  if (on_device(p)) { a->type = cudaMemoryTypeDevice; a->device = tl_device; a->devicePointer = (void*)p; }
  else if (pinned(p)) { a->type = cudaMemoryTypeHost; a->hostPointer = (void*)p; a->devicePointer = (void*)p; }
  else a->type = cudaMemoryTypeUnregistered;
  return cudaSuccess;
}
API E cudaMemcpyAsync(void* d, const void* s, size_t n, int, void* stream) {
  bool pageable = !(on_device(d) || pinned(d)) || !(on_device(s) || pinned(s));
  if (capturing(stream)) {
    if (pageable) { Lock l; violation("cudaMemcpyAsync of pageable memory on a capturing stream"); }
    return enqueue(stream, "memcpy", false);
  }
  enqueue(stream, pageable ? "memcpy (pageable)" : "memcpy", false);
  memmove(d, s, n); return cudaSuccess;
}
API E cudaMemcpy(void* d, const void* s, size_t n, int) {
  if (unsafe("cudaMemcpy")) return fail(cudaErrorStreamCaptureUnsupported);
  memmove(d, s, n); return cudaSuccess;
}
API E cudaMemcpyPeerAsync(void* d, int, const void* s, int, size_t n, void* stream) { return cudaMemcpyAsync(d, s, n, 4, stream); }
API E cudaMemcpy2DAsync(void* d, size_t dp, const void* s, size_t sp, size_t w, size_t h, int, void* stream) {
  if (capturing(stream)) return enqueue(stream, "memcpy2D", false);
  for (size_t i = 0; i < h; i++) memmove((char*)d + i * dp, (const char*)s + i * sp, w);
  return enqueue(stream, "memcpy2D", false);
}
API E cudaMemsetAsync(void* d, int v, size_t n, void* stream) {
  if (!capturing(stream)) memset(d, v, n);
  return enqueue(stream, "memset", false);
}
API E cudaMemset(void* d, int v, size_t n) { memset(d, v, n); return cudaSuccess; }
API E cudaMemcpyToSymbolAsync(const void*, const void*, size_t, size_t, int, void*) { return cudaSuccess; }
API E cudaMemcpyFromSymbolAsync(void*, const void*, size_t, size_t, int, void*) { return cudaSuccess; }
API E cudaGetSymbolAddress(void** p, const void*) { static char* a = (char*)calloc(1, 1 << 20); *p = a; return cudaSuccess; }

// ---------------------------------------------------------------- streams and events
static E create(void** s, unsigned flags, int priority) {
  Lock l; *s = new Stream{next_stream++, priority, flags, nullptr}; return cudaSuccess;
}
API E cudaStreamCreateWithPriority(void** s, unsigned f, int p) { return create(s, f, p); }
API E cudaStreamCreateWithFlags(void** s, unsigned f) { return create(s, f, 0); }
API E cudaStreamCreate(void** s) { return create(s, 0, 0); }
API E cudaStreamDestroy(void* s) {
  Lock l; if (S(s)->cap) { violation("cudaStreamDestroy of a capturing stream"); return fail(cudaErrorStreamCaptureUnsupported); }
  return cudaSuccess;
}
API E cudaStreamGetPriority(void* s, int* p) { *p = S(s)->priority; return cudaSuccess; }
API E cudaStreamGetFlags(void* s, unsigned* f) { *f = S(s)->flags; return cudaSuccess; }
API E cudaStreamGetId(void* s, unsigned long long* i) { *i = S(s)->number; return cudaSuccess; }
API E cudaStreamGetDevice(void* s, int* d) { *d = tl_device; return cudaSuccess; }
static E host_wait(void* stream, const char* what) {
  Lock l; Stream* s = S(stream);
  if (s->cap) { violation(std::string(what) + " of a capturing stream"); s->cap->invalid = true; return fail(cudaErrorStreamCaptureUnsupported); }
  return cudaSuccess;
}
API E cudaStreamSynchronize(void* s) { return host_wait(s, "cudaStreamSynchronize"); }
API E cudaStreamQuery(void* s) { return host_wait(s, "cudaStreamQuery"); }
API E cudaEventCreateWithFlags(void** e, unsigned) { *e = new Event{nullptr, {0, 0}, false}; return cudaSuccess; }
API E cudaEventCreate(void** e) { return cudaEventCreateWithFlags(e, 0); }
API E cudaEventDestroy(void* e) { return cudaSuccess; }
static E record(void* event, void* stream) {
  Lock l; Event* e = (Event*)event; Stream* s = S(stream);
  if (s->cap && s->cap->invalid) return fail(cudaErrorStreamCaptureInvalidated);
  e->cap = s->cap; e->recorded = true; clock_gettime(CLOCK_MONOTONIC, &e->at); return cudaSuccess;
}
API E cudaEventRecord(void* e, void* s) { return record(e, s); }
API E cudaEventRecordWithFlags(void* e, void* s, unsigned) { return record(e, s); }
static E event_wait_host(void* event, const char* what) {
  Event* e = (Event*)event;
  { Lock l; if (e->cap && active.count(e->cap)) { violation(std::string(what) + " of a captured event"); e->cap->invalid = true; return fail(cudaErrorCapturedEvent); } }
  if (unsafe(what)) return fail(cudaErrorStreamCaptureUnsupported);
  return cudaSuccess;
}
API E cudaEventQuery(void* e) { return event_wait_host(e, "cudaEventQuery"); }
API E cudaEventSynchronize(void* e) { return event_wait_host(e, "cudaEventSynchronize"); }
API E cudaEventElapsedTime(float* ms, void* a, void* b) {
  Event *x = (Event*)a, *y = (Event*)b;
  *ms = (y->at.tv_sec - x->at.tv_sec) * 1e3 + (y->at.tv_nsec - x->at.tv_nsec) / 1e6; return cudaSuccess;
}
API E cudaEventElapsedTime_v2(float* ms, void* a, void* b) { return cudaEventElapsedTime(ms, a, b); }
API E cudaStreamWaitEvent(void* stream, void* event, unsigned) {
  Lock l; Stream* s = S(stream); Event* e = (Event*)event;
  bool live = e->cap && active.count(e->cap);
  if (live && !s->cap) s->cap = e->cap;             // the stream joins the capture
  else if (s->cap && e->recorded && !live && e->cap != s->cap) {
    violation("a capturing stream waits for an event recorded outside the capture");
    s->cap->invalid = true; return fail(cudaErrorStreamCaptureIsolation);
  }
  return cudaSuccess;
}
API E cudaStreamAddCallback(void*, void*, void*, unsigned) { return cudaSuccess; }
API E cudaLaunchHostFunc(void* s, void*, void*) { return enqueue(s, "host function", false); }

// ---------------------------------------------------------------- capture
API E cudaThreadExchangeStreamCaptureMode(int* mode) { int m = tl_mode; tl_mode = *mode; *mode = m; return cudaSuccess; }
API E cudaStreamBeginCapture(void* stream, int mode) {
  Lock l; Stream* s = S(stream);
  if (s == &legacy || s->cap) { violation("cudaStreamBeginCapture of the legacy or a capturing stream"); return fail(cudaErrorIllegalState); }
  s->cap = new Capture{next_capture++, mode, tid(), false, {{}}, s}; active.insert(s->cap); return cudaSuccess;
}
API E cudaStreamEndCapture(void* stream, void** graph) {
  Lock l; Stream* s = S(stream); *graph = nullptr;
  if (!s->cap) return fail(cudaErrorIllegalState);
  Capture* c = s->cap; active.erase(c); s->cap = nullptr;
  if (c->invalid) return fail(cudaErrorStreamCaptureInvalidated);
  *graph = new Graph{c->graph}; last_graph = *(Graph*)*graph; return cudaSuccess;
}
API E cudaStreamIsCapturing(void* stream, int* status) {
  Lock l; Stream* s = S(stream); *status = !s->cap ? 0 : s->cap->invalid ? 2 : 1; return cudaSuccess;
}
static E info(void* stream, int* status, unsigned long long* id, void** graph, const void** deps, size_t* n) {
  Lock l; Stream* s = S(stream);
  *status = !s->cap ? 0 : s->cap->invalid ? 2 : 1;
  if (s->cap && id) *id = s->cap->id;
  if (graph) *graph = s->cap ? &s->cap->graph : nullptr;
  if (deps) *deps = nullptr;
  if (n) *n = 0;
  return cudaSuccess;
}
API E cudaStreamGetCaptureInfo(void* s, int* st, unsigned long long* id, void** g, const void** d, const void** e, size_t* n) {
  return info(s, st, id, nullptr, nullptr, nullptr);  // extra pointers may be garbage in the two-argument form
}
API E cudaStreamGetCaptureInfo_v2(void* s, int* st, unsigned long long* id, void** g, const void** d, size_t* n) { return info(s, st, id, g, d, n); }
API E cudaStreamGetCaptureInfo_v3(void* s, int* st, unsigned long long* id, void** g, const void** d, const void** e, size_t* n) { return info(s, st, id, g, d, n); }
static E instantiate(void** exec, void* graph) {
  if (unsafe("cudaGraphInstantiate")) return fail(cudaErrorStreamCaptureUnsupported);
  *exec = new Graph(*(Graph*)graph); return cudaSuccess;
}
API E cudaGraphInstantiate(void** e, void* g, unsigned long long) { return instantiate(e, g); }
API E cudaGraphInstantiateWithFlags(void** e, void* g, unsigned long long) { return instantiate(e, g); }
API E cudaGraphLaunch(void* exec, void* stream) {
  { Lock l; graph_launches++; }
  return enqueue(stream, "graph of " + std::to_string(((Graph*)exec)->nodes.size()), false);
}
API E cudaGraphUpload(void*, void*) { return cudaSuccess; }
API E cudaGraphDestroy(void*) { return cudaSuccess; }
API E cudaGraphExecDestroy(void*) { return cudaSuccess; }
API E cudaGraphGetNodes(void* g, void* nodes, size_t* n) { *n = ((Graph*)g)->nodes.size(); return cudaSuccess; }
API E cudaGraphDebugDotPrint(void*, const char*, unsigned) { return cudaSuccess; }

// ---------------------------------------------------------------- kernels of the runtime API
struct Config { dim3 grid, block; size_t shared; void* stream; };
static thread_local std::vector<Config>* configs;
API void** __cudaRegisterFatBinary(void*) { static void* handle[4]; return handle; }
API void __cudaRegisterFatBinaryEnd(void**) {}
API void __cudaUnregisterFatBinary(void**) {}
API void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, void*, void*, void*, void*, int*) {
  if (!names) names = new std::unordered_map<const void*, std::string>;
  (*names)[host] = name;
}
API void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
API void __cudaRegisterManagedVar(void**, void**, char*, const char*, int, size_t, int, int) {}
API char __cudaInitModule(void**) { return 0; }
API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
  if (!configs) configs = new std::vector<Config>;
  configs->push_back({grid, block, shared, stream}); return 0;
}
API E __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  Config c = configs->back(); configs->pop_back();
  *grid = c.grid; *block = c.block; *shared = c.shared; *(void**)stream = c.stream; return cudaSuccess;
}
static std::string name_of(const void* f) {
  if (!names) return "?";
  auto it = names->find(f); return it == names->end() ? "?" : it->second;
}
static E launch(const std::string& what, dim3 g, dim3 b, void* stream) {
  if (!g.x || !g.y || !g.z || g.y > 65535 || g.z > 65535 || b.x * b.y * b.z > 1024 || !b.x) {
    Lock l; violation("bad grid " + std::to_string(g.x) + "," + std::to_string(g.y) + "," + std::to_string(g.z) + " of " + what);
    return fail(cudaErrorInvalidConfiguration);
  }
  return enqueue(stream, what + " [" + std::to_string(g.x) + "," + std::to_string(g.y) + "," + std::to_string(g.z) + "]x" + std::to_string(b.x * b.y * b.z));
}
API E cudaLaunchKernel(const void* f, dim3 g, dim3 b, void**, size_t, void* stream) { return launch(name_of(f), g, b, stream); }
API E __cudaLaunchKernel(void* k, dim3 g, dim3 b, void**, size_t, void* stream) { return launch(name_of(k), g, b, stream); }
API E __cudaLaunchKernel_ptsz(void* k, dim3 g, dim3 b, void**, size_t, void* stream) { return launch(name_of(k), g, b, stream); }
API E __cudaGetKernel(void** k, const void* f) { *k = (void*)f; return cudaSuccess; }
API E cudaGetKernel(void** k, const void* f) { *k = (void*)f; return cudaSuccess; }
API E cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* f, void**) { return launch(name_of(f), c->gridDim, c->blockDim, c->stream); }
API E cudaLaunchCooperativeKernel(const void* f, dim3 g, dim3 b, void**, size_t, void* stream) { return launch(name_of(f), g, b, stream); }
API E cudaFuncGetAttributes(cudaFuncAttributes* a, const void*) {
  memset(a, 0, sizeof *a); a->maxThreadsPerBlock = 1024; a->numRegs = 32; a->ptxVersion = a->binaryVersion = capability();
  a->maxDynamicSharedSizeBytes = 49152; return cudaSuccess;
}
API E cudaFuncSetAttribute(const void*, int, int) { return cudaSuccess; }
API E cudaFuncSetCacheConfig(const void*, int) { return cudaSuccess; }
API E cudaFuncGetName(const char** n, const void* f) { *n = "?"; return cudaSuccess; }
API E cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* n, const void*, int t, size_t) { *n = 2048 / (t ? t : 1); return cudaSuccess; }
API E cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, const void*, int t, size_t, unsigned) { *n = 2048 / (t ? t : 1); return cudaSuccess; }
API E cudaOccupancyAvailableDynamicSMemPerBlock(size_t* n, const void*, int, int) { *n = 49152; return cudaSuccess; }
API E cudaOccupancyMaxActiveClusters(int* n, const void*, const void*) { *n = 66; return cudaSuccess; }
API E cudaGetFuncBySymbol(void** f, const void* s) { *f = (void*)s; return cudaSuccess; }
API E cudaGetDriverEntryPoint(const char* n, void** f, unsigned long long, int* st) { *f = dlsym(RTLD_DEFAULT, n); if (st) *st = *f ? 0 : 1; return cudaSuccess; }
API E cudaGetDriverEntryPointByVersion(const char* n, void** f, unsigned, unsigned long long, int* st) { return cudaGetDriverEntryPoint(n, f, 0, st); }
API E cudaProfilerStart() { return cudaSuccess; }
API E cudaProfilerStop() { return cudaSuccess; }
API E cudaCtxResetPersistingL2Cache() { return cudaSuccess; }
API E cudaIpcGetMemHandle(void*, void*) { return cudaSuccess; }
API E cudaDeviceGetDefaultMemPool(void** p, int) { *p = nullptr; return cudaSuccess; }

// ---------------------------------------------------------------- driver API, as Triton uses it
typedef CUresult R;
struct Function { std::string name; };
struct Module { std::string text; };
API R cuInit(unsigned) { return CUDA_SUCCESS; }
API R cuDriverGetVersion(int* v) { *v = getenv("FAKE_DRIVER") ? atoi(getenv("FAKE_DRIVER")) : 13000; return CUDA_SUCCESS; }
API R cuDeviceGet(CUdevice* d, int i) { *d = i; return CUDA_SUCCESS; }
API R cuDeviceGetCount(int* n) { *n = devices(); return CUDA_SUCCESS; }
API R cuDeviceGetAttribute(int* v, CUdevice_attribute a, CUdevice) { *v = attribute(a); return CUDA_SUCCESS; }
API R cuCtxGetCurrent(CUcontext* c) { *c = (CUcontext)(uintptr_t)(0x100 + tl_device); return CUDA_SUCCESS; }
API R cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
API R cuCtxGetDevice(CUdevice* d) { *d = tl_device; return CUDA_SUCCESS; }
API R cuDevicePrimaryCtxRetain(CUcontext* c, CUdevice d) { *c = (CUcontext)(uintptr_t)(0x100 + d); return CUDA_SUCCESS; }
API R cuDevicePrimaryCtxGetState(CUdevice, unsigned* f, int* a) { *f = 0; *a = 1; return CUDA_SUCCESS; }
API R cuCtxSetLimit(CUlimit, size_t) { return CUDA_SUCCESS; }
API R cuCtxGetLimit(size_t* v, CUlimit) { *v = 1 << 20; return CUDA_SUCCESS; }
API R cuGetErrorString(R e, const char** s) { *s = cudaGetErrorString((E)e); return CUDA_SUCCESS; }
API R cuGetErrorName(R e, const char** s) { *s = cudaGetErrorString((E)e); return CUDA_SUCCESS; }
API R cuModuleLoadData(CUmodule* m, const void*) {
  if (unsafe("cuModuleLoadData (Triton compiles or loads a kernel)")) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  Lock l; module_loads++; *m = (CUmodule) new Module; return CUDA_SUCCESS;
}
API R cuModuleUnload(CUmodule) {
  if (unsafe("cuModuleUnload")) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  return CUDA_SUCCESS;
}
API R cuModuleGetFunction(CUfunction* f, CUmodule, const char* name) { *f = (CUfunction) new Function{name}; return CUDA_SUCCESS; }
API R cuFuncGetAttribute(int* v, CUfunction_attribute a, CUfunction) { *v = a == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0; return CUDA_SUCCESS; }
API R cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }
API R cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }
API R cuLaunchKernelEx(const CUlaunchConfig* c, CUfunction f, void**, void**) {
  int optin = attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
  if ((int)c->sharedMemBytes > optin) { Lock l; violation("shared memory " + std::to_string(c->sharedMemBytes)); return CUDA_ERROR_INVALID_VALUE; }
  return (R)launch("triton " + ((Function*)f)->name + " smem " + std::to_string(c->sharedMemBytes), dim3(c->gridDimX, c->gridDimY, c->gridDimZ),
                   dim3(c->blockDimX, c->blockDimY, c->blockDimZ), c->hStream);
}
API R cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned, CUstream s, void**, void**) {
  return (R)launch("driver " + ((Function*)f)->name, dim3(gx, gy, gz), dim3(bx, by, bz), s);
}
API R cuPointerGetAttribute(void* data, CUpointer_attribute a, CUdeviceptr p) {
  if (a == CU_POINTER_ATTRIBUTE_DEVICE_POINTER) {
    if (!on_device((void*)p) && !pinned((void*)p)) { Lock l; violation("a host pointer for a kernel"); return CUDA_ERROR_INVALID_VALUE; }
    *(CUdeviceptr*)data = p; return CUDA_SUCCESS;
  }
  return CUDA_ERROR_INVALID_VALUE;
}
API R cuPointerGetAttributes(unsigned n, CUpointer_attribute*, void** d, CUdeviceptr) { for (unsigned i = 0; i < n; i++) if (d[i]) *(int*)d[i] = 0; return CUDA_SUCCESS; }
API R cuOccupancyMaxActiveClusters(int* n, CUfunction, const CUlaunchConfig*) { *n = 66; return CUDA_SUCCESS; }
API R cuGetProcAddress_v2(const char* n, void** f, int, cuuint64_t, CUdriverProcAddressQueryResult* r) { *f = dlsym(RTLD_DEFAULT, n); if (r) *r = *f ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND; return *f ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND; }

static R without_error(E e) { last_error = cudaSuccess; return (R)e; }  // the driver leaves none for the runtime
API R cuStreamBeginCapture_v2(CUstream s, CUstreamCaptureMode mode) { return without_error(cudaStreamBeginCapture(s, (int)mode)); }
API R cuStreamEndCapture(CUstream s, CUgraph* g) { return without_error(cudaStreamEndCapture(s, (void**)g)); }
API R cuStreamGetCaptureInfo_v2(CUstream s, CUstreamCaptureStatus* st, cuuint64_t* id, CUgraph* g, const CUgraphNode** d, size_t* n) {
  return (R)info(s, (int*)st, (unsigned long long*)id, (void**)g, (const void**)d, n);
}
API R cuGraphGetNodes(CUgraph g, CUgraphNode*, size_t* n) { Lock l; *n = ((Graph*)g)->nodes.size(); return CUDA_SUCCESS; }
API R cuGraphDestroy(CUgraph) { return CUDA_SUCCESS; }

#include "libraries.h"
