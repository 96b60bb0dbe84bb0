// cuFFT, cuBLAS and cuDNN on the fake device: what enqueues work, and what must not be called in a capture.
#pragma once

// ---------------------------------------------------------------- cuFFT
static std::map<int, void*>* plans; static int next_plan = 1;
API int cufftCreate(int* p) {
  if (unsafe("cufftCreate")) return 5;
  Lock l; if (!plans) plans = new std::map<int, void*>; *p = next_plan++; (*plans)[*p] = nullptr; return 0;
}
API int cufftDestroy(int p) { return 0; }
API int cufftSetAutoAllocation(int, int) { return 0; }
API int cufftGetVersion(int* v) { *v = 12000; return 0; }
API int cufftGetProperty(int, int* v) { *v = 12; return 0; }
API int cufftXtMakePlanMany(int p, int, long long*, long long*, long long, long long, int, long long*, long long, long long, int, long long, size_t* work, int) {
  if (unsafe("cufftXtMakePlanMany")) return 5;
  *work = 1 << 20; return 0;
}
API int cufftMakePlanMany(int p, int, int*, int*, int, int, int*, int, int, int, int, size_t* work) {
  if (unsafe("cufftMakePlanMany")) return 5;
  *work = 1 << 20; return 0;
}
API int cufftSetStream(int p, void* s) { Lock l; (*plans)[p] = s; return 0; }
API int cufftSetWorkArea(int, void*) { return 0; }
static int exec_fft(int p, const char* what, void* in, void* out, int align_in, int align_out) {
  void* s; { Lock l; s = (*plans)[p]; }
  if ((uintptr_t)in % align_in || (uintptr_t)out % align_out) {
    Lock l; violation(std::string(what) + ": pointer not aligned to a complex number (CUFFT_INVALID_VALUE)"); return 4;
  }
  int e = 0; for (int i = 0; i < 2 && !e; i++) e = (int)enqueue(s, what);
  return e ? 6 : 0;
}
API int cufftXtExec(int p, void* in, void* out, int) { return exec_fft(p, "cufftXtExec", in, out, 8, 8); }
API int cufftExecR2C(int p, void* in, void* out) { return exec_fft(p, "cufftExecR2C", in, out, 8, 8); }
API int cufftExecC2R(int p, void* in, void* out) { return exec_fft(p, "cufftExecC2R", in, out, 8, 8); }
API int cufftExecC2C(int p, void* in, void* out, int) { return exec_fft(p, "cufftExecC2C", in, out, 8, 8); }
API int cufftExecD2Z(int p, void* in, void* out) { return exec_fft(p, "cufftExecD2Z", in, out, 16, 16); }
API int cufftExecZ2D(int p, void* in, void* out) { return exec_fft(p, "cufftExecZ2D", in, out, 16, 16); }
API int cufftExecZ2Z(int p, void* in, void* out, int) { return exec_fft(p, "cufftExecZ2Z", in, out, 16, 16); }

// ---------------------------------------------------------------- cuBLAS
struct Blas { void* stream; int math; };
API int cublasCreate_v2(void** h) { if (unsafe("cublasCreate")) return 1; *h = new Blas{nullptr, 0}; return 0; }
API int cublasDestroy_v2(void*) { return 0; }
API int cublasSetStream_v2(void* h, void* s) { ((Blas*)h)->stream = s; return 0; }
API int cublasGetStream_v2(void* h, void** s) { *s = ((Blas*)h)->stream; return 0; }
API int cublasSetWorkspace_v2(void*, void*, size_t) { return 0; }
API int cublasSetMathMode(void* h, int m) { ((Blas*)h)->math = m; return 0; }
API int cublasGetMathMode(void* h, int* m) { *m = ((Blas*)h)->math; return 0; }
API int cublasSetPointerMode_v2(void*, int) { return 0; }
API int cublasGetPointerMode_v2(void*, int* m) { *m = 0; return 0; }
API int cublasSetAtomicsMode(void*, int) { return 0; }
API int cublasGetVersion_v2(void*, int* v) { *v = 130000; return 0; }
API int cublasGetProperty(int, int* v) { *v = 13; return 0; }
API const char* cublasGetStatusString(int) { return "fake"; }
#define BLAS(name) API int name(void* h, ...) { Blas* b = (Blas*)h; return (int)enqueue(b->stream, std::string(#name) + (b->math & 3 ? " tf32" : "")); }
BLAS(cublasSgemm_v2) BLAS(cublasDgemm_v2) BLAS(cublasHgemm) BLAS(cublasGemmEx) BLAS(cublasSgemmEx) BLAS(cublasGemmStridedBatchedEx)
BLAS(cublasSgemmStridedBatched) BLAS(cublasDgemmStridedBatched) BLAS(cublasHgemmStridedBatched) BLAS(cublasSgemv_v2) BLAS(cublasDgemv_v2)
BLAS(cublasSdot_v2) BLAS(cublasDotEx) BLAS(cublasGemmBatchedEx)
API int cublasLtCreate(void** h) { if (unsafe("cublasLtCreate")) return 1; *h = new Blas{nullptr, 0}; return 0; }
API int cublasLtDestroy(void*) { return 0; }
API int cublasLtMatmulDescCreate(void** d, int, int) { *d = malloc(256); return 0; }
API int cublasLtMatmulDescDestroy(void* d) { free(d); return 0; }
API int cublasLtMatmulDescSetAttribute(void*, int, const void*, size_t) { return 0; }
API int cublasLtMatrixLayoutCreate(void** d, int, uint64_t, uint64_t, int64_t) { *d = malloc(256); return 0; }
API int cublasLtMatrixLayoutDestroy(void* d) { free(d); return 0; }
API int cublasLtMatrixLayoutSetAttribute(void*, int, const void*, size_t) { return 0; }
API int cublasLtMatmulPreferenceCreate(void** d) { *d = malloc(256); return 0; }
API int cublasLtMatmulPreferenceDestroy(void* d) { free(d); return 0; }
API int cublasLtMatmulPreferenceSetAttribute(void*, int, const void*, size_t) { return 0; }
API int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int, char* results, int* n) { memset(results, 0, 88); *n = 1; return 0; }
API int cublasLtMatmul(void*, void*, const void*, const void*, void*, const void*, void*, const void*, const void*, void*, void*, void*, const void*, void*, size_t, void* stream) {
  return (int)enqueue(stream, "cublasLtMatmul");
}
// ---------------------------------------------------------------- cuDNN's handle (convolutions are replaced in Python)
API int cudnnCreate(void** h) { if (unsafe("cudnnCreate")) return 1; *h = new Blas{nullptr, 0}; return 0; }
API int cudnnDestroy(void*) { return 0; }
API int cudnnSetStream(void* h, void* s) { ((Blas*)h)->stream = s; return 0; }
