#include "tests/kernels/kernel_test.h"

namespace moec::test {
namespace {

constexpr double kEps = 1e-5;

/// RMSNorm and LayerNorm in f64: y, and for an upstream gradient dy the gradients, all from one description.
/// With n = (x - mean) * rstd (mean 0 in RMSNorm), dx = rstd (g - mean(g) - n mean(g n)) for g = dy * weight,
/// where mean(g) is absent in RMSNorm.
struct Reference {
  std::vector<double> y, mean, rstd, dx, dweight, dbias;

  Reference(const Tensor& x, const Tensor& weight, const Tensor* bias, const Tensor& dy, bool centred) {
    const int64_t d = x.view().cols(), rows = x.view().rows();
    dweight.resize(static_cast<size_t>(d));
    dbias.resize(static_cast<size_t>(d));
    for (int64_t row = 0; row < rows; ++row) {
      double m = 0, var = 0;
      for (int64_t i = 0; i < d && centred; ++i) m += x.get(row * d + i) / static_cast<double>(d);
      for (int64_t i = 0; i < d; ++i) var += std::pow(x.get(row * d + i) - m, 2) / static_cast<double>(d);
      const double r = 1 / std::sqrt(var + kEps);
      double g_mean = 0, gn_mean = 0;
      const auto normal = [&](int64_t i) { return (x.get(row * d + i) - m) * r; };
      const auto g = [&](int64_t i) { return dy.get(row * d + i) * weight.get(i); };
      for (int64_t i = 0; i < d; ++i) {
        y.push_back(normal(i) * weight.get(i) + (bias ? bias->get(i) : 0));
        g_mean += centred ? g(i) / static_cast<double>(d) : 0;
        gn_mean += g(i) * normal(i) / static_cast<double>(d);
        dweight[static_cast<size_t>(i)] += dy.get(row * d + i) * normal(i);
        dbias[static_cast<size_t>(i)] += dy.get(row * d + i);
      }
      for (int64_t i = 0; i < d; ++i) dx.push_back(r * (g(i) - g_mean - normal(i) * gn_mean));
      mean.push_back(m);
      rstd.push_back(r);
    }
  }
};

std::vector<double> plus(std::vector<double> a, double b) {
  for (double& value : a) value += b;
  return a;
}

fb::RmsNormT rms_attrs() {
  fb::RmsNormT attrs;
  attrs.eps = static_cast<float>(kEps);
  return attrs;
}
fb::LayerNormT layer_attrs() {
  fb::LayerNormT attrs;
  attrs.eps = static_cast<float>(kEps);
  return attrs;
}

/// kEps as f32 differs from the f64 constant by a relative 1e-8 of a small term.
double bound(fb::DType dtype) { return std::max(1e-9, 2 * tolerance(dtype)); }

const std::vector<std::vector<int64_t>> kShapes = {{1, 1, 64}, {3, 5, 33}, {2, 100, 300}, {1000, 24}};

TEST_CASE("rmsnorm and its derivative") {
  Random random;
  for (fb::DType dtype : kFloatTypes)
    for (fb::DType grad_dtype : {dtype, accumulator(dtype)})
      for (const auto& shape : kShapes) {
        Tensor x = random.normal(dtype, shape, 2, 1), dy = random.normal(dtype, shape), y(dtype, shape);
        const Tensor weight = random.normal(dtype, {shape.back()}, 0.3, 1);
        Tensor rstd(accumulator(dtype), {x.view().rows()}), dx(dtype, shape),
            dweight(grad_dtype, {shape.back()});
        const Reference expected(x, weight, nullptr, dy, false);
        run("rmsnorm", rms_attrs(), {x, weight}, {y, rstd});
        CHECK(max_error(y, expected.y) < bound(dtype));
        CHECK(max_error(rstd, expected.rstd) < bound(accumulator(dtype)));

        run("rmsnorm_bwd", rms_attrs(), {dy, x, weight, rstd, {}, {}}, {dx, dweight});
        CHECK(max_error(dx, expected.dx) < bound(dtype));
        CHECK(max_error(dweight, expected.dweight) < bound(dtype));
        Tensor sum(grad_dtype, {shape.back()}, std::vector<double>(static_cast<size_t>(shape.back()), 8));
        run("rmsnorm_bwd", rms_attrs(), {dy, x, weight, rstd, sum, {}}, {dy, sum});
        CHECK(dy.same_bits(dx));
        CHECK(max_error(sum, plus(expected.dweight, 8)) < bound(dtype));
        run("rmsnorm", rms_attrs(), {x, weight}, {x, rstd});
        CHECK(x.same_bits(y));
      }
}

TEST_CASE("layernorm and its derivative, with and without bias") {
  Random random;
  for (fb::DType dtype : kFloatTypes)
    for (bool with_bias : {false, true})
      for (const auto& shape : kShapes) {
        Tensor x = random.normal(dtype, shape, 2, 1), dy = random.normal(dtype, shape), y(dtype, shape);
        const std::vector<int64_t> cols = {shape.back()}, rows = {x.view().rows()};
        const fb::DType acc = accumulator(dtype);
        const Tensor weight = random.normal(dtype, cols, 0.3, 1), bias = random.normal(dtype, cols);
        const TensorView bias_view = with_bias ? bias.view() : TensorView{};
        Tensor mean(acc, rows), rstd(acc, rows), dx(dtype, shape), dweight(acc, cols), dbias(acc, cols);
        const TensorView dbias_view = with_bias ? dbias.view() : TensorView{};
        const Reference expected(x, weight, with_bias ? &bias : nullptr, dy, true);
        run("layernorm", layer_attrs(), {x, weight, bias_view}, {y, mean, rstd});
        CHECK(max_error(y, expected.y) < bound(dtype));
        CHECK(max_error(mean, expected.mean) < bound(acc));
        CHECK(max_error(rstd, expected.rstd) < bound(acc));

        run("layernorm_bwd", layer_attrs(), {dy, x, weight, mean, rstd, {}, {}, {}},
            {dx, dweight, dbias_view});
        CHECK(max_error(dx, expected.dx) < bound(dtype));
        CHECK(max_error(dweight, expected.dweight) < bound(acc));
        if (with_bias) CHECK(max_error(dbias, expected.dbias) < bound(acc));
        const TensorView dbias_prev = dbias_view;
        run("layernorm_bwd", layer_attrs(), {dy, x, weight, mean, rstd, dweight, dbias_prev, {}},
            {dy, dweight, dbias_view});
        CHECK(dy.same_bits(dx));
        std::vector<double> twice = expected.dweight;
        for (double& value : twice) value *= 2;
        CHECK(max_error(dweight, twice) < bound(acc));
        run("layernorm", layer_attrs(), {x, weight, bias_view}, {x, mean, rstd});
        CHECK(x.same_bits(y));
      }
}

/// FusedNorm with the eps of the plain norms.
fb::FusedNormT fused_attrs() {
  fb::FusedNormT attrs;
  attrs.eps = static_cast<float>(kEps);
  return attrs;
}

TEST_CASE("the norm of a sum has the bits of a sum and its norm") {
  Random random;
  for (fb::DType dtype : kFloatTypes)
    for (const auto& shape : kShapes) {
      const Tensor a = random.normal(dtype, shape, 2, 1), b = random.normal(dtype, shape);
      const std::vector<int64_t> cols = {shape.back()}, rows = {a.view().rows()};
      const Tensor weight = random.normal(dtype, cols, 0.3, 1), bias = random.normal(dtype, cols);
      Tensor sum(dtype, shape), y(dtype, shape), mean(accumulator(dtype), rows),
          rstd(accumulator(dtype), rows);
      run("add", fb::AddT{}, {a, b}, {sum});
      const auto check = [&](const std::string& key, std::vector<TensorView> inputs,
                             const std::vector<const Tensor*>& statistics) {
        const bool in_place = key.ends_with(" in place");
        Tensor first = a.copy(), second = b.copy(), sum_out(dtype, shape), y_out(dtype, shape);
        inputs[0] = first;
        inputs[1] = second;
        std::vector<Tensor> found;
        for (size_t i = 0; i < statistics.size(); ++i) found.emplace_back(accumulator(dtype), rows);
        std::vector<TensorView> outputs = {in_place ? second.view() : sum_out.view(),
                                           in_place ? first.view() : y_out.view()};
        for (const Tensor& tensor : found) outputs.push_back(tensor);
        run(key.substr(0, key.find(' ')), fused_attrs(), inputs, outputs);
        CHECK((in_place ? second : sum_out).same_bits(sum));
        CHECK((in_place ? first : y_out).same_bits(y));
        for (size_t i = 0; i < found.size(); ++i) CHECK(found[i].same_bits(*statistics[i]));
      };
      run("rmsnorm", rms_attrs(), {sum, weight}, {y, rstd});
      check("add_rmsnorm", {{}, {}, weight}, {&rstd});
      check("add_rmsnorm in place", {{}, {}, weight}, {&rstd});
      run("layernorm", layer_attrs(), {sum, weight, bias}, {y, mean, rstd});
      check("add_layernorm", {{}, {}, weight, bias}, {&mean, &rstd});
      check("add_layernorm in place", {{}, {}, weight, bias}, {&mean, &rstd});
    }
}

TEST_CASE("norm gradients add the gradient that goes around the norm") {
  Random random;
  for (fb::DType dtype : kFloatTypes)
    for (const auto& shape : kShapes) {
      const Tensor x = random.normal(dtype, shape, 2, 1), dy = random.normal(dtype, shape);
      const std::vector<int64_t> cols = {shape.back()}, rows = {x.view().rows()};
      const fb::DType acc = accumulator(dtype);
      const Tensor weight = random.normal(dtype, cols, 0.3, 1), bias = random.normal(dtype, cols);
      Tensor dresidual = random.normal(dtype, shape, 3), dx(dtype, shape), y(dtype, shape);
      Tensor mean(acc, rows), rstd(acc, rows), dweight(acc, cols), dbias(acc, cols);
      const auto check = [&](Reference expected) {
        for (int64_t i = 0; i < dx.elements(); ++i) expected.dx[static_cast<size_t>(i)] += dresidual.get(i);
        CHECK(max_error(dx, expected.dx) < bound(dtype));
        CHECK(max_error(dweight, expected.dweight) < bound(acc));
      };
      run("rmsnorm", rms_attrs(), {x, weight}, {y, rstd});
      run("rmsnorm_bwd", rms_attrs(), {dy, x, weight, rstd, {}, dresidual}, {dx, dweight});
      check(Reference(x, weight, nullptr, dy, false));
      Tensor in_place = dresidual.copy();
      run("rmsnorm_bwd", rms_attrs(), {dy, x, weight, rstd, {}, in_place}, {in_place, dweight});
      CHECK(in_place.same_bits(dx));

      run("layernorm", layer_attrs(), {x, weight, bias}, {y, mean, rstd});
      run("layernorm_bwd", layer_attrs(), {dy, x, weight, mean, rstd, {}, {}, dresidual},
          {dx, dweight, dbias});
      check(Reference(x, weight, &bias, dy, true));
      run("layernorm_bwd", layer_attrs(), {dy, x, weight, mean, rstd, {}, {}, dresidual},
          {dresidual, dweight, dbias});
      CHECK(dresidual.same_bits(dx));
    }
}

TEST_CASE("a norm's gradient in pieces and the sums of these are the gradient, for any number of pieces") {
  Random random;
  for (fb::DType dtype : kFloatTypes)
    for (fb::DType grad_dtype : {dtype, accumulator(dtype)})
      for (const bool centred : {false, true})
        for (const auto& shape : kShapes)
          for (const int64_t pieces : {1, 3, 7}) {  // 7 are more than some shapes have rows
            const Tensor x = random.normal(dtype, shape, 2, 1), dy = random.normal(dtype, shape);
            const std::vector<int64_t> cols = {shape.back()}, rows = {x.view().rows()};
            const fb::DType acc = accumulator(dtype);
            const Tensor weight = random.normal(dtype, cols, 0.3, 1);
            const Reference expected(x, weight, nullptr, dy, centred);
            const Tensor mean(acc, rows, expected.mean), rstd(acc, rows, expected.rstd);
            Tensor dresidual = random.normal(dtype, shape), dx(dtype, shape);
            Tensor dweight_partials(acc, {pieces, shape.back()}), dbias_partials(acc, {pieces, shape.back()});
            const TensorView mean_view = centred ? mean.view() : TensorView{},
                             dbias_view = centred ? dbias_partials.view() : TensorView{};
            const auto differentiate = [&](const TensorView& around, const TensorView& bias, Tensor& out) {
              run("norm_bwd_partials", fused_attrs(), {dy, x, weight, mean_view, rstd, around},
                  {out, dweight_partials, bias});
            };
            differentiate({}, dbias_view, dx);
            CHECK(max_error(dx, expected.dx) < bound(dtype));
            const auto check_sum = [&](const Tensor& partials, const std::vector<double>& sum) {
              Tensor grad(grad_dtype, cols);
              run("norm_bwd_sum", fused_attrs(), {partials, {}}, {grad});
              CHECK(max_error(grad, sum) < bound(dtype));
              Tensor before(grad_dtype, cols, std::vector<double>(static_cast<size_t>(shape.back()), 8));
              run("norm_bwd_sum", fused_attrs(), {partials, before}, {before});
              CHECK(max_error(before, plus(sum, 8)) < bound(dtype));
            };
            check_sum(dweight_partials, expected.dweight);
            if (centred) check_sum(dbias_partials, expected.dbias);

            Tensor around(dtype, shape);
            differentiate(dresidual, {}, around);
            differentiate(dresidual, {}, dresidual);
            CHECK(dresidual.same_bits(around));
          }
}

TEST_CASE("norms of extreme rows are finite") {
  const Tensor zeros(fb::DType::F32, {2, 4}, {0, 0, 0, 0, 3e4, 3e4, 3e4, 3e4});
  const Tensor weight(fb::DType::F32, {4}, {1, 1, 1, 1});
  Tensor y(fb::DType::F32, {2, 4}), mean(fb::DType::F32, {2}), rstd(fb::DType::F32, {2});
  run("rmsnorm", rms_attrs(), {zeros, weight}, {y, rstd});
  CHECK(max_error(y, {0, 0, 0, 0, 1, 1, 1, 1}) < 1e-5);
  run("layernorm", layer_attrs(), {zeros, weight, {}}, {y, mean, rstd});
  for (int64_t i = 0; i < 8; ++i) CHECK(y.get(i) == 0);
}

TEST_CASE("norm gradients have the same bits for any number of threads") {
  Random random;
  const std::vector<int64_t> shape = {1001, 70};
  const Tensor x = random.normal(fb::DType::F32, shape), dy = random.normal(fb::DType::F32, shape);
  const Tensor weight = random.normal(fb::DType::F32, {70}),
               rstd = random.normal(fb::DType::F32, {1001}, 0.1, 1);
  check_same_bits_for_any_threads([&] {
    std::vector<Tensor> out;
    out.emplace_back(fb::DType::F32, shape);
    for (int i = 0; i < 3; ++i) out.emplace_back(fb::DType::F32, std::vector<int64_t>{70});
    run("rmsnorm_bwd", rms_attrs(), {dy, x, weight, rstd, {}, {}}, {out[0], out[1]});
    run("layernorm_bwd", layer_attrs(), {dy, x, weight, rstd, rstd, {}, {}, {}}, {out[0], out[2], out[3]});
    return out;
  });
}

}  // namespace
}  // namespace moec::test
