// One thread's view of a pass that all threads of the pool run together.
#pragma once

#include "foundation/profile.h"
#include "foundation/thread_pool.h"
#include "kernels/dense.h"
#include "mimi/matrix.h"

namespace csm::mimi {

struct Worker {
  ThreadPool *pool;
  int index;
  int count;
  Profile *profile;

  // All workers have come here: the stage is complete.
  void finish(const char *stage, int number = -1) const {
    pool->barrier();
    profile->end_stage(index, stage, number);
  }
  Range share(int items, int grain = 1) const { return csm::share(items, index, count, grain); }
};

// This worker's share of a product of `rows` rows.
void multiply(const Worker &worker, const DenseMatMul &product, int rows);

}  // namespace csm::mimi
