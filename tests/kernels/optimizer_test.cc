#include "kernels/master_weight.h"
#include "tests/kernels/train_state_tensor.h"

namespace moec::test {
namespace {

constexpr int64_t kElements = 20011;

fb::AdamWT adamw_attrs() {
  fb::AdamWT attrs;
  attrs.beta1 = 0.9f;
  attrs.beta2 = 0.95f;
  attrs.eps = 1e-8f;
  attrs.weight_decay = 0.1f;
  return attrs;
}

/// PyTorch's AdamW (single tensor form) in f64, with the constants as the f32 attributes hold them.
struct ReferenceAdamW {
  std::vector<double> param, moment1, moment2;

  explicit ReferenceAdamW(std::vector<double> start)
      : param(std::move(start)), moment1(param.size()), moment2(param.size()) {}

  void step(const Tensor& grad, double grad_scale, double lr, int64_t t) {
    const fb::AdamWT a = adamw_attrs();
    const double beta1 = a.beta1, beta2 = a.beta2;
    for (size_t i = 0; i < param.size(); ++i) {
      const double g = grad.get(static_cast<int64_t>(i)) * grad_scale;
      param[i] -= lr * a.weight_decay * param[i];
      moment1[i] = beta1 * moment1[i] + (1 - beta1) * g;
      moment2[i] = beta2 * moment2[i] + (1 - beta2) * g * g;
      const double corrected1 = moment1[i] / (1 - std::pow(beta1, t));
      const double corrected2 = moment2[i] / (1 - std::pow(beta2, t));
      param[i] -= lr * corrected1 / (std::sqrt(corrected2) + a.eps);
    }
  }
};

Tensor zeros(fb::DType dtype, int64_t n) {
  return Tensor(dtype, {n}, std::vector<double>(static_cast<size_t>(n), 0));
}

TrainState step_state(int64_t step, double lr) {
  TrainState state;
  state.step = step;
  state.lr = lr;
  state.grad_scale = 0.5f;
  return state;
}

TEST_CASE("adamw follows PyTorch's formula") {
  struct Types {
    fb::DType param, grad;
  };
  using fb::DType;
  for (Types types : {Types{DType::F32, DType::F32}, {DType::F64, DType::F64}, {DType::BF16, DType::F32}}) {
    Random random;
    const DType acc = accumulator(types.param);
    Tensor param = random.normal(types.param, {kElements});
    Tensor moment1 = zeros(acc, kElements), moment2 = zeros(acc, kElements);
    ReferenceAdamW expected(param.values());
    for (int64_t step = 0; step < 5; ++step) {
      const Tensor grad = random.normal(types.grad, {kElements}, 0.1);
      const double lr = 0.01 / static_cast<double>(step + 1);
      expected.step(grad, 0.5, lr, step + 1);
      run("adamw", adamw_attrs(), {param, grad, moment1, moment2, {}, state_tensor(step_state(step, lr))},
          {param, moment1, moment2, {}});
    }
    CHECK(max_error(param, expected.param) < tolerance(types.param));
    CHECK(max_error(moment1, expected.moment1) < tolerance(acc));
    CHECK(max_error(moment2, expected.moment2) < tolerance(acc));
  }
}

TEST_CASE("bf16 weights with a remainder are updated as their f32 masters, bit for bit") {
  for (fb::DType grad_dtype : {fb::DType::F32, fb::DType::BF16}) {
    Random random;
    Tensor param = random.normal(fb::DType::BF16, {kElements}), remainder = zeros(fb::DType::U16, kElements);
    Tensor master(fb::DType::F32, {kElements}, param.values());
    Tensor m1 = zeros(fb::DType::F32, kElements), m2 = zeros(fb::DType::F32, kElements);
    Tensor master_m1 = m1.copy(), master_m2 = m2.copy();
    for (int64_t step = 0; step < 20; ++step) {
      const Tensor grad = random.normal(grad_dtype, {kElements});
      const Tensor wide_grad(fb::DType::F32, {kElements}, grad.values());
      const Tensor state = state_tensor(step_state(step, 1e-4));
      run("adamw", adamw_attrs(), {param, grad, m1, m2, remainder, state}, {param, m1, m2, remainder});
      run("adamw", adamw_attrs(), {master, wide_grad, master_m1, master_m2, {}, state},
          {master, master_m1, master_m2, {}});
    }
    CHECK(m1.same_bits(master_m1));
    CHECK(m2.same_bits(master_m2));
    for (int64_t i = 0; i < kElements; ++i) {
      const uint32_t joined =
          join_master(param.view().as<uint16_t>()[i], static_cast<uint16_t>(remainder.get(i)));
      REQUIRE(joined == master.view().as<uint32_t>()[i]);
      REQUIRE(std::abs(param.get(i) - master.get(i)) <= std::abs(master.get(i)) * std::exp2(-8));
    }
  }
}

TEST_CASE("a master weight is its split joined again, for every sign, exponent and low half") {
  for (uint32_t low = 0; low < 0x20000; ++low)
    for (uint32_t high : {0u, 0x3f7e0000u, 0x7f7e0000u, 0x80000000u, 0xbf800000u}) {
      const SplitMaster split = split_master(high + low);
      REQUIRE(join_master(split.weight, split.remainder) == high + low);
    }
  // Rounded to nearest, halves away from zero.
  CHECK(split_master(0x3f807fff).weight == 0x3f80);
  CHECK(split_master(0x3f808000).weight == 0x3f81);
}

TEST_CASE("a non-finite step leaves weights and moments bit for bit as they were") {
  Random random;
  TrainState state = step_state(3, 0.1);
  state.non_finite = 1;
  Tensor param = random.normal(fb::DType::BF16, {kElements}),
         moment1 = random.normal(fb::DType::F32, {kElements});
  Tensor moment2 = random.normal(fb::DType::F32, {kElements}), remainder = zeros(fb::DType::U16, kElements);
  const Tensor grad(fb::DType::F32, {kElements});  // NaN
  const Tensor before[] = {param.copy(), moment1.copy(), moment2.copy(), remainder.copy()};
  run("adamw", adamw_attrs(), {param, grad, moment1, moment2, remainder, state_tensor(state)},
      {param, moment1, moment2, remainder});
  CHECK(param.same_bits(before[0]));
  CHECK(moment1.same_bits(before[1]));
  CHECK(moment2.same_bits(before[2]));
  CHECK(remainder.same_bits(before[3]));
}

TrainState norm_of(const std::vector<TensorView>& grads, float max_norm, double loss_scale = 1) {
  TrainState start;
  start.loss_scale = loss_scale;
  start.non_finite = 1;  // of an earlier step
  fb::GradNormT attrs;
  attrs.max_norm = max_norm;
  const Tensor state = state_tensor(start);
  std::vector<TensorView> inputs = {state};
  inputs.insert(inputs.end(), grads.begin(), grads.end());
  run("grad_norm", attrs, inputs, {state});
  return state_of(state);
}

TEST_CASE("grad_norm is the norm over all ranges, unscaled, with PyTorch's clip factor") {
  Random random;
  for (fb::DType dtype : kFloatTypes) {
    const Tensor a = random.normal(dtype, {100000}), b = random.normal(accumulator(dtype), {3, 7});
    double squares = 0;
    for (double value : a.values()) squares += value * value;
    for (double value : b.values()) squares += value * value;
    const double norm = std::sqrt(squares) / 8;
    const TrainState clipped = norm_of({a, b}, 2, 8);
    CHECK(clipped.grad_norm == doctest::Approx(norm).epsilon(1e-12));
    CHECK(clipped.non_finite == 0);
    CHECK(clipped.grad_scale == doctest::Approx(2 / (norm + 1e-6) / 8));
    CHECK(norm_of({a, b}, 1000, 8).grad_scale == 0.125f);  // within the bound
    CHECK(norm_of({a, b}, 0, 8).grad_scale == 0.125f);     // no clipping
  }
}

TEST_CASE("grad_norm finds a single non-finite element anywhere") {
  for (fb::DType dtype : kFloatTypes)
    for (double bad :
         {std::nan(""), std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity()})
      for (int64_t at : {0, 50000, 99999}) {
        Tensor grad = zeros(dtype, 100000);
        CHECK(norm_of({grad}, 1).non_finite == 0);
        grad.set(at, bad);
        CHECK(norm_of({grad}, 1).non_finite == 1);
      }
}

TEST_CASE("finite f32 gradients whose squares overflow f32 are finite") {
  const Tensor grad(fb::DType::F32, {2}, {3e38, 3e38});
  const TrainState state = norm_of({grad}, 1);
  CHECK(state.non_finite == 0);
  CHECK(state.grad_norm == doctest::Approx(3e38 * std::sqrt(2.0)));
}

TEST_CASE("grad_norm and adamw have the same bits for any number of threads") {
  Random random;
  const Tensor grad = random.normal(fb::DType::F32, {3000000}),
               start = random.normal(fb::DType::F32, {3000000});
  check_same_bits_for_any_threads([&] {
    std::vector<Tensor> out;
    out.push_back(state_tensor(step_state(0, 0.1)));
    out.push_back(start.copy());
    out.push_back(zeros(fb::DType::F32, 3000000));
    out.push_back(zeros(fb::DType::F32, 3000000));
    run("grad_norm", fb::GradNormT{}, {out[0], grad}, {out[0]});
    run("adamw", adamw_attrs(), {out[1], grad, out[2], out[3], {}, out[0]}, {out[1], out[2], out[3], {}});
    return out;
  });
}

}  // namespace
}  // namespace moec::test
