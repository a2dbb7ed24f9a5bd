// The gradients of depthwise 3x3 convolutions with holes or strides. libtorch's own go channel by channel through matrix products, which
// costs a third of a step of MobileNetV2 (docs/performance.md). The convolution itself is libtorch's.
//
// All on channels-last f32 CPU tensors. A gradient's bits do not depend on the number of threads: a row of the input and a strip of
// channels each belong to one.

#include "shim.h"

#include <algorithm>
#include <vector>

namespace {

namespace depthwise {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kTaps = 3, kStrip = 16;

#if defined(__x86_64__) && defined(__GNUC__)
#define DEPTHWISE_VERSIONS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define DEPTHWISE_VERSIONS
#endif

struct Shape {
  int64_t images, channels, height, width, out_height, out_width, stride, dilation;
};

// One row of the input's gradient: what the rows of `gy` that saw it give back. `taps` holds the weights tap by tap.
DEPTHWISE_VERSIONS void row_gradient(const Shape& s, const float* gy, const float* taps, int64_t image, int64_t row, float* to) {
  std::fill(to, to + s.width * s.channels, 0.f);
  for (int64_t tap_row = 0; tap_row < kTaps; ++tap_row) {
    const int64_t from = row - tap_row * s.dilation;
    if (from < 0 || from % s.stride != 0 || from / s.stride >= s.out_height) continue;
    const float* source = gy + (image * s.out_height + from / s.stride) * s.out_width * s.channels;
    for (int64_t tap = 0; tap < kTaps; ++tap) {
      const float* weights = taps + (tap_row * kTaps + tap) * s.channels;
      for (int64_t column = 0; column < s.out_width; ++column) {
        const float* from_pixel = source + column * s.channels;
        float* to_pixel = to + (column * s.stride + tap * s.dilation) * s.channels;
        for (int64_t c = 0; c < s.channels; ++c) to_pixel[c] += from_pixel[c] * weights[c];
      }
    }
  }
}

// The weights' gradient of a strip of channels: summed in f32 within an image, over images in f64.
DEPTHWISE_VERSIONS void strip_gradient(const Shape& s, const float* x, const float* gy, int64_t first, float* gw) {
  double total[kTaps * kTaps][kStrip] = {};
  for (int64_t image = 0; image < s.images; ++image) {
    float sum[kTaps * kTaps][kStrip] = {};
    for (int64_t row = 0; row < s.out_height; ++row)
      for (int64_t column = 0; column < s.out_width; ++column) {
        const float* g = gy + ((image * s.out_height + row) * s.out_width + column) * s.channels + first;
        for (int64_t tap = 0; tap < kTaps * kTaps; ++tap) {
          const int64_t at_row = row * s.stride + tap / kTaps * s.dilation, at_column = column * s.stride + tap % kTaps * s.dilation;
          const float* seen = x + ((image * s.height + at_row) * s.width + at_column) * s.channels + first;
          for (int64_t c = 0; c < kStrip; ++c) sum[tap][c] += g[c] * seen[c];
        }
      }
    for (int64_t tap = 0; tap < kTaps * kTaps; ++tap)
      for (int64_t c = 0; c < kStrip; ++c) total[tap][c] += sum[tap][c];
  }
  for (int64_t c = 0; c < kStrip; ++c)
    for (int64_t tap = 0; tap < kTaps * kTaps; ++tap) gw[(first + c) * kTaps * kTaps + tap] = static_cast<float>(total[tap][c]);
}

struct Convolution : public torch::autograd::Function<Convolution> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& weight, int64_t stride, int64_t dilation) {
    const Tensor x = ssdkd::channels_last(input);
    ctx->save_for_backward({x, weight});
    ctx->saved_data["stride"] = stride;
    ctx->saved_data["dilation"] = dilation;
    const int64_t no_padding[2] = {0, 0};
    return at::conv2d(x, weight, {}, {stride, stride}, at::IntArrayRef(no_padding), {dilation, dilation}, weight.size(0));
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], gy = ssdkd::channels_last(grads[0]);
    const Shape s{x.size(0), x.size(1), x.size(2), x.size(3), gy.size(2), gy.size(3),
                  ctx->saved_data["stride"].toInt(), ctx->saved_data["dilation"].toInt()};
    const float *xs = x.data_ptr<float>(), *gs = gy.data_ptr<float>();
    Tensor gx, gw;
    if (ctx->needs_input_grad(0)) {
      gx = at::empty_like(x);
      const Tensor taps = weight.view({s.channels, kTaps * kTaps}).t().contiguous();
      const float* ws = taps.data_ptr<float>();
      float* to = gx.data_ptr<float>();
      at::parallel_for(0, s.images * s.height, 1, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row)
          row_gradient(s, gs, ws, row / s.height, row % s.height, to + row * s.width * s.channels);
      });
    }
    if (ctx->needs_input_grad(1)) {
      gw = at::empty(weight.sizes(), weight.options());
      float* to = gw.data_ptr<float>();
      at::parallel_for(0, s.channels / kStrip, 1, [&](int64_t begin, int64_t end) {
        for (int64_t strip = begin; strip < end; ++strip) strip_gradient(s, xs, gs, strip * kStrip, to);
      });
    }
    return {gx, gw, Tensor(), Tensor()};
  }
};

}  // namespace depthwise

}  // namespace

extern "C" {

// y = depthwise 3x3 convolution of x without padding. A count of channels is a multiple of 16.
char* ssdkd_depthwise(at::Tensor* x, at::Tensor* weight, int64_t stride, int64_t dilation, at::Tensor** output) {
  return ssdkd::guarded([&] { *output = new at::Tensor(depthwise::Convolution::apply(*x, *weight, stride, dilation)); });
}

}  // extern "C"
