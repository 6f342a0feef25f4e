#include "tests/kernels/kernel_test.h"

namespace moec::test {
namespace {

fb::RopeT rope_attrs(int heads, int kv_heads, int head_dim, fb::RopeStyle style, double ntk_alpha = 1) {
  fb::RopeT attrs;
  attrs.heads = static_cast<uint32_t>(heads);
  attrs.kv_heads = static_cast<uint32_t>(kv_heads);
  attrs.head_dim = static_cast<uint32_t>(head_dim);
  attrs.style = style;
  attrs.ntk_alpha = ntk_alpha;
  return attrs;
}

/// Every pair as a complex number times e^(i angle), in f64; direction -1 rotates back.
std::vector<double> reference_rope(const Tensor& qkv, const fb::RopeT& rope, double direction) {
  std::vector<double> y = qkv.values();
  const int64_t d = rope.head_dim, seq_len = qkv.view().dim(1), cols = qkv.view().cols();
  const double base =
      rope.base * std::pow(rope.ntk_alpha, static_cast<double>(d) / static_cast<double>(d - 2));
  for (int64_t row = 0; row < qkv.view().rows(); ++row)
    for (int64_t head = 0; head < rope.heads + rope.kv_heads; ++head)
      for (int64_t i = 0; i < d / 2; ++i) {
        const double angle = direction * static_cast<double>(row % seq_len) *
                             std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(d));
        const bool half = rope.style == fb::RopeStyle::Half;
        const auto first = static_cast<size_t>(row * cols + head * d + (half ? i : 2 * i));
        const size_t second = first + static_cast<size_t>(half ? d / 2 : 1);
        const double a = y[first], b = y[second];
        y[first] = a * std::cos(angle) - b * std::sin(angle);
        y[second] = a * std::sin(angle) + b * std::cos(angle);
      }
  return y;
}

TEST_CASE("rope rotates query and key heads and leaves values alone") {
  struct Case {
    int64_t batch, seq_len;
    int heads, kv_heads, head_dim;
  };
  Random random;
  for (const Case& c :
       {Case{1, 1, 1, 1, 4}, Case{2, 19, 4, 1, 16}, Case{3, 33, 6, 2, 10}, Case{1, 40, 2, 2, 192}})
    for (fb::RopeStyle style : {fb::RopeStyle::Interleaved, fb::RopeStyle::Half})
      for (fb::DType dtype : kFloatTypes) {
        const auto attrs = rope_attrs(c.heads, c.kv_heads, c.head_dim, style, 8);
        const std::vector<int64_t> shape = {c.batch, c.seq_len, (c.heads + 2 * c.kv_heads) * c.head_dim};
        Tensor x = random.normal(dtype, shape), y(dtype, shape), dx(dtype, shape);
        run("rope", attrs, {x}, {y});
        CHECK(max_error(y, reference_rope(x, attrs, 1)) < tolerance(dtype));
        run("rope_bwd", attrs, {x}, {dx});
        CHECK(max_error(dx, reference_rope(x, attrs, -1)) < tolerance(dtype));
        Tensor in_place = x.copy();
        run("rope", attrs, {in_place}, {in_place});
        CHECK(in_place.same_bits(y));
        run("rope_bwd", attrs, {x}, {x});
        CHECK(x.same_bits(dx));
      }
}

TEST_CASE("NTK scaling of the 6.9B model's base") {
  // base' = 10000 * 8^(64/62) = 85550.376: a key of value e_0 at pair 31 turns by s * base'^(-62/64).
  const auto attrs = rope_attrs(1, 1, 64, fb::RopeStyle::Interleaved, 8);
  Tensor x(fb::DType::F64, {1, 1000, 192}), y(fb::DType::F64, {1, 1000, 192});
  for (int64_t i = 0; i < x.elements(); ++i) x.set(i, 1);
  run("rope", attrs, {x}, {y});
  const double angle = 999 * std::pow(85550.376, -62.0 / 64);
  CHECK(y.get(999 * 192 + 62) == doctest::Approx(std::cos(angle) - std::sin(angle)).epsilon(1e-9));
}

}  // namespace
}  // namespace moec::test
