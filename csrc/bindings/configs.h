// Configurations as Python hands them over: objects with a field for each size.
#pragma once

#include <pybind11/pybind11.h>

#include "llama_tower.h"
#include "mimi/config.h"

namespace csm {

// Throw std::invalid_argument where a field is missing or of the wrong type.
mimi::Config codec_config(const pybind11::object &from);  // a csm_hybrid MimiConfig
TowerConfig tower_config(const pybind11::object &from);   // a csm_hybrid TowerConfig

}  // namespace csm
