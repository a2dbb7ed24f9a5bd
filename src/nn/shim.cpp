// What tch does not bind, and the fused batch-norm passes. Every entry point returns null, or an error text that the
// caller frees with ssdkd_free.
//
// The fused operators work on channels-last f32 or bf16 CPU tensors, seen as `rows x channels` matrices; bf16 is converted in
// registers. Partial sums run over fixed blocks of rows in f32 and are added block by block in f64, so a result does not depend on
// the number of threads.

#include "shim.h"

#include <ATen/Context.h>
#include <ATen/Version.h>
#include <torch/version.h>

#include <c10/core/CPUAllocator.h>

#include <atomic>
#include <vector>

namespace {

using at::Tensor;
using ssdkd::channels_last;
using ssdkd::guarded;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kBlockRows = 256;

typedef float Lane __attribute__((vector_size(32), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(32), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(16), aligned(2), may_alias));
constexpr int kLane = 8;

inline __attribute__((always_inline)) Lane load(const float* p) { return *reinterpret_cast<const Lane*>(p); }
inline __attribute__((always_inline)) void store(float* p, Lane v) { *reinterpret_cast<Lane*>(p) = v; }
// bf16 is the upper half of an f32; rounded to nearest, ties to even. The NaN that arithmetic gives stays one.
inline __attribute__((always_inline)) Lane load(const at::BFloat16* p) {
  return (Lane)(__builtin_convertvector(*reinterpret_cast<const Halves*>(p), Bits) << 16);
}
inline __attribute__((always_inline)) void store(at::BFloat16* p, Lane v) {
  const Bits bits = (Bits)v;
  *reinterpret_cast<Halves*>(p) = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, Halves);
}

// Per-channel constants that the loops need, padded so that a whole lane may always be read.
struct Channels {
  std::vector<float> values;
  int64_t count, stride;
  Channels(int64_t channels, int64_t kinds) : values(kinds * (channels + kLane), 0.f), count(channels), stride(channels + kLane) {}
  float* operator[](int64_t kind) { return values.data() + kind * stride; }
  const float* operator[](int64_t kind) const { return values.data() + kind * stride; }
};

// Walks the channels of a block a lane at a time; the last lane of an odd channel count is staged through a small buffer.
#define FOR_LANES(c, width, channels) \
  for (int64_t c = 0, width = 0; width = std::min<int64_t>(kLane, (channels) - c), c < (channels); c += kLane)

template <typename T>
inline __attribute__((always_inline)) Lane load_some(const T* p, int64_t width) {
  if (width == kLane) return load(p);
  T staged[kLane] = {};
  std::memcpy(staged, p, width * sizeof(T));
  return load(staged);
}
template <typename T>
inline __attribute__((always_inline)) void store_some(T* p, Lane v, int64_t width) {
  if (width == kLane) return store(p, v);
  T staged[kLane];
  store(staged, v);
  std::memcpy(p, staged, width * sizeof(T));
}

// activation(v) = max(v, slope * v): identity for slope 1, ReLU for 0, leaky ReLU in between.
inline __attribute__((always_inline)) Lane activate(Lane v, float slope) {
  const Lane w = v * slope;
  return v > w ? v : w;
}
inline __attribute__((always_inline)) Lane gate(Lane v, Lane g, float slope) { return v > 0.f ? g : g * slope; }

// sums[0..C) = sum of (x - centre), sums[C..2C) = sum of (x - centre)^2 over the rows of one block.
template <typename T>
MULTIVERSIONED void block_moments(const T* x, int64_t rows, int64_t channels, const float* centre, float* sums) {
  FOR_LANES(c, width, channels) {
    const Lane m = load(centre + c);
    Lane s1 = {}, s2 = {};
    for (int64_t r = 0; r < rows; ++r) {
      const Lane d = load_some(x + r * channels + c, width) - m;
      s1 += d;
      s2 += d * d;
    }
    store_some(sums + c, s1, width);
    store_some(sums + channels + c, s2, width);
  }
}

