// Just enough of the CUDA libraries for ONNX Runtime's CUDA provider to load and place nodes; nothing is computed.
// Device memory is host memory. Every other function that the provider links is generated: it returns 0.
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define GIB (1ull << 30)

static int allocate(void **p, size_t n) {
  *p = aligned_alloc(512, (n + 511) / 512 * 512 + 512);
  return 0;
}

static int release(void *p) {
  free(p);
  return 0;
}

static int create(void **p) {
  static int object[64];
  *p = object;
  return 0;
}

static int put(int *p, int value) {
  *p = value;
  return 0;
}

int cudaMalloc(void **p, size_t n) { return allocate(p, n); }
int cudaMallocHost(void **p, size_t n) { return allocate(p, n); }
int cudaHostAlloc(void **p, size_t n, unsigned flags) { return allocate(p, n); }
int cudaFree(void *p) { return release(p); }
int cudaFreeHost(void *p) { return release(p); }
int cudaMemcpy(void *to, const void *from, size_t n, int kind) { return memmove(to, from, n), 0; }
int cudaMemcpyAsync(void *to, const void *from, size_t n, int kind, void *stream) { return memmove(to, from, n), 0; }
int cudaMemGetInfo(size_t *available, size_t *total) { return *available = 8 * GIB, *total = 16 * GIB, 0; }

int cudaStreamCreate(void **p) { return create(p); }
int cudaStreamCreateWithFlags(void **p) { return create(p); }
int cudaEventCreate(void **p) { return create(p); }
int cudaEventCreateWithFlags(void **p) { return create(p); }
int cudaMemPoolCreate(void **p) { return create(p); }
int cublasCreate_v2(void **p) { return create(p); }
int cublasLtCreate(void **p) { return create(p); }
int cudnnCreate(void **p) { return create(p); }

int cudaGetDeviceCount(int *count) { return put(count, 1); }
int cudaGetDevice(int *device) { return put(device, 0); }
int cudaRuntimeGetVersion(int *version) { return put(version, 13000); }
int cudaDriverGetVersion(int *version) { return put(version, 13000); }
int cudaStreamIsCapturing(void *stream, int *capturing) { return put(capturing, 0); }
int cudaPointerGetAttributes(void *attributes, const void *p) { return memset(attributes, 0, 24), 0; }

const char *cudaGetErrorName(int error) { return "stub"; }
const char *cudaGetErrorString(int error) { return "stub"; }
const char *cublasGetStatusName(int status) { return "stub"; }
const char *cublasGetStatusString(int status) { return "stub"; }

int cudaDeviceGetAttribute(int *value, int attribute, int device) {
  switch (attribute) {
    case 10: return put(value, 32);  // warp size
    case 16: return put(value, 40);  // multiprocessors
    case 75: return put(value, 8);   // compute capability, major
    case 76: return put(value, 0);   // and minor
    default: return put(value, 1024);
  }
}

// The fields of CUDA 13's cudaDeviceProp that the provider reads, by their offsets.
int cudaGetDeviceProperties(char *p, int device) {
  static const int threads[] = {1024, 1024, 1024, 64, 2147483647, 65535, 65535};  // per block, block sizes, grid sizes
  memset(p, 0, 1008);
  strcpy(p, "stub");
  *(size_t *)(p + 288) = 16 * GIB;     // totalGlobalMem
  *(size_t *)(p + 296) = 49152;        // sharedMemPerBlock
  *(int *)(p + 304) = 65536;           // regsPerBlock
  *(int *)(p + 308) = 32;              // warpSize
  *(size_t *)(p + 312) = GIB;          // memPitch
  memcpy(p + 320, threads, sizeof threads);
  *(size_t *)(p + 352) = 65536;        // totalConstMem
  *(int *)(p + 360) = 8;               // compute capability 8.0
  return 0;
}

void **__cudaRegisterFatBinary(void *p) {
  static void *handle[4];
  return handle;
}
