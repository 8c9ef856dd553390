// Stands in for some functions of the stubs in cuda_stubs.c: counts what is copied, launched and waited for, and keeps
// CUDA graphs. Like the real ones, these do nothing while they are captured, and replay copies with the same addresses;
// and whoever allocates memory, copies at once or waits while a graph is captured gets an error.
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum { TO_DEVICE = 1, TO_HOST, ON_DEVICE, LAUNCHES, WAITS, KINDS };
enum { NOT_WHILE_CAPTURING = 900, MOST = 4096 };

typedef struct {
  void *to;
  const void *from;
  size_t n;
  int kind;
} Copy;

typedef struct {
  int size;
  Copy copies[MOST];
} Graph;

static long counts[KINDS];
static Graph *captured;

void take_counts(long *out) {
  memcpy(out, counts, sizeof counts);
  memset(counts, 0, sizeof counts);
}

static int copy(Copy c) {
  counts[c.kind] += c.n;
  memmove(c.to, c.from, c.n);
  return 0;
}

int cudaMemcpy(void *to, const void *from, size_t n, int kind) {
  return captured ? NOT_WHILE_CAPTURING : copy((Copy){to, from, n, kind});
}

int cudaMemcpyAsync(void *to, const void *from, size_t n, int kind, void *stream) {
  if (!captured) return copy((Copy){to, from, n, kind});
  if (captured->size == MOST) abort();
  captured->copies[captured->size++] = (Copy){to, from, n, kind};
  return 0;
}

int cudaMalloc(void **p, size_t n) {
  if (captured) return NOT_WHILE_CAPTURING;
  *p = aligned_alloc(512, (n + 511) / 512 * 512 + 512);
  return 0;
}

int cudaStreamSynchronize(void *stream) { return captured ? NOT_WHILE_CAPTURING : 0; }
int cudaDeviceSynchronize(void) { return captured ? NOT_WHILE_CAPTURING : (counts[WAITS]++, 0); }

static int launched(void) { return captured ? 0 : (counts[LAUNCHES]++, 0); }
int __cudaLaunchKernel(void) { return launched(); }
int cudaLaunchKernel(void) { return launched(); }
int cudaLaunchKernelExC(void) { return launched(); }
int cudaLaunchCooperativeKernel(void) { return launched(); }
int cublasSgemm_v2(void) { return launched(); }
int cublasGemmEx(void) { return launched(); }
int cublasGemmStridedBatchedEx(void) { return launched(); }

int cudaStreamBeginCapture(void *stream, int mode) {
  captured = calloc(1, sizeof *captured);
  return 0;
}

int cudaStreamEndCapture(void *stream, Graph **graph) {
  *graph = captured;
  captured = NULL;
  return 0;
}

int cudaGraphInstantiate(Graph **executable, Graph *graph, unsigned long long flags) {
  *executable = graph;
  return 0;
}

int cudaGraphLaunch(Graph *graph, void *stream) {
  for (int i = 0; i < graph->size; i++) copy(graph->copies[i]);
  return launched();
}