// y = activation(a x + b).
template <typename T>
MULTIVERSIONED void block_affine(const T* x, T* y, int64_t rows, int64_t channels, const float* a, const float* b, float slope) {
  FOR_LANES(c, width, channels) {
    const Lane scale = load(a + c), shift = load(b + c);
    for (int64_t r = 0; r < rows; ++r)
      store_some(y + r * channels + c, activate(load_some(x + r * channels + c, width) * scale + shift, slope), width);
  }
}

// Both of the above while the block is read once.
template <typename T>
MULTIVERSIONED void block_affine_moments(const T* x, T* y, int64_t rows, int64_t channels, const float* a, const float* b,
                                         float slope, const float* centre, float* sums) {
  FOR_LANES(c, width, channels) {
    const Lane scale = load(a + c), shift = load(b + c), m = load(centre + c);
    Lane s1 = {}, s2 = {};
    for (int64_t r = 0; r < rows; ++r) {
      const Lane v = load_some(x + r * channels + c, width), d = v - m;
      s1 += d;
      s2 += d * d;
      store_some(y + r * channels + c, activate(v * scale + shift, slope), width);
    }
    store_some(sums + c, s1, width);
    store_some(sums + channels + c, s2, width);
  }
}

// gx = a * gy * activation'(a x + b) + p + q * (x - m), the gradient through a frozen batch-norm and its input statistics.
template <typename T>
MULTIVERSIONED void block_frozen_backward(const T* x, const T* gy, T* gx, int64_t rows, int64_t channels, const float* a,
                                          const float* b, float slope, const float* p, const float* q, const float* m) {
  FOR_LANES(c, width, channels) {
    const Lane scale = load(a + c), shift = load(b + c), pc = load(p + c), qc = load(q + c), mc = load(m + c);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = r * channels + c;
      const Lane v = load_some(x + at, width), g = gate(v * scale + shift, load_some(gy + at, width), slope);
      store_some(gx + at, scale * g + (pc + qc * (v - mc)), width);
    }
  }
}

// sums[0..C) = sum of g, sums[C..2C) = sum of g (x - m) with g the gradient before the activation.
template <typename T>
MULTIVERSIONED void block_gradient_moments(const T* x, const T* gy, int64_t rows, int64_t channels, const float* a, const float* b,
                                           float slope, const float* m, float* sums) {
  FOR_LANES(c, width, channels) {
    const Lane scale = load(a + c), shift = load(b + c), mc = load(m + c);
    Lane s1 = {}, s2 = {};
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = r * channels + c;
      const Lane v = load_some(x + at, width), g = gate(v * scale + shift, load_some(gy + at, width), slope);
      s1 += g;
      s2 += g * (v - mc);
    }
    store_some(sums + c, s1, width);
    store_some(sums + channels + c, s2, width);
  }
}

struct Rows {
  int64_t count, channels, blocks;
  explicit Rows(const Tensor& x) : count(x.numel() / x.size(1)), channels(x.size(1)), blocks((count + kBlockRows - 1) / kBlockRows) {}
  template <typename F>
  void each_block(const F& body) const {
    at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = block * kBlockRows;
        body(block, first * channels, std::min(kBlockRows, count - first));
      }
    });
  }
  // Adds the blocks' partial sums, in block order, in f64.
  std::vector<double> total(const std::vector<float>& partial) const {
    std::vector<double> sums(2 * channels, 0.0);
    for (int64_t block = 0; block < blocks; ++block)
      for (int64_t i = 0; i < 2 * channels; ++i) sums[i] += partial[block * 2 * channels + i];
    return sums;
  }
};

// Calls `body` with a value of the tensor's element type.
template <typename F>
void by_type(const Tensor& t, const F& body) {
  if (t.scalar_type() == at::kBFloat16) body(at::BFloat16());
  else body(0.f);
}

void copy_to(float* out, const Tensor& t) { std::memcpy(out, t.data_ptr<float>(), t.numel() * sizeof(float)); }
Tensor vector_of(const double* values, int64_t count) {
  Tensor out = at::empty({count}, at::kFloat);
  float* to = out.data_ptr<float>();
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(values[i]);
  return out;
}

