/* `T.parallel` on OpenMP: the entry that TVM's generated code calls for a parallel loop, on the thread pool that torch uses.
 *
 * Two pools that spin on the same cores slow each other down many times over; one pool serves both. */
#include <omp.h>
#include <stdint.h>

/* Parts of a loop for each thread. Threads take them as they come: memory does not serve all cores equally fast. */
enum { PARTS = 4 };

typedef struct {
  void* sync_handle;
  int32_t num_task;
} Environment;

typedef int (*Task)(int task_id, Environment* environment, void* data);

/* Same contract as TVMBackendParallelLaunch: 0 on success, else the status of a task that failed. */
int lutra_parallel_launch(Task task, void* data, int num_task) {
  Environment environment = {0, num_task > 0 ? num_task : PARTS * omp_get_max_threads()};
  int status = 0;
#pragma omp parallel for schedule(dynamic, 1)
  for (int part = 0; part < environment.num_task; ++part) {
    int result = task(part, &environment, data);
    if (result != 0) {
#pragma omp atomic write
      status = result;
    }
  }
  return status;
}
