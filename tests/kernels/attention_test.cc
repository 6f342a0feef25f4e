#include "tests/kernels/kernel_test.h"

namespace moec::test {
namespace {

struct Shape {
  int64_t batch, seq, heads, kv_heads, dim;

  int64_t width() const { return (heads + 2 * kv_heads) * dim; }
  fb::AttentionT attrs() const {
    fb::AttentionT attrs;
    attrs.heads = static_cast<uint32_t>(heads);
    attrs.kv_heads = static_cast<uint32_t>(kv_heads);
    attrs.head_dim = static_cast<uint32_t>(dim);
    return attrs;
  }
  /// Index in qkv of the first element of a head, counted over query, key and value heads.
  int64_t at(int64_t b, int64_t s, int64_t head) const { return (b * seq + s) * width() + head * dim; }
  int64_t key_head(int64_t head) const { return heads + head * kv_heads / heads; }
  int64_t value_head(int64_t head) const { return key_head(head) + kv_heads; }
};

/// One position, ragged and several blocks; MHA, GQA and MQA; the smallest and the largest head width.
constexpr Shape kShapes[] = {{2, 1, 2, 2, 3},   {1, 7, 4, 2, 16},  {2, 33, 2, 2, 1},  {2, 64, 4, 4, 32},
                             {1, 65, 4, 1, 16}, {1, 130, 6, 2, 5}, {1, 70, 2, 1, 256}};

double dot(const std::vector<double>& a, int64_t i, const std::vector<double>& b, int64_t j, int64_t n) {
  double sum = 0;
  for (int64_t p = 0; p < n; ++p) sum += a[static_cast<size_t>(i + p)] * b[static_cast<size_t>(j + p)];
  return sum;
}

/// out[i..] += factor * in[j..]
void add(std::vector<double>& out, int64_t i, double factor, const std::vector<double>& in, int64_t j,
         int64_t n) {
  for (int64_t p = 0; p < n; ++p) out[static_cast<size_t>(i + p)] += factor * in[static_cast<size_t>(j + p)];
}

struct Reference {
  std::vector<double> y, lse, dqkv;
};

/// Attention and the gradient for dy, query by query.
Reference reference_attention(const Shape& shape, const std::vector<double>& qkv,
                              const std::vector<double>& dy) {
  Reference out;
  out.y.resize(static_cast<size_t>(shape.batch * shape.seq * shape.heads * shape.dim));
  out.dqkv.resize(qkv.size());
  const int64_t d = shape.dim;
  const double scale = 1 / std::sqrt(static_cast<double>(d));
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t h = 0; h < shape.heads; ++h) {
      for (int64_t s = 0; s < shape.seq; ++s) {
        const int64_t q = shape.at(b, s, h), y = ((b * shape.seq + s) * shape.heads + h) * d;
        std::vector<double> weight;
        double sum = 0;
        for (int64_t t = 0; t <= s; ++t) {
          weight.push_back(std::exp(scale * dot(qkv, q, qkv, shape.at(b, t, shape.key_head(h)), d)));
          sum += weight.back();
        }
        out.lse.push_back(std::log(sum));
        for (int64_t t = 0; t <= s; ++t) {
          weight[static_cast<size_t>(t)] /= sum;
          add(out.y, y, weight[static_cast<size_t>(t)], qkv, shape.at(b, t, shape.value_head(h)), d);
        }
        const double delta = dot(dy, y, out.y, y, d);
        for (int64_t t = 0; t <= s; ++t) {
          const int64_t k = shape.at(b, t, shape.key_head(h)), v = shape.at(b, t, shape.value_head(h));
          const double p = weight[static_cast<size_t>(t)];
          const double dscore = p * (dot(dy, y, qkv, v, d) - delta) * scale;
          add(out.dqkv, v, p, dy, y, d);
          add(out.dqkv, q, dscore, qkv, k, d);
          add(out.dqkv, k, dscore, qkv, q, d);
        }
      }
    }
  }
  return out;
}