// y = activation(k0 x + k1).
void affine(const Rows& rows, const Tensor& x, const Tensor& y, const Channels& k, float slope) {
  by_type(x, [&](auto type) {
    const auto* from = x.data_ptr<decltype(type)>();
    auto* to = y.data_ptr<decltype(type)>();
    rows.each_block([&](int64_t, int64_t at, int64_t n) { block_affine(from + at, to + at, n, rows.channels, k[0], k[1], slope); });
  });
}

// gx from gy, with the constants of block_frozen_backward.
void to_input(const Rows& rows, const Tensor& x, const Tensor& gy, const Tensor& gx, const Channels& k, float slope) {
  by_type(x, [&](auto type) {
    const auto *xs = x.data_ptr<decltype(type)>(), *gs = gy.data_ptr<decltype(type)>();
    auto* to = gx.data_ptr<decltype(type)>();
    rows.each_block([&](int64_t, int64_t at, int64_t n) {
      block_frozen_backward(xs + at, gs + at, to + at, n, rows.channels, k[0], k[1], slope, k[2], k[3], k[4]);
    });
  });
}

// y = activation(a x + b) with constant a, b; also the mean and biased variance of x per channel.
struct FrozenBatchNorm : public torch::autograd::Function<FrozenBatchNorm> {
  static variable_list forward(AutogradContext* ctx, const Tensor& input, const Tensor& a, const Tensor& b, const Tensor& centre,
                               double slope, bool statistics) {
    const Tensor x = channels_last(input);
    const Rows rows(x);
    Channels k(rows.channels, 3);
    copy_to(k[0], a), copy_to(k[1], b), copy_to(k[2], centre);
    Tensor y = at::empty_like(x);
    const float s = static_cast<float>(slope);
    ctx->set_materialize_grads(false);
    ctx->saved_data["slope"] = slope;
    if (!statistics) {
      affine(rows, x, y, k, s);
      ctx->save_for_backward({x, a, b});
      return {y};
    }
    std::vector<float> partial(rows.blocks * 2 * rows.channels);
    by_type(x, [&](auto type) {
      const auto* from = x.data_ptr<decltype(type)>();
      auto* to = y.data_ptr<decltype(type)>();
      rows.each_block([&](int64_t block, int64_t at, int64_t n) {
        block_affine_moments(from + at, to + at, n, rows.channels, k[0], k[1], s, k[2], partial.data() + block * 2 * rows.channels);
      });
    });
    std::vector<double> sums = rows.total(partial);
    for (int64_t c = 0; c < rows.channels; ++c) {
      const double m1 = sums[c] / rows.count, m2 = sums[rows.channels + c] / rows.count;
      sums[c] = k[2][c] + m1;
      sums[rows.channels + c] = m2 - m1 * m1;
    }
    Tensor mean = vector_of(sums.data(), rows.channels), variance = vector_of(sums.data() + rows.channels, rows.channels);
    ctx->save_for_backward({x, a, b, mean});
    return {y, mean, variance};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0];
    const Rows rows(x);
    Channels k(rows.channels, 5);
    copy_to(k[0], saved[1]), copy_to(k[1], saved[2]);
    if (saved.size() > 3) {
      copy_to(k[4], saved[3]);
      if (grads[1].defined())
        for (int64_t c = 0; c < rows.channels; ++c) k[2][c] = grads[1].data_ptr<float>()[c] / rows.count;
      if (grads[2].defined())
        for (int64_t c = 0; c < rows.channels; ++c) k[3][c] = 2.f * grads[2].data_ptr<float>()[c] / rows.count;
    }
    const Tensor gy = grads[0].defined() ? channels_last(grads[0]) : at::zeros_like(x);
    Tensor gx = at::empty_like(x);
    to_input(rows, x, gy, gx, k, static_cast<float>(ctx->saved_data["slope"].toDouble()));
    return {gx, Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

// activation(batch_norm(x)) with batch statistics; moves the running statistics as PyTorch does.
struct TrainedBatchNorm : public torch::autograd::Function<TrainedBatchNorm> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& weight, const Tensor& bias, Tensor running_mean,
                        Tensor running_var, double momentum, double eps, double slope) {
    const Tensor x = channels_last(input);
    const Rows rows(x);
    const int64_t channels = rows.channels;
    Channels k(channels, 3);
    float *means = running_mean.data_ptr<float>(), *vars = running_var.data_ptr<float>();
    std::memcpy(k[2], means, channels * sizeof(float));
    std::vector<float> partial(rows.blocks * 2 * channels);
    by_type(x, [&](auto type) {
      const auto* from = x.data_ptr<decltype(type)>();
      rows.each_block([&](int64_t block, int64_t at, int64_t n) {
        block_moments(from + at, n, channels, k[2], partial.data() + block * 2 * channels);
      });
    });
    std::vector<double> sums = rows.total(partial), inverse(channels);
    const float *gamma = weight.data_ptr<float>(), *beta = bias.data_ptr<float>();
    for (int64_t c = 0; c < channels; ++c) {
      const double m1 = sums[c] / rows.count, mean = k[2][c] + m1;
      const double variance = std::max(0.0, sums[channels + c] / rows.count - m1 * m1);
      inverse[c] = 1.0 / std::sqrt(variance + eps);
      sums[c] = mean;
      k[0][c] = static_cast<float>(gamma[c] * inverse[c]);
      k[1][c] = static_cast<float>(beta[c] - gamma[c] * inverse[c] * mean);
      const double unbiased = rows.count > 1 ? variance * rows.count / (rows.count - 1) : variance;
      means[c] = static_cast<float>((1.0 - momentum) * means[c] + momentum * mean);
      vars[c] = static_cast<float>((1.0 - momentum) * vars[c] + momentum * unbiased);
    }
    Tensor y = at::empty_like(x);
    affine(rows, x, y, k, static_cast<float>(slope));
    Tensor a = at::empty({channels}, at::kFloat), b = at::empty({channels}, at::kFloat);
    std::memcpy(a.data_ptr<float>(), k[0], channels * sizeof(float));
    std::memcpy(b.data_ptr<float>(), k[1], channels * sizeof(float));
    ctx->saved_data["slope"] = slope;
    ctx->save_for_backward({x, a, b, vector_of(sums.data(), channels), vector_of(inverse.data(), channels)});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], gy = channels_last(grads[0]);
    const Rows rows(x);
    const int64_t channels = rows.channels;
    const float slope = static_cast<float>(ctx->saved_data["slope"].toDouble());
    Channels k(channels, 5);
    copy_to(k[0], saved[1]), copy_to(k[1], saved[2]), copy_to(k[4], saved[3]);
    const float* inverse = saved[4].data_ptr<float>();
    std::vector<float> partial(rows.blocks * 2 * channels);
    by_type(x, [&](auto type) {
      const auto *xs = x.data_ptr<decltype(type)>(), *gs = gy.data_ptr<decltype(type)>();
      rows.each_block([&](int64_t block, int64_t at, int64_t n) {
        block_gradient_moments(xs + at, gs + at, n, channels, k[0], k[1], slope, k[4], partial.data() + block * 2 * channels);
      });
    });
    std::vector<double> sums = rows.total(partial), dweight(channels);
    for (int64_t c = 0; c < channels; ++c) {
      const double through = sums[channels + c] * inverse[c] * inverse[c] / rows.count;
      dweight[c] = sums[channels + c] * inverse[c];
      k[2][c] = static_cast<float>(-k[0][c] * sums[c] / rows.count);
      k[3][c] = static_cast<float>(-k[0][c] * through);
    }
    Tensor gx;
    if (ctx->needs_input_grad(0)) {
      gx = at::empty_like(x);
      to_input(rows, x, gy, gx, k, slope);
    }
    return {gx, vector_of(dweight.data(), channels), vector_of(sums.data(), channels), Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

// The allocator that was there, and how much it was asked for.
struct CountingAllocator final : public c10::Allocator {
  c10::Allocator* inner = nullptr;
  std::atomic<uint64_t> bytes{0};
  c10::DataPtr allocate(size_t size) override {
    bytes.fetch_add(size, std::memory_order_relaxed);
    return inner->allocate(size);
  }
  c10::DeleterFnPtr raw_deleter() const override { return inner->raw_deleter(); }
  void copy_data(void* to, const void* from, std::size_t size) const override { default_copy_data(to, from, size); }
};

}  // namespace

extern "C" {

void ssdkd_free(char* text) { std::free(text); }

// Makes `grad` the gradient buffer of the leaf `parameter`: backward passes add into it.
char* ssdkd_bind_gradient(Tensor* parameter, Tensor* grad) {
  return guarded([&] { parameter->mutable_grad() = *grad; });
}

// Channels side by side, differentiably.
char* ssdkd_channels_last(at::Tensor* x, at::Tensor** output) {
  return guarded([&] { *output = new Tensor(channels_last(*x)); });
}

// Bytes that libtorch has asked for on the CPU since the first call.
char* ssdkd_allocated_bytes(uint64_t* bytes) {
  return guarded([&] {
    static CountingAllocator* counting = [] {
      auto* allocator = new CountingAllocator;
      allocator->inner = c10::GetCPUAllocator();
      c10::SetCPUAllocator(allocator, 255);
      return allocator;
    }();
    *bytes = counting->bytes.load(std::memory_order_relaxed);
  });
}

// outputs: y, or y, mean, variance when `statistics`.
char* ssdkd_frozen_batch_norm(Tensor* x, Tensor* a, Tensor* b, Tensor* centre, double slope, bool statistics, Tensor** outputs) {
  return guarded([&] {
    const auto out = FrozenBatchNorm::apply(*x, *a, *b, *centre, slope, statistics);
    for (size_t i = 0; i < out.size(); ++i) outputs[i] = new Tensor(out[i]);
  });
}

char* ssdkd_trained_batch_norm(Tensor* x, Tensor* weight, Tensor* bias, Tensor* running_mean, Tensor* running_var, double momentum,
                               double eps, double slope, Tensor** output) {
  return guarded([&] {
    *output = new Tensor(TrainedBatchNorm::apply(*x, *weight, *bias, *running_mean, *running_var, momentum, eps, slope));
  });
}

// One Adam update in place over flat buffers (step counts from 1).
char* ssdkd_adam(Tensor* parameter, Tensor* grad, Tensor* first, Tensor* second, double step, double lr, double beta1, double beta2,
                 double eps) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    // CUDA's kernel reads the step's number where the parameters are.
    const Tensor number = at::full({}, step, at::TensorOptions().dtype(at::kFloat).device(parameter->device()));
    at::_fused_adam_({*parameter}, {*grad}, {*first}, {*second}, {}, {number}, lr, beta1, beta2, /*weight_decay=*/0.0, eps,
                     /*amsgrad=*/false, /*maximize=*/false);
  });
}

// One SGD update in place over flat buffers. The very first one sets the momentum buffer to the gradient.
char* ssdkd_sgd(Tensor* parameter, Tensor* grad, Tensor* momentum_buffer, double lr, double momentum, double weight_decay, bool first) {
  return guarded([&] {
    at::NoGradGuard no_grad;
    at::_fused_sgd_({*parameter}, {*grad}, {*momentum_buffer}, weight_decay, momentum, lr, /*dampening=*/0.0, /*nesterov=*/false,
                    /*maximize=*/false, /*is_first_step=*/first);
  });
}

// The widest instruction set libtorch's own kernels use on this machine, for example "AVX2".
char* ssdkd_cpu_capability(char** output) {
  return guarded([&] { *output = strdup(at::get_cpu_capability().c_str()); });
}

char* ssdkd_torch_version(char** output) {
  return guarded([&] { *output = strdup(TORCH_VERSION); });
}

char* ssdkd_torch_build(char** output) {
  return guarded([&] { *output = strdup(at::show_config().c_str()); });
}

}  // extern "C"
