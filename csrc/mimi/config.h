// Sizes of the codec; names and meanings are those of csm_hybrid/model/config.py, MimiConfig.
#pragma once

#include <vector>

#include "foundation/rules.h"

namespace csm::mimi {

struct Config {
  int sample_rate = 0;
  int frame_samples = 0;  // samples per frame of codes
  int codebooks = 0;
  int semantic_codebooks = 0;
  int codebook_size = 0;
  int codebook_dim = 0;
  int width = 0;
  int filters = 0;
  std::vector<int> ratios;  // the decoder's order, largest first
  int kernel = 0;
  int residual_kernel = 0;
  int last_kernel = 0;
  int residual_layers = 0;
  int dilation_growth = 0;
  int compress = 0;
  int layers = 0;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int ffn = 0;
  int context = 0;
  float rope_theta = 0;
  float norm_eps = 0;
  int upsample_groups = 0;

  int hop() const;     // samples per step of the convolutional stacks
  int stride() const;  // steps per frame

  // Which rules the sizes break.
  Rules rules() const;
  // Throws std::invalid_argument that lists them.
  void check() const { rules().check("codec configuration"); }
};

}  // namespace csm::mimi
