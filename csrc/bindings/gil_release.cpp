#include "bindings/gil_release.h"

#include <atomic>
#include <chrono>
#include <thread>

namespace csm {
namespace {

std::atomic<bool> exiting{false};
std::atomic<int> returning{0};  // threads that are taking the GIL back
std::thread::id last;           // the thread that ends the interpreter; written before `exiting`

[[noreturn]] void sleep_forever() {
  while (true) std::this_thread::sleep_for(std::chrono::hours(1));
}

// Threads that are taking the GIL back get it now, while the interpreter still lives; none begins to from here on.
void begin_exit() {
  last = std::this_thread::get_id();
  exiting.store(true);
  PyThreadState *state = PyEval_SaveThread();
  // Bounded: a process that was forked meanwhile has counted threads that it does not have.
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(1);
  while (returning.load() > 0 && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  PyEval_RestoreThread(state);
}

}  // namespace

GilRelease::GilRelease() : state_(PyEval_SaveThread()) {}

GilRelease::~GilRelease() {
  returning.fetch_add(1);
  if (exiting.load() && std::this_thread::get_id() != last) {
    returning.fetch_sub(1);
    sleep_forever();
  }
  PyEval_RestoreThread(state_);
  returning.fetch_sub(1);
}

void watch_for_exit() { pybind11::module_::import("atexit").attr("register")(pybind11::cpp_function(&begin_exit)); }

}  // namespace csm