struct Outputs {
  Tensor y, lse, dqkv;
};

Outputs run_attention(const Shape& shape, const Tensor& qkv, const Tensor& dy) {
  const fb::DType dtype = qkv.view().dtype;
  Outputs out{Tensor(dtype, {shape.batch, shape.seq, shape.heads * shape.dim}),
              Tensor(accumulator(dtype), {shape.batch, shape.heads, shape.seq}),
              Tensor(dtype, {shape.batch, shape.seq, shape.width()})};
  run("attention", shape.attrs(), {qkv}, {out.y, out.lse});
  run("attention_bwd", shape.attrs(), {dy, qkv, out.y, out.lse}, {out.dqkv});
  return out;
}

TEST_CASE("attention and its gradient") {
  Random random;
  for (fb::DType dtype : kFloatTypes) {
    for (const Shape& shape : kShapes) {
      INFO(fb::EnumNameDType(dtype), ", seq ", shape.seq, ", heads ", shape.heads, ", kv_heads ",
           shape.kv_heads, ", dim ", shape.dim);
      const Tensor qkv = random.normal(dtype, {shape.batch, shape.seq, shape.width()});
      const Tensor dy = random.normal(dtype, {shape.batch, shape.seq, shape.heads * shape.dim});
      const Outputs actual = run_attention(shape, qkv, dy);
      const Reference expected = reference_attention(shape, qkv.values(), dy.values());
      CHECK(max_error(actual.y, expected.y) < tolerance(dtype));
      CHECK(max_error(actual.lse, expected.lse) < tolerance(accumulator(dtype)));
      CHECK(max_error(actual.dqkv, expected.dqkv) < tolerance(dtype));
    }
  }
}

TEST_CASE("attention survives scores far outside the range of exp") {
  const Shape shape{1, 70, 1, 1, 4};
  Random random;
  const Tensor qkv = random.normal(fb::DType::F32, {1, shape.seq, shape.width()}, 60);
  const Tensor dy = random.normal(fb::DType::F32, {1, shape.seq, shape.dim});
  const Outputs actual = run_attention(shape, qkv, dy);
  for (const Tensor* tensor : {&actual.y, &actual.lse, &actual.dqkv}) {
    for (double value : tensor->values()) REQUIRE(std::isfinite(value));
  }
}

TEST_CASE("no query sees a later position") {
  const Shape shape{1, 130, 2, 1, 8};
  Random random;
  const Tensor before = random.normal(fb::DType::F32, {1, shape.seq, shape.width()});
  const Tensor dy = random.normal(fb::DType::F32, {1, shape.seq, shape.heads * shape.dim});
  constexpr int64_t kChanged = 100;
  Tensor changed = before.copy();
  for (int64_t i = shape.at(0, kChanged, 0); i < changed.elements(); ++i) changed.set(i, 5);
  const Outputs a = run_attention(shape, before, dy), b = run_attention(shape, changed, dy);
  const int64_t same = kChanged * shape.heads * shape.dim;
  for (int64_t i = 0; i < same; ++i) REQUIRE(a.y.get(i) == b.y.get(i));
  CHECK(a.y.get(same) != b.y.get(same));
}

TEST_CASE("attention gives the same bits with any number of threads") {
  for (fb::DType dtype : kFloatTypes) {
    for (const Shape& shape : {Shape{3, 64, 4, 2, 16}, Shape{2, 150, 4, 1, 16}}) {
      check_same_bits_for_any_threads([&] {
        Random random(7);
        const Tensor qkv = random.normal(dtype, {shape.batch, shape.seq, shape.width()});
        const Tensor dy = random.normal(dtype, {shape.batch, shape.seq, shape.heads * shape.dim});
        Outputs out = run_attention(shape, qkv, dy);
        std::vector<Tensor> tensors;
        tensors.push_back(std::move(out.y));
        tensors.push_back(std::move(out.lse));
        tensors.push_back(std::move(out.dqkv));
        return tensors;
      });
    }
  }
}

}  // namespace
}  // namespace moec::test
