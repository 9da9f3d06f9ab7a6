/* `T.parallel` on OpenMP: the entry that TVM's generated code calls for a parallel loop, on the thread pool that torch uses.
 *
 * Two pools that spin on the same cores slow each other down many times over; one pool serves both. */
#include <omp.h>
#include <stdint.h>

typedef struct {
  void* sync_handle;
  int32_t num_task;
} Environment;

typedef int (*Task)(int task_id, Environment* environment, void* data);

/* Same contract as TVMBackendParallelLaunch: 0 on success, else the status of a task that failed. */
int lutra_parallel_launch(Task task, void* data, int num_task) {
  int wanted = num_task > 0 ? num_task : omp_get_max_threads();
  int status = 0;
#pragma omp parallel num_threads(wanted)
  {
    /* OpenMP may grant fewer threads than were asked for: the tasks divide their range by what is there. */
    Environment environment = {0, omp_get_num_threads()};
    int result = task(omp_get_thread_num(), &environment, data);
    if (result != 0) {
#pragma omp atomic write
      status = result;
    }
  }
  return status;
}
