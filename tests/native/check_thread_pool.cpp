// Jobs of several callers, barriers and stolen chunks, to be run under ThreadSanitizer. Without Python.
#include <cstdio>
#include <thread>
#include <vector>

#include "foundation/thread_pool.h"
#include "foundation/work_stealing.h"

namespace {

constexpr int kWorkers = 3, kItems = 500, kGrain = 2, kRounds = 20, kJobs = 40;

int failures = 0;

void expect(bool holds, const char *what) {
  if (holds) return;
  std::printf("failed: %s\n", what);
  ++failures;
}

// Every worker adds to items that another had before the barrier.
void take_turns() {
  csm::ThreadPool pool(kWorkers);
  csm::BarrierWaits waits;
  csm::WorkStealing stealing(kWorkers);
  std::vector<int> counts(kItems);
  const auto add = [&](csm::Range range) {
    for (int i = range.begin; i < range.end; ++i) ++counts[static_cast<std::size_t>(i)];
  };
  const auto job = [&](int worker) {
    for (int round = 0; round < kRounds; ++round) {
      stealing.run(worker, kItems, kGrain, add);
      pool.barrier();
      if (worker == 0) expect(waits.waited() >= 0, "waits are times");
      pool.barrier();
    }
  };
  std::thread other([&] {
    for (int i = 0; i < kJobs; ++i) pool.run(job, &waits);
  });
  for (int i = 0; i < kJobs; ++i) pool.run(job);
  other.join();
  bool all = true;
  for (const int count : counts) all = all && count == 2 * kJobs * kRounds;
  expect(all, "every item is worked on once a round");
}

void pools_come_and_go() {
  for (int i = 0; i < 20; ++i) {
    csm::ThreadPool pool(kWorkers);
    int workers[kWorkers] = {};
    if (i % 2 == 0) pool.run([&](int worker) { workers[worker] = 1; });
    for (const int seen : workers) expect(seen == (i % 2 == 0), "every worker runs the job");
  }
}

}  // namespace

int main() {
  take_turns();
  pools_come_and_go();
  std::puts(failures == 0 ? "ok" : "failed");
  return failures != 0;
}
