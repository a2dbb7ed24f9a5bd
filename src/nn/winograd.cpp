// 3x3 convolutions of stride 1 and padding 1 by minimal filtering, F(4x4, 3x3) (Winograd 1980; Lavin & Gray 2016,
// arXiv:1509.09308): 36 products for 16 outputs instead of 144. Channels-last f32 tensors on the CPU.
//
// A tile is 6x6 inputs that give 4x4 outputs. Y = A' [(G g G') * (B' d B)] A with the interpolation points 0, +-p, +-q and
// infinity. p = 1/sqrt(2), q = sqrt(2): the error is a quarter of that of the usual +-1, +-2.
//
// Tiles are taken in blocks that stay in the cache: transform, 36 products [tiles x inputs] x [inputs x outputs], transform
// back. Every output value is one sum over the input channels in their order, whatever the blocks, so neither threads nor
// the batch's size change its bits.

#include "shim.h"

#include <algorithm>
#include <optional>
#include <vector>

namespace {

using at::Tensor;
using ssdkd::channels_last;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kIn = 6, kOut = 4, kPoints = kIn * kIn;
constexpr float kP = 0.70710678118654752f, kQ = 1.41421356237309505f, kP2 = 0.5f, kQ2 = 2.f, kP3 = kP * kP2, kQ3 = kQ * kQ2;
// Channels come in multiples of this, the widest lane.
constexpr int64_t kChannels = 16;

#define INLINE inline __attribute__((always_inline))

template <int W>
struct Lanes {
  typedef float type __attribute__((vector_size(4 * W), aligned(4), may_alias));
};
template <int W>
using Lane = typename Lanes<W>::type;
template <int W>
INLINE Lane<W> load(const float* p) { return *reinterpret_cast<const Lane<W>*>(p); }
template <int W>
INLINE void store(float* p, const Lane<W>& v) { *reinterpret_cast<Lane<W>*>(p) = v; }

// Rows of the product that are summed at once: as many as the registers hold beside two lanes of columns.
template <int W>
constexpr int64_t kRows = W == 16 ? 12 : 6;

// B' d.
template <typename V>
INLINE void to_points(const V d[kIn], V out[kIn]) {
  const V e1 = d[4] - kQ2 * d[2], g1 = kP * d[3] - (kP * kQ2) * d[1], e2 = d[4] - kP2 * d[2], g2 = kQ * d[3] - (kQ * kP2) * d[1];
  out[0] = d[0] + d[4] - (kP2 + kQ2) * d[2];
  out[1] = e1 + g1;
  out[2] = e1 - g1;
  out[3] = e2 + g2;
  out[4] = e2 - g2;
  out[5] = d[1] + d[5] - (kP2 + kQ2) * d[3];
}

// A' m.
template <typename V>
INLINE void from_points(const V m[kIn], V out[kOut]) {
  const V s1 = m[1] + m[2], d1 = m[1] - m[2], s2 = m[3] + m[4], d2 = m[3] - m[4];
  out[0] = m[0] + s1 + s2;
  out[1] = kP * d1 + kQ * d2;
  out[2] = kP2 * s1 + kQ2 * s2;
  out[3] = kP3 * d1 + kQ3 * d2 + m[5];
}

// G g.
template <typename V>
INLINE void weight_points(const V g[3], V out[kIn]) {
  constexpr float n1 = 1.f / (2.f * kP2 * (kP2 - kQ2)), n2 = 1.f / (2.f * kQ2 * (kQ2 - kP2));
  const V e1 = n1 * g[0] + (n1 * kP2) * g[2], f1 = (n1 * kP) * g[1], e2 = n2 * g[0] + (n2 * kQ2) * g[2], f2 = (n2 * kQ) * g[1];
  out[0] = g[0];
  out[1] = e1 + f1;
  out[2] = e1 - f1;
  out[3] = e2 + f2;
  out[4] = e2 - f2;
  out[5] = g[2];
}

// Weights as seen from the input: element (output o, input i, tap t) lies at o * by_output + i * by_input + (flipped ? 8 - t : t).
struct Weights {
  const float* at;
  int64_t by_output, by_input;
  bool flipped;
};

struct Shape {
  int64_t images, height, width, inputs, outputs;
  int64_t down() const { return (height + kOut - 1) / kOut; }
  int64_t across() const { return (width + kOut - 1) / kOut; }
  int64_t tiles() const { return images * down() * across(); }
  // Columns of a panel of transformed weights.
  int64_t panel(int64_t lane) const { return outputs % (2 * lane) == 0 ? 2 * lane : lane; }
};

struct Job {
  Shape shape;
  Weights weights;
  const float *x, *bias;
  float *y, *u;
  int64_t block;       // tiles of a block
  const float* zeros;  // one pixel of padding
  // Floats between rows and between points; the odd 64 bytes keep rows and points out of each other's cache sets.
  int64_t row(int64_t channels) const { return channels + kChannels; }
  int64_t point(int64_t channels) const { return block * row(channels) + kChannels; }
};

// u[point][panel][input][column of the panel], for one panel.
template <int W>
INLINE void transform_weights(const Job& job, int64_t panel) {
  const Shape& shape = job.shape;
  const int64_t columns = shape.panel(W), first = panel * columns;
  for (int64_t i = 0; i < shape.inputs; ++i)
    for (int64_t o = 0; o < columns; o += W) {
      float staged[9][W];
      for (int64_t l = 0; l < W; ++l) {
        const float* from = job.weights.at + (first + o + l) * job.weights.by_output + i * job.weights.by_input;
        for (int64_t t = 0; t < 9; ++t) staged[t][l] = from[job.weights.flipped ? 8 - t : t];
      }
      Lane<W> half[3][kIn];
      for (int64_t c = 0; c < 3; ++c) {
        const Lane<W> g[3] = {load<W>(staged[c]), load<W>(staged[3 + c]), load<W>(staged[6 + c])};
        weight_points(g, half[c]);
      }
      for (int64_t r = 0; r < kIn; ++r) {
        const Lane<W> g[3] = {half[0][r], half[1][r], half[2][r]};
        Lane<W> out[kIn];
        weight_points(g, out);
        for (int64_t c = 0; c < kIn; ++c) {
          const int64_t point = r * kIn + c;
          store<W>(job.u + ((point * (shape.outputs / columns) + panel) * shape.inputs + i) * columns + o, out[c]);
        }
      }
    }
}

// v[point][tile][input] for tile number `tile` in row `row` of v.
template <int W>
INLINE void transform_input(const Job& job, int64_t tile, int64_t row, float* v) {
  const Shape& s = job.shape;
  const int64_t per_image = s.down() * s.across(), image = tile / per_image, in_image = tile % per_image;
  const int64_t top = in_image / s.across() * kOut - 1, left = in_image % s.across() * kOut - 1;
  const float* pixels[kIn][kIn];
  for (int64_t r = 0; r < kIn; ++r)
    for (int64_t c = 0; c < kIn; ++c) {
      const int64_t h = top + r, w = left + c;
      const bool inside = h >= 0 && h < s.height && w >= 0 && w < s.width;
      pixels[r][c] = inside ? job.x + ((image * s.height + h) * s.width + w) * s.inputs : job.zeros;
    }
  for (int64_t i = 0; i < s.inputs; i += W) {
    Lane<W> half[kIn][kIn];
    for (int64_t c = 0; c < kIn; ++c) {
      Lane<W> d[kIn], out[kIn];
      for (int64_t r = 0; r < kIn; ++r) d[r] = load<W>(pixels[r][c] + i);
      to_points(d, out);
      for (int64_t r = 0; r < kIn; ++r) half[r][c] = out[r];
    }
    float* to = v + row * job.row(s.inputs) + i;
    for (int64_t r = 0; r < kIn; ++r) {
      Lane<W> out[kIn];
      to_points(half[r], out);
      for (int64_t c = 0; c < kIn; ++c) store<W>(to + (r * kIn + c) * job.point(s.inputs), out[c]);
    }
  }
}

// kRows rows times L lanes of columns of one product.
template <int W, int L>
INLINE void multiply(const float* v, int64_t v_row, const float* u, float* m, int64_t m_row, int64_t depth) {
  constexpr int64_t R = kRows<W>;
  Lane<W> sums[R][L] = {};
  for (int64_t i = 0; i < depth; ++i) {
    Lane<W> b[L];
#pragma GCC unroll 2
    for (int64_t l = 0; l < L; ++l) b[l] = load<W>(u + (i * L + l) * W);
#pragma GCC unroll 12
    for (int64_t r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int64_t l = 0; l < L; ++l) sums[r][l] += v[r * v_row + i] * b[l];
  }
#pragma GCC unroll 12
  for (int64_t r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int64_t l = 0; l < L; ++l) store<W>(m + r * m_row + l * W, sums[r][l]);
}

// m[point][tile][output] for the columns of one panel and all rows of the block.
template <int W>
INLINE void multiply_panel(const Job& job, int64_t point, int64_t panel, int64_t rows, const float* v, float* m) {
  const Shape& s = job.shape;
  const int64_t columns = s.panel(W), v_row = job.row(s.inputs), m_row = job.row(s.outputs);
  const float* u = job.u + (point * (s.outputs / columns) + panel) * s.inputs * columns;
  v += point * job.point(s.inputs);
  m += point * job.point(s.outputs) + panel * columns;
  for (int64_t r = 0; r < rows; r += kRows<W>)
    if (columns == W)
      multiply<W, 1>(v + r * v_row, v_row, u, m + r * m_row, m_row, s.inputs);
    else
      multiply<W, 2>(v + r * v_row, v_row, u, m + r * m_row, m_row, s.inputs);
}

template <int W>
INLINE void transform_output(const Job& job, int64_t tile, int64_t row, const float* m) {
  const Shape& s = job.shape;
  const int64_t per_image = s.down() * s.across(), image = tile / per_image, in_image = tile % per_image;
  const int64_t top = in_image / s.across() * kOut, left = in_image % s.across() * kOut;
  const int64_t height = std::min(kOut, s.height - top), width = std::min(kOut, s.width - left);
  float* to = job.y + ((image * s.height + top) * s.width + left) * s.outputs;
  for (int64_t o = 0; o < s.outputs; o += W) {
    const float* from = m + row * job.row(s.outputs) + o;
    Lane<W> half[kOut][kIn];
    for (int64_t c = 0; c < kIn; ++c) {
      Lane<W> d[kIn], out[kOut];
      for (int64_t r = 0; r < kIn; ++r) d[r] = load<W>(from + (r * kIn + c) * job.point(s.outputs));
      from_points(d, out);
      for (int64_t r = 0; r < kOut; ++r) half[r][c] = out[r];
    }
    const Lane<W> bias = load<W>(job.bias + o);
    for (int64_t r = 0; r < height; ++r) {
      Lane<W> out[kOut];
      from_points(half[r], out);
      for (int64_t c = 0; c < width; ++c) store<W>(to + (r * s.width + c) * s.outputs + o, out[c] + bias);
    }
  }
}

// The three stages, over ranges that may go to different threads.
struct Stages {
  int64_t lane;
  void (*weights)(const Job&, int64_t panel);
  void (*input)(const Job&, int64_t first, int64_t begin, int64_t end, float* v);
  void (*product)(const Job&, int64_t rows, int64_t begin, int64_t end, const float* v, float* m);
  void (*output)(const Job&, int64_t first, int64_t begin, int64_t end, const float* m);
};

#define STAGES(NAME, TARGET, W)                                                                                             \
  TARGET void NAME##_weights(const Job& job, int64_t panel) { transform_weights<W>(job, panel); }                           \
  TARGET void NAME##_input(const Job& job, int64_t first, int64_t begin, int64_t end, float* v) {                           \
    for (int64_t t = begin; t < end; ++t) transform_input<W>(job, first + t, t, v);                                         \
  }                                                                                                                         \
  TARGET void NAME##_product(const Job& job, int64_t rows, int64_t begin, int64_t end, const float* v, float* m) {          \
    const int64_t panels = job.shape.outputs / job.shape.panel(W);                                                          \
    for (int64_t i = begin; i < end; ++i) multiply_panel<W>(job, i / panels, i % panels, rows, v, m);                       \
  }                                                                                                                         \
  TARGET void NAME##_output(const Job& job, int64_t first, int64_t begin, int64_t end, const float* m) {                    \
    for (int64_t t = begin; t < end; ++t) transform_output<W>(job, first + t, t, m);                                        \
  }                                                                                                                         \
  const Stages NAME = {W, NAME##_weights, NAME##_input, NAME##_product, NAME##_output};

#if defined(__x86_64__) && defined(__GNUC__)
STAGES(kWide, __attribute__((target("avx512f"))), 16)
STAGES(kMiddle, __attribute__((target("avx2,fma"))), 8)
#endif
STAGES(kPlain, , 4)

const Stages& stages() {
#if defined(__x86_64__) && defined(__GNUC__)
  if (__builtin_cpu_supports("avx512f")) return kWide;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return kMiddle;
#endif
  return kPlain;
}

// Tiles of a block: what fits into the second-level cache beside some of the weights. Wide layers have so many weights that these
// are read once only, for all tiles.
int64_t block_of(const Shape& s) {
  constexpr int64_t kMultiple = 12, kBytes = 768 << 10, kWide = 1024;
  const int64_t fitting = kBytes / (kPoints * 4 * (s.inputs + s.outputs));
  const int64_t wanted = s.inputs + s.outputs >= kWide ? s.tiles() : std::min(fitting, s.tiles());
  return std::max<int64_t>(kMultiple, (wanted + kMultiple - 1) / kMultiple * kMultiple);
}

Tensor convolve(const Tensor& input, int64_t outputs, const Weights& weights, const Tensor& bias) {
  const Tensor x = channels_last(input);
  const Shape shape{x.size(0), x.size(2), x.size(3), x.size(1), outputs};
  const Stages& run = stages();
  Tensor y = at::empty({shape.images, outputs, shape.height, shape.width}, x.options(), at::MemoryFormat::ChannelsLast);
  Tensor u = at::empty({kPoints * shape.inputs * outputs}, x.options());
  const std::vector<float> zeros(std::max(shape.inputs, outputs), 0.f);
  Job job{shape, weights, x.data_ptr<float>(), bias.defined() ? bias.data_ptr<float>() : zeros.data(), y.data_ptr<float>(),
          u.data_ptr<float>(), block_of(shape), zeros.data()};
  const int64_t panels = outputs / shape.panel(run.lane), blocks = (shape.tiles() + job.block - 1) / job.block;
  at::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) run.weights(job, p);
  });
  const int64_t of_v = kPoints * job.point(shape.inputs), of_m = kPoints * job.point(outputs);
  const auto one_block = [&](int64_t block, float* v) {
    float* m = v + of_v;
    const int64_t first = block * job.block, tiles = std::min(job.block, shape.tiles() - first);
    at::parallel_for(0, tiles, 4, [&](int64_t begin, int64_t end) { run.input(job, first, begin, end, v); });
    at::parallel_for(0, kPoints * panels, 1, [&](int64_t begin, int64_t end) { run.product(job, tiles, begin, end, v, m); });
    at::parallel_for(0, tiles, 4, [&](int64_t begin, int64_t end) { run.output(job, first, begin, end, m); });
  };
  if (blocks == 1) {
    Tensor scratch = at::zeros({of_v + of_m}, x.options());
    one_block(0, scratch.data_ptr<float>());
    return y;
  }
  at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(of_v + of_m, 0.f);
    for (int64_t block = begin; block < end; ++block) one_block(block, scratch.data());
  });
  return y;
}

