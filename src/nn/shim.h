// What the C++ files share.

#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/variable.h>

#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
// By feature: GCC takes a clone for `arch=haswell` on that model only, and other processors with AVX2 would get the default. Without
// FMA, which a clone cannot name beside AVX2: the passes wait for memory, not for arithmetic.
#define MULTIVERSIONED __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define MULTIVERSIONED
#endif

namespace ssdkd {

inline at::Tensor channels_last(const at::Tensor& t) { return t.contiguous(at::MemoryFormat::ChannelsLast); }

// Runs the body of an entry point: null, or an error text that the caller frees with ssdkd_free.
template <typename F>
char* guarded(const F& body) {
  try {
    body();
    return nullptr;
  } catch (const c10::Error& e) {
    return strdup(e.what_without_backtrace());
  } catch (const std::exception& e) {
    return strdup(e.what());
  }
}

}  // namespace ssdkd
