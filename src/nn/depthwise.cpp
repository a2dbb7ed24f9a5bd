// The gradients of depthwise 3x3 convolutions with holes: libtorch's go channel by channel through matrix products, which costs a third
// of a step of DeepLabV3 MobileNetV2 (docs/performance.md). The convolution itself is libtorch's.
//
// All on channels-last f32 CPU tensors. A gradient's bits do not depend on the number of threads: a row of the input and a strip of
// channels each belong to one.

#include "shim.h"

#include <algorithm>

namespace {

namespace depthwise {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kTaps = 3, kStrip = 16;

struct Shape {
  int64_t images, channels, height, width, dilation;
  int64_t out_height() const { return height - (kTaps - 1) * dilation; }
  int64_t out_width() const { return width - (kTaps - 1) * dilation; }
};

// One row of the input's gradient: what the rows of `gy` that saw it give back. `taps` holds the weights tap by tap.
MULTIVERSIONED void row_gradient(const Shape& s, const float* gy, const float* taps, int64_t image, int64_t row, float* to) {
  std::fill(to, to + s.width * s.channels, 0.f);
  for (int64_t tap_row = 0; tap_row < kTaps; ++tap_row) {
    const int64_t from = row - tap_row * s.dilation;
    if (from < 0 || from >= s.out_height()) continue;
    const float* source = gy + (image * s.out_height() + from) * s.out_width() * s.channels;
    for (int64_t tap = 0; tap < kTaps; ++tap) {
      const float* weights = taps + (tap_row * kTaps + tap) * s.channels;
      for (int64_t column = 0; column < s.out_width(); ++column) {
        const float* from_pixel = source + column * s.channels;
        float* to_pixel = to + (column + tap * s.dilation) * s.channels;
        for (int64_t c = 0; c < s.channels; ++c) to_pixel[c] += from_pixel[c] * weights[c];
      }
    }
  }
}

// The weights' gradient of a strip of channels: summed in f32 within a row of outputs, over rows and images in f64.
MULTIVERSIONED void strip_gradient(const Shape& s, const float* x, const float* gy, int64_t first, float* gw) {
  double total[kTaps * kTaps][kStrip] = {};
  for (int64_t line = 0; line < s.images * s.out_height(); ++line) {
    const int64_t image = line / s.out_height(), row = line % s.out_height();
    const float* g = gy + line * s.out_width() * s.channels + first;
    for (int64_t tap_row = 0; tap_row < kTaps; ++tap_row) {
      const float* seen = x + (image * s.height + row + tap_row * s.dilation) * s.width * s.channels + first;
      for (int64_t tap = 0; tap < kTaps; ++tap) {
        float sum[kStrip] = {};
        for (int64_t column = 0; column < s.out_width(); ++column)
          for (int64_t c = 0; c < kStrip; ++c) sum[c] += g[column * s.channels + c] * seen[(column + tap * s.dilation) * s.channels + c];
        for (int64_t c = 0; c < kStrip; ++c) total[tap_row * kTaps + tap][c] += sum[c];
      }
    }
  }
  for (int64_t c = 0; c < kStrip; ++c)
    for (int64_t tap = 0; tap < kTaps * kTaps; ++tap) gw[(first + c) * kTaps * kTaps + tap] = static_cast<float>(total[tap][c]);
}

struct Convolution : public torch::autograd::Function<Convolution> {
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& given, int64_t dilation) {
    const Tensor x = ssdkd::channels_last(input), weight = given.contiguous();
    // A frozen weight has no use for x, which inversion would hold for every layer.
    ctx->save_for_backward({given.requires_grad() ? x : Tensor(), weight});
    ctx->saved_data["dilation"] = dilation;
    // Named in full: in braces alone it could be the padding's word, "same" or "valid", too.
    const int64_t no_padding[2] = {0, 0};
    return at::conv2d(x, weight, {}, {1, 1}, at::IntArrayRef(no_padding), {dilation, dilation}, weight.size(0));
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], gy = ssdkd::channels_last(grads[0]);
    const int64_t dilation = ctx->saved_data["dilation"].toInt(), ring = (kTaps - 1) * dilation;
    const Shape s{gy.size(0), gy.size(1), gy.size(2) + ring, gy.size(3) + ring, dilation};
    const float* gs = gy.data_ptr<float>();
    Tensor gx, gw;
    if (ctx->needs_input_grad(0)) {
      gx = at::empty({s.images, s.channels, s.height, s.width}, gy.options(), at::MemoryFormat::ChannelsLast);
      const Tensor taps = weight.view({s.channels, kTaps * kTaps}).t().contiguous();
      const float* ws = taps.data_ptr<float>();
      float* to = gx.data_ptr<float>();
      at::parallel_for(0, s.images * s.height, 1, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row)
          row_gradient(s, gs, ws, row / s.height, row % s.height, to + row * s.width * s.channels);
      });
    }
    if (x.defined()) {
      gw = at::empty(weight.sizes(), weight.options());
      const float* xs = x.data_ptr<float>();
      float* to = gw.data_ptr<float>();
      at::parallel_for(0, s.channels / kStrip, 1, [&](int64_t begin, int64_t end) {
        for (int64_t strip = begin; strip < end; ++strip) strip_gradient(s, xs, gs, strip * kStrip, to);
      });
    }
    return {gx, gw, Tensor()};
  }
};

}  // namespace depthwise

}  // namespace

extern "C" {

// y = depthwise 3x3 convolution, with taps `dilation` apart and without padding, of f32 x [b, c, h, w] by weight [c, 1, 3, 3]. c is a
// multiple of 16.
char* ssdkd_depthwise(at::Tensor* x, at::Tensor* weight, int64_t dilation, at::Tensor** output) {
  return ssdkd::guarded([&] {
    const int64_t channels = x->size(1);
    TORCH_CHECK(channels % depthwise::kStrip == 0 && weight->sizes() == at::IntArrayRef({channels, 1, 3, 3}), "channels and weight");
    *output = new at::Tensor(depthwise::Convolution::apply(*x, *weight, dilation));
  });
}

}  // extern "C"
