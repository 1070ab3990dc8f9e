// A fixed team of threads that runs one job at a time, all members on the same function.
#pragma once

#include <functional>
#include <memory>

namespace csm {

class ThreadPool {
 public:
  // A team of `threads` >= 1 members; the caller of run() is member 0.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool &) = delete;
  ThreadPool &operator=(const ThreadPool &) = delete;

  int threads() const;

  // Calls job(member) on every member, 0 <= member < threads(), and returns when all are done.
  // Callers on several threads take turns. The job must not throw, nor call run().
  void run(const std::function<void(int member)> &job);

  // Inside a job: waits until every member has come here.
  void barrier();

 private:
  struct Team;
  std::unique_ptr<Team> team_;
};

// The half-open share [begin, end) of `count` items that falls to `member` of `members`,
// in whole multiples of `grain`.
struct Range {
  int begin;
  int end;
};
Range share(int count, int member, int members, int grain = 1);

}  // namespace csm
