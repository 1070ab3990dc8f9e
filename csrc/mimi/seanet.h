// What SEANet's encoder and decoder share: residual blocks between their resampling convolutions.
#pragma once

#include <string>
#include <vector>

#include "mimi/config.h"
#include "mimi/conv.h"

namespace csm::mimi {

// x + conv2(elu(conv1(elu(x))))
struct Residual {
  Conv conv1;  // channels -> channels / compress, dilated
  Conv conv2;  // back, kernel 1
};

// Those of one block, `name`.res.{j}.
std::vector<Residual> load_residuals(TensorReader &reader, const std::string &name, int channels, const Config &config);

// Signals of one block; every layer's sizes fit after need().
struct BlockScratch {
  Buffer raw;      // x
  Buffer active;   // elu(x), with the context of the next residual's conv1
  Buffer inner;    // elu(conv1(elu(x)))
  Buffer windows;  // of dilated convolutions

  void need(const std::vector<Residual> &residuals, int streams, int steps, int channels);
};

// A block's input as its producer writes it: raw x and elu(x) for the first residual, or elu(x) alone into `out`
// where there is none.
Outputs block_input(const std::vector<Residual> &residuals, const Signal &out, BlockScratch &scratch);

// Brings the context of what the next product writes: of elu(x) for residual `j`, or of `out`, which `next` reads.
void recall_active(const Worker &worker, const std::vector<Residual> &residuals, size_t j, const Signal &out,
                   const Conv &next, Contexts *const *streams, BlockScratch &scratch);

// Runs the residuals of block number `block` on its input; elu of the result goes to `out`. Ends with a barrier.
void run_residuals(const Worker &worker, const std::vector<Residual> &residuals, const Signal &out, const Conv &next,
                   Contexts *const *streams, BlockScratch &scratch, int block);

}  // namespace csm::mimi