struct Convolution : public torch::autograd::Function<Convolution> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight_given,
                        const std::optional<Tensor>& bias) {
    const Tensor weight = weight_given.contiguous();
    const int64_t outputs = weight.size(0), inputs = weight.size(1);
    ctx->save_for_backward({weight.requires_grad() ? x : Tensor(), weight});
    ctx->saved_data["bias"] = bias.has_value();
    return convolve(x, outputs, {weight.data_ptr<float>(), inputs * 9, 9, false}, bias.value_or(Tensor()));
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], gy = channels_last(grads[0]);
    const int64_t inputs = weight.size(1);
    Tensor gx, gw, gb;
    if (ctx->needs_input_grad(0)) gx = convolve(gy, inputs, {weight.data_ptr<float>(), 9, inputs * 9, true}, Tensor());
    if (x.defined()) {
      const at::OptionalIntArrayRef none;
      gw = std::get<1>(at::convolution_backward(gy, x, weight, none, {1, 1}, {1, 1}, {1, 1}, false, {0, 0}, 1, {false, true, false}));
    }
    if (ctx->saved_data["bias"].toBool()) gb = gy.sum({0, 2, 3});
    return {gx, gw, gb};
  }
};

}  // namespace

extern "C" {

// y = 3x3 convolution of x, stride 1, padding 1; `bias` may be null. Channel counts are multiples of 16.
char* ssdkd_winograd(Tensor* x, Tensor* weight, Tensor* bias, Tensor** output) {
  return ssdkd::guarded([&] { *output = new Tensor(Convolution::apply(*x, *weight, bias ? std::make_optional(*bias) : std::nullopt)); });
}

}  // extern "C"
