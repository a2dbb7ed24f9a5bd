// What goes into the batch-norms of a program that is not ours, and how much its layers give, seen by record-function callbacks of this
// thread.

#include "shim.h"

#include <ATen/record_function.h>

#include <vector>

namespace {

using at::Tensor;
using ssdkd::guarded;

struct Call {
  // mean, biased variance, running mean, running variance, and perhaps the mean over each image.
  Tensor tensors[5];
  bool trains;
};

struct Observer {
  bool embed;
  at::CallbackHandle handle;
  std::vector<Call> calls;
};

thread_local Observer* observing = nullptr;

constexpr size_t kArguments = 9;  // of aten::batch_norm
enum { kInput = 0, kRunningMean = 3, kRunningVar = 4, kTraining = 5 };

// Statistics are taken here and not after the pass: the program may go on to write over the input. They keep its graph.
std::unique_ptr<at::ObserverContext> see(const at::RecordFunction& function) {
  if (!observing || std::strcmp(function.name(), "aten::batch_norm") != 0) return nullptr;
  // The interpreter hands over its whole stack, on top of which the operator's own arguments lie.
  const auto stack = function.inputs();
  if (stack.size() < kArguments) return nullptr;
  const auto own = stack.slice(stack.size() - kArguments);
  if (!own[kRunningMean].isTensor() || !own[kRunningMean].toTensor().defined()) return nullptr;
  const Tensor x = own[kInput].toTensor().to(at::kFloat);
  std::vector<int64_t> rows{0}, places;
  for (int64_t d = 2; d < x.dim(); ++d) rows.push_back(d), places.push_back(d);
  const auto [variance, mean] = at::var_mean(x, rows, /*unbiased=*/false);
  Tensor embedding;
  if (observing->embed) embedding = places.empty() ? x : x.mean(places);
  const auto running = [&](size_t i) { return own[i].toTensor().detach().to(at::kFloat); };
  observing->calls.push_back({{mean, variance, running(kRunningMean), running(kRunningVar), embedding}, own[kTraining].toBool()});
  return nullptr;
}

struct Counter {
  at::CallbackHandle handle;
  uint64_t values;
};

thread_local Counter* counting = nullptr;

std::unique_ptr<at::ObserverContext> before_output(const at::RecordFunction&) { return nullptr; }

// Every convolution comes to the first, every product of matrices to one of the others.
void count_output(const at::RecordFunction& function, at::ObserverContext*) {
  const auto is = [&](const char* name) { return std::strcmp(function.name(), name) == 0; };
  if (!counting || !(is("aten::_convolution") || is("aten::addmm") || is("aten::mm") || is("aten::bmm"))) return;
  const auto& outputs = function.outputs();
  if (!outputs.empty() && outputs.back().isTensor()) counting->values += outputs.back().toTensor().numel();
}

}  // namespace

extern "C" {

// Counts the values that this thread's convolutions and products of matrices give until ssdkd_counter_stop.
char* ssdkd_counter_start(Counter** out) {
  return guarded([&] {
    auto* counter = new Counter{0, 0};
    counter->handle = at::addThreadLocalCallback(
        at::RecordFunctionCallback(before_output, count_output).needsOutputs(true).scopes({at::RecordScope::FUNCTION}));
    counting = counter;
    *out = counter;
  });
}

uint64_t ssdkd_counter_values(Counter* counter) { return counter->values; }

void ssdkd_counter_stop(Counter* counter) {
  at::removeCallback(counter->handle);
  counting = nullptr;
  delete counter;
}

// Observes this thread's batch-norms until ssdkd_observer_stop; with `embed` also the mean of every input over (h, w).
char* ssdkd_observer_start(bool embed, Observer** out) {
  return guarded([&] {
    auto* observer = new Observer{embed, 0, {}};
    observer->handle = at::addThreadLocalCallback(at::RecordFunctionCallback(see).needsInputs(true).scopes({at::RecordScope::FUNCTION}));
    observing = observer;
    *out = observer;
  });
}

uint64_t ssdkd_observer_calls(Observer* observer) { return observer->calls.size(); }

// outputs: mean, variance, running mean, running variance, and with `embed` the embedding.
char* ssdkd_observer_call(Observer* observer, uint64_t index, Tensor** outputs, bool* trains) {
  return guarded([&] {
    const Call& call = observer->calls.at(index);
    for (int i = 0; i < 4 + observer->embed; ++i) outputs[i] = new Tensor(call.tensors[i]);
    *trains = call.trains;
  });
}

void ssdkd_observer_stop(Observer* observer) {
  at::removeCallback(observer->handle);
  observing = nullptr;
  delete observer;
}

}  // extern "C"
