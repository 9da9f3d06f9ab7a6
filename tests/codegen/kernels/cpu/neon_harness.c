/* Runs one kernel that TVM compiled for aarch64, in qemu's user mode: tensors come from standard input, and go to standard
 * output after the call. Linked statically with the kernel's object file; what that needs of TVM's runtime is here.
 *
 * On the input a tensor is int32 type code, bits and dimensions, int64 sizes, and its elements; on the output elements. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <tvm/ffi/c_api.h>
#include <unistd.h>

enum { MOST_TENSORS = 16, MOST_DIMENSIONS = 8, TASKS = 3 };

typedef struct {
  void* sync_handle;
  int32_t num_task;
} Environment;

typedef int (*Task)(int task_id, Environment* environment, void* data);

int __tvm_ffi_main(void* self, const TVMFFIAny* args, int32_t num_args, TVMFFIAny* result);

static void fail(const char* what) {
  fprintf(stderr, "%s\n", what);
  exit(2);
}

/* Memory that ends where a page without access begins: what is read or written past it stops the program. */
static void* guarded(size_t bytes) {
  size_t page = sysconf(_SC_PAGESIZE), inside = (bytes + page - 1) / page * page;
  char* start = mmap(0, inside + page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED || (inside && mprotect(start, inside, PROT_READ | PROT_WRITE))) fail("no memory");
  return start + inside - bytes;
}

/* More tasks than one, so that kernels divide their work; one after the other. */
static int launch(Task task, void* data, int num_task) {
  Environment environment = {0, num_task > 0 ? num_task : TASKS};
  int status = 0;
  for (int id = 0; id < environment.num_task && !status; ++id) status = task(id, &environment, data);
  return status;
}

static void* allocate(int device_type, int device_id, uint64_t bytes, int code, int bits) {
  return aligned_alloc(64, (bytes + 63) / 64 * 64);
}

static int release(int device_type, int device_id, void* data) {
  free(data);
  return 0;
}

/* The pointers that TVM's runtime sets in a library that it loads. */
int (*__TVMBackendParallelLaunch)(Task, void*, int) = launch;
void* (*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = allocate;
int (*__TVMBackendFreeWorkspace)(int, int, void*) = release;

void TVMFFIErrorSetRaisedFromCStrParts(const char* kind, const char** parts, int32_t count) {
  fprintf(stderr, "%s: ", kind);
  for (int i = 0; i < count; ++i) fputs(parts[i] ? parts[i] : "", stderr);
  fputc('\n', stderr);
}

static void get(void* to, size_t bytes) {
  if (fread(to, 1, bytes, stdin) != bytes) fail("the input ends inside a tensor");
}

int main(void) {
  static DLTensor tensors[MOST_TENSORS];
  static int64_t shapes[MOST_TENSORS][MOST_DIMENSIONS], strides[MOST_TENSORS][MOST_DIMENSIONS];
  static size_t sizes[MOST_TENSORS];
  TVMFFIAny arguments[MOST_TENSORS] = {0}, result = {0};
  int count = 0;
  for (int32_t header[3]; fread(header, sizeof header, 1, stdin) == 1; ++count) {
    if (count == MOST_TENSORS || header[2] > MOST_DIMENSIONS) fail("too many tensors or dimensions");
    DLDataType dtype = {(uint8_t)header[0], (uint8_t)header[1], 1};
    get(shapes[count], header[2] * sizeof(int64_t));
    sizes[count] = dtype.bits / 8;
    for (int i = header[2] - 1; i >= 0; --i) {
      strides[count][i] = sizes[count] / (dtype.bits / 8);
      sizes[count] *= shapes[count][i];
    }
    void* data = guarded(sizes[count]);
    get(data, sizes[count]);
    tensors[count] = (DLTensor){data, {kDLCPU, 0}, header[2], dtype, shapes[count], strides[count], 0};
    arguments[count].type_index = kTVMFFIDLTensorPtr;
    arguments[count].v_ptr = &tensors[count];
  }
  if (__tvm_ffi_main(0, arguments, count, &result)) fail("the kernel returned an error");
  for (int i = 0; i < count; ++i) fwrite(tensors[i].data, 1, sizes[i], stdout);
  return 0;
}
