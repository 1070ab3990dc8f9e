// The sizes of models, and the rules that they must keep.
#include "bindings/configs.h"

#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/bindings.h"

namespace py = pybind11;

namespace csm {
namespace {

template <class T>
T field(const py::object &config, const char *name) {
  try {
    return config.attr(name).cast<T>();
  } catch (const py::error_already_set &) {
    throw std::invalid_argument(std::string("configuration: no field ") + name);
  } catch (const py::cast_error &) {
    throw std::invalid_argument(std::string("configuration: ") + name + " has the wrong type");
  }
}

}  // namespace

mimi::Config codec_config(const py::object &from) {
  mimi::Config c;
  c.sample_rate = field<int>(from, "sample_rate");
  c.frame_samples = field<int>(from, "frame_samples");
  c.codebooks = field<int>(from, "codebooks");
  c.semantic_codebooks = field<int>(from, "semantic_codebooks");
  c.codebook_size = field<int>(from, "codebook_size");
  c.codebook_dim = field<int>(from, "codebook_dim");
  c.width = field<int>(from, "width");
  c.filters = field<int>(from, "filters");
  c.ratios = field<std::vector<int>>(from, "ratios");
  c.kernel = field<int>(from, "kernel");
  c.residual_kernel = field<int>(from, "residual_kernel");
  c.last_kernel = field<int>(from, "last_kernel");
  c.residual_layers = field<int>(from, "residual_layers");
  c.dilation_growth = field<int>(from, "dilation_growth");
  c.compress = field<int>(from, "compress");
  c.layers = field<int>(from, "layers");
  c.heads = field<int>(from, "heads");
  c.kv_heads = field<int>(from, "kv_heads");
  c.head_dim = field<int>(from, "head_dim");
  c.ffn = field<int>(from, "ffn");
  c.context = field<int>(from, "context");
  c.rope_theta = field<float>(from, "rope_theta");
  c.norm_eps = field<float>(from, "norm_eps");
  c.upsample_groups = field<int>(from, "upsample_groups");
  return c;
}

TowerConfig tower_config(const py::object &from) {
  return {field<int>(from, "layers"),     field<int>(from, "width"),         field<int>(from, "heads"),
          field<int>(from, "kv_heads"),   field<int>(from, "head_dim"),      field<int>(from, "ffn"),
          field<float>(from, "norm_eps"), field<double>(from, "rope_theta"), field<int>(from, "positions")};
}

void bind_configs(py::module_ &m) {
  py::class_<TowerConfig>(m, "TowerConfig", "Sizes of a Llama tower; see csrc/llama_tower.h.")
      .def(py::init([](int layers, int width, int heads, int kv_heads, int head_dim, int ffn, float norm_eps,
                       double rope_theta, int positions) {
             return TowerConfig{layers, width, heads, kv_heads, head_dim, ffn, norm_eps, rope_theta, positions};
           }),
           py::kw_only(), py::arg("layers"), py::arg("width"), py::arg("heads"), py::arg("kv_heads"),
           py::arg("head_dim"), py::arg("ffn"), py::arg("norm_eps"), py::arg("rope_theta"), py::arg("positions"));
  m.def(
      "codec_problems", [](const py::object &config) { return codec_config(config).rules().problems(); },
      py::arg("config"),
      "Which rules the sizes of a MimiConfig break, a sentence each; none where the codec can be made.\n\n"
      "Raises ValueError for a field that is missing or does not fit its type.");
  m.def(
      "tower_problems", [](const py::object &config) { return tower_config(config).rules().problems(); },
      py::arg("config"), "The same for the sizes of a Llama tower.");
}

}  // namespace csm
