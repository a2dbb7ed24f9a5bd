// A forward pass as a TorchScript module: its operators in order, its parameters and buffers under the keys of the state_dict.
// tch traces too, but makes every weight a constant: such a module has no parameters, and none of them follows it to a GPU.

#include "shim.h"

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/frontend/tracer.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/passes/dead_code_elimination.h>

#include <iomanip>
#include <map>
#include <sstream>

namespace {

using at::Tensor;
using ssdkd::guarded;
using torch::jit::Module;
using torch::jit::Value;
namespace prim = torch::jit::prim;
namespace tracer = torch::jit::tracer;

// "layer1.0.conv1.weight" -> "layer1.0.conv1" and "weight".
std::pair<std::string, std::string> split(const std::string& key) {
  const size_t dot = key.rfind('.');
  return dot == std::string::npos ? std::make_pair(std::string(), key) : std::make_pair(key.substr(0, dot), key.substr(dot + 1));
}

struct Modules {
  std::shared_ptr<torch::jit::CompilationUnit> unit = std::make_shared<torch::jit::CompilationUnit>();
  std::map<std::string, Module> known;

  Module& at(const std::string& path) {
    if (auto found = known.find(path); found != known.end()) return found->second;
    Module made(c10::QualifiedName(path.empty() ? "__torch__.Network" : "__torch__.Part"), unit, /*shouldMangle=*/true);
    made.register_attribute("training", c10::BoolType::get(), false);
    if (!path.empty()) {
      const auto [parent, name] = split(path);
      at(parent).register_module(name, made);
    }
    return known.emplace(path, made).first->second;
  }
};

struct Values {
  torch::jit::Graph& graph;
  std::map<std::string, Value*> known;

  Value* at(const std::string& path) {
    if (auto found = known.find(path); found != known.end()) return found->second;
    const auto [parent, name] = split(path);
    return known[path] = graph.insertNode(graph.createGetAttr(at(parent), name))->output();
  }
};

std::string key_of(const Value* value) {
  if (value->node()->kind() != prim::GetAttr) return "";
  const std::string parent = key_of(value->node()->input());
  return (parent.empty() ? "" : parent + ".") + value->node()->s(torch::jit::attr::name);
}

void write_constant(std::ostream& out, const c10::IValue& value) {
  const auto list = [&](const auto& items) {
    out << "[";
    for (size_t i = 0; i < items.size(); ++i) out << (i ? "," : "") << items[i];
    out << "]";
  };
  if (value.isNone()) out << "null";
  else if (value.isBool()) out << (value.toBool() ? "true" : "false");
  else if (value.isInt()) out << value.toInt();
  else if (value.isDouble()) out << value.toDouble();
  else if (value.isIntList()) list(value.toIntVector());
  else if (value.isDoubleList()) list(value.toDoubleVector());
  else out << "{\"constant\":\"" << value.tagKind() << "\"}";
}

void write_operand(std::ostream& out, Value* value) {
  const auto kind = value->node()->kind();
  if (kind == prim::Constant) {
    write_constant(out, torch::jit::toIValue(value).value());
  } else if (kind == prim::ListConstruct) {
    out << "[";
    for (size_t i = 0; i < value->node()->inputs().size(); ++i) {
      out << (i ? "," : "");
      write_operand(out, value->node()->input(i));
    }
    out << "]";
  } else if (kind == prim::GetAttr) {
    out << "{\"entry\":\"" << key_of(value) << "\"}";
  } else {
    out << "{\"value\":\"" << value->debugName() << "\"}";
  }
}

}  // namespace

extern "C" {

// From here to ssdkd_trace_end this thread's operators are recorded. `tensors` are those that the pass will use; the module gets copies.
char* ssdkd_trace_begin(Tensor* images, const char* const* keys, Tensor* const* tensors, const bool* trained, size_t count,
                        Module** output) {
  return guarded([&] {
    TORCH_CHECK(!tracer::isTracing(), "a pass is being traced already");
    Modules modules;
    Module& root = modules.at("");
    for (size_t i = 0; i < count; ++i) {
      const auto [path, name] = split(keys[i]);
      const Tensor copy = tensors[i]->detach().clone();
      modules.at(path).register_parameter(name, trained[i] ? copy.set_requires_grad(true) : copy, /*is_buffer=*/!trained[i]);
    }
    auto state = std::make_shared<tracer::TracingState>();
    Values values{*state->graph, {}};
    values.known[""] = state->graph->insertInput(0, "self")->setType(root._ivalue()->type());
    state->setValue(*images, state->graph->addInput("images")->setType(c10::TensorType::get()));
    for (size_t i = 0; i < count; ++i) state->setValue(*tensors[i], values.at(keys[i]));
    *output = new Module(root);
    tracer::setTracingState(state);
  });
}

// What was recorded becomes the module's forward, with one output; null gives the recording up.
char* ssdkd_trace_end(Module* module, Tensor* output) {
  return guarded([&] {
    const auto state = tracer::getTracingState();
    TORCH_CHECK(state, "no pass is being traced");
    {
      struct End {
        ~End() { tracer::setTracingState(nullptr); }
      } end;
      // Asked while it is being traced: libtorch looks the value up in this thread's recording.
      if (output) state->graph->registerOutput(state->getValue(*output));
    }
    if (!output) return;
    torch::jit::EliminateDeadCode(state->graph);
    const c10::QualifiedName name(*module->type()->name(), "forward");
    module->type()->addMethod(module->_ivalue()->compilation_unit()->create_function(name, state->graph));
  });
}

// The module as a TorchScript file holds it; the caller frees the bytes with ssdkd_free.
char* ssdkd_module_bytes(Module* module, char** bytes, size_t* length) {
  return guarded([&] {
    std::ostringstream out;
    module->save(out);
    const std::string text = out.str();
    *length = text.size();
    *bytes = static_cast<char*>(malloc(text.size()));
    TORCH_CHECK(*bytes, "no memory for ", text.size(), " bytes");
    std::memcpy(*bytes, text.data(), text.size());
  });
}

// The operators of the module's forward as JSON.
char* ssdkd_module_graph(Module* module, char** json) {
  return guarded([&] {
    const auto graph = module->get_method("forward").graph();
    std::ostringstream out;
    out << std::setprecision(17) << "{\"nodes\":[";
    const char* comma = "";
    for (torch::jit::Node* node : graph->nodes()) {
      const auto kind = node->kind();
      if (kind == prim::Constant || kind == prim::GetAttr || kind == prim::ListConstruct) continue;
      TORCH_CHECK(node->outputs().size() == 1, kind.toQualString(), " has more than one output");
      out << comma << "{\"operator\":\"" << kind.toQualString() << "\",\"inputs\":[";
      for (size_t i = 0; i < node->inputs().size(); ++i) {
        out << (i ? "," : "");
        write_operand(out, node->input(i));
      }
      out << "],\"output\":\"" << node->output()->debugName() << "\"}";
      comma = ",";
    }
    out << "],\"output\":\"" << graph->outputs().at(0)->debugName() << "\"}";
    *json = strdup(out.str().c_str());
  });
}

void ssdkd_module_free(Module* module) { delete module; }

}  // extern "C"
