// What goes into the batch-norms of a program that is not ours, seen by a record-function callback of this thread.

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

}  // namespace

extern "C" {

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
