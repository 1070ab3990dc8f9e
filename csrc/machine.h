// What this machine can do at best, measured: bytes read a second by working-set size, and operations a
// second out of registers. The yardsticks that the benchmark holds every stage against.
#pragma once

#include <cstddef>
#include <vector>

#include "foundation/thread_pool.h"

namespace csm {

enum class Arithmetic {
  f32,   // multiply-add: 2 operations a lane
  int8,  // products of signed and unsigned bytes summed in 32 bits, as this instruction set does them
};

// Bytes read a second, `samples` >= 1 times, each over at least `seconds` > 0 of reading. The workers of the
// pool each read their own share of `bytes` (at least 64 a worker) over and over, from ordinary memory that
// they touched first. Throws std::invalid_argument, std::bad_alloc.
std::vector<double> measure_read(ThreadPool &pool, size_t bytes, int samples, double seconds);

// Operations a second of all workers together (a multiplication and an addition count as two), as above.
std::vector<double> measure_peak(ThreadPool &pool, Arithmetic arithmetic, int samples, double seconds);

}  // namespace csm
