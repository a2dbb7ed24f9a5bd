// What a GPU needs of libtorch and tch does not bind. No CUDA header: all of it goes through interfaces that libtorch's CPU side has,
// and fails with a text where the CUDA side is not loaded.

#include "../nn/shim.h"

#include <ATen/Context.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>

namespace {
c10::Device gpu(int index) { return c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index)); }
c10::impl::VirtualGuardImpl guard() { return c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA); }
}  // namespace

extern "C" {

// Makes this GPU the current one of the calling thread, for NCCL.
char* ssdkd_use_gpu(int index) {
  return ssdkd::guarded([&] { guard().setDevice(gpu(index)); });
}

// The CUDA stream that libtorch's kernels go to.
char* ssdkd_stream(int index, void** stream) {
  return ssdkd::guarded([&] { *stream = guard().getStreamNativeHandle(guard().getStream(gpu(index))); });
}

// Whether all that was put on it is done.
char* ssdkd_stream_is_done(int index, bool* done) {
  return ssdkd::guarded([&] { *done = guard().queryStream(guard().getStream(gpu(index))); });
}

// Bytes of the GPU that libtorch holds now, and held at most.
char* ssdkd_gpu_bytes(int index, int64_t* bytes) {
  return ssdkd::guarded([&] {
    const auto stats = c10::getDeviceAllocator(c10::DeviceType::CUDA)->getDeviceStats(static_cast<c10::DeviceIndex>(index));
    const auto& reserved = stats.reserved_bytes[0];
    bytes[0] = reserved.current, bytes[1] = reserved.peak;
  });
}

// How the GPU's libraries compute.
char* ssdkd_numerics(bool deterministic, bool tf32) {
  return ssdkd::guarded([&] {
    auto& context = at::globalContext();
    context.setDeterministicAlgorithms(deterministic, /*warn_only=*/false);
    context.setDeterministicCuDNN(deterministic);
    context.setBenchmarkCuDNN(!deterministic);
    context.setDeterministicFillUninitializedMemory(false);
    context.setAllowTF32CuDNN(tf32);
    context.setFloat32MatmulPrecision(tf32 ? "high" : "highest");
  });
}

}  // extern "C"
