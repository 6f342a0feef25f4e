#include <bit>

#include "kernels/master_weight.h"
#include "kernels/stochastic_round.h"
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
  for (Types types : {Types{DType::F32, DType::F32}, {DType::F64, DType::F64}, {DType::F32, DType::BF16}}) {
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

/// What makes 16-bit weights f32 masters: the remainders of bf16, the masters of f16.
Tensor masters_of(const Tensor& param) {
  return param.view().dtype == fb::DType::BF16 ? zeros(fb::DType::U16, param.elements())
                                               : Tensor(fb::DType::F32, {param.elements()}, param.values());
}

uint32_t master_bits(const Tensor& param, const Tensor& masters, int64_t i) {
  return param.view().dtype == fb::DType::BF16
             ? join_master(param.view().as<uint16_t>()[i], masters.view().as<uint16_t>()[i])
             : masters.view().as<uint32_t>()[i];
}

TEST_CASE("16-bit weights are updated as their f32 masters, bit for bit, for every type of moments") {
  using fb::DType;
  for (DType dtype : {DType::BF16, DType::F16})
    for (DType grad_dtype : {DType::F32, dtype})
      for (DType moments : {DType::F32, DType::BF16}) {
        Random random;
        Tensor param = random.normal(dtype, {kElements}), masters = masters_of(param);
        Tensor wide(DType::F32, {kElements}, param.values());
        Tensor m1 = zeros(moments, kElements), m2 = zeros(moments, kElements);
        Tensor wide_m1 = m1.copy(), wide_m2 = m2.copy();
        for (int64_t step = 0; step < 20; ++step) {
          const Tensor grad = random.normal(grad_dtype, {kElements});
          const Tensor wide_grad(DType::F32, {kElements}, grad.values());
          const Tensor state = state_tensor(step_state(step, 1e-4));
          run("adamw", adamw_attrs(), {param, grad, m1, m2, masters, state}, {param, m1, m2, masters});
          run("adamw", adamw_attrs(), {wide, wide_grad, wide_m1, wide_m2, {}, state},
              {wide, wide_m1, wide_m2, {}});
        }
        CHECK(m1.same_bits(wide_m1));
        CHECK(m2.same_bits(wide_m2));
        const double half_ulp = std::exp2(dtype == DType::BF16 ? -8 : -11), smallest = std::exp2(-25);
        for (int64_t i = 0; i < kElements; ++i) {
          REQUIRE(master_bits(param, masters, i) == wide.view().as<uint32_t>()[i]);
          REQUIRE(std::abs(param.get(i) - wide.get(i)) <= std::abs(wide.get(i)) * half_ulp + smallest);
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
  using fb::DType;
  TrainState state = step_state(3, 0.1);
  state.non_finite = 1;
  for (DType dtype : {DType::BF16, DType::F16})
    for (DType moments : {DType::F32, DType::BF16}) {
      Random random;
      const Tensor param = random.normal(dtype, {kElements}), masters = masters_of(param);
      const Tensor moment1 = random.normal(moments, {kElements}),
                   moment2 = random.normal(moments, {kElements});
      const Tensor grad(DType::F32, {kElements});  // NaN
      const Tensor before[] = {param.copy(), moment1.copy(), moment2.copy(), masters.copy()};
      run("adamw", adamw_attrs(), {param, grad, moment1, moment2, masters, state_tensor(state)},
          {param, moment1, moment2, masters});
      CHECK(param.same_bits(before[0]));
      CHECK(moment1.same_bits(before[1]));
      CHECK(moment2.same_bits(before[2]));
      CHECK(masters.same_bits(before[3]));
    }
}

/// The f32 with these bits, and the bf16.
double f32_of(uint32_t bits) { return std::bit_cast<float>(bits); }
double bf16_of(uint16_t bits) { return f32_of(uint32_t{bits} << 16); }

TEST_CASE("stochastic rounding over all noise gives the f32 back, exactly") {
  for (uint32_t low : {0u, 1u, 0x1234u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu})
    for (uint32_t high : {0u, 0x0001u, 0x0080u, 0x3f80u, 0x3fffu, 0x7f7eu, 0x8000u, 0xbf80u, 0xc123u}) {
      const uint32_t bits = high << 16 | low;
      double sum = 0;  // exact: all terms are multiples of one power of two
      for (uint32_t noise = 0; noise < 0x10000; ++noise) sum += bf16_of(round_stochastically(bits, noise));
      REQUIRE(sum / 0x10000 == f32_of(bits));
    }
  for (uint32_t noise : {0u, 0xffffu}) {
    CHECK(round_stochastically(0x7f800000, noise) == 0x7f80);
    CHECK(round_stochastically(0xff800000, noise) == 0xff80);
    for (uint32_t nan : {0x7f800001u, 0x7fffffffu, 0xffffffffu})
      CHECK(std::isnan(bf16_of(round_stochastically(nan, noise))));
  }
}

/// Moments in bf16 of one step from zero with the same gradient for all elements.
struct RoundedMoments {
  Tensor moment1 = zeros(fb::DType::BF16, kElements), moment2 = zeros(fb::DType::BF16, kElements);

  RoundedMoments(double grad, fb::AdamWT attrs, const TrainState& state) {
    const Tensor param = zeros(fb::DType::F32, kElements),
                 grads(fb::DType::F32, {kElements}, std::vector<double>(kElements, grad));
    run("adamw", attrs, {param, grads, moment1, moment2, {}, state_tensor(state)},
        {param, moment1, moment2, {}});
  }
};

/// The share of the elements that are above `value`.
double share_above(const Tensor& tensor, double value) {
  const std::vector<double> values = tensor.values();
  const auto above = std::count_if(values.begin(), values.end(), [&](double x) { return x > value; });
  return static_cast<double>(above) / static_cast<double>(values.size());
}

TEST_CASE(
    "bf16 moments are rounded up as often as they are near, apart from each other, by element and step") {
  fb::AdamWT attrs = adamw_attrs();
  attrs.beta1 = attrs.beta2 = 0.5f;
  TrainState state = step_state(7, 0);
  state.grad_scale = 1;
  // Moments are 1 + p and (1 + p)^2 * 2 units of 2^-7 (bf16's last place from 1 to 2) above 1 and 2.
  const double p = 0.25, grad = 2 * (1 + p * std::exp2(-7));
  const double exact1 = grad / 2, exact2 = grad * grad / 2;
  const double p2 = (exact2 - 2) * std::exp2(6);
  const double sigma = 0.5 / std::sqrt(static_cast<double>(kElements));
  const RoundedMoments rounded(grad, attrs, state);
  CHECK(std::abs(share_above(rounded.moment1, exact1) - p) < 5 * sigma);
  CHECK(std::abs(share_above(rounded.moment2, exact2) - p2) < 5 * sigma);

  int64_t both = 0;
  for (int64_t i = 0; i < kElements; ++i)
    both += rounded.moment1.get(i) > exact1 && rounded.moment2.get(i) > exact2;
  CHECK(std::abs(static_cast<double>(both) / kElements - p * p2) < 5 * sigma);

  CHECK(rounded.moment1.same_bits(RoundedMoments(grad, attrs, state).moment1));
  const auto agree_by_chance = [&](const RoundedMoments& other) {
    int64_t same = 0;
    for (int64_t i = 0; i < kElements; ++i) same += rounded.moment1.get(i) == other.moment1.get(i);
    CHECK(std::abs(static_cast<double>(same) / kElements - (p * p + (1 - p) * (1 - p))) < 5 * sigma);
  };
  TrainState later = state, reseeded = state;
  later.step = 8;
  later.skipped_steps = 1;  // the same bias correction
  reseeded.seed = 99;
  fb::AdamWT other_stream = attrs;
  other_stream.stream = 1;
  agree_by_chance(RoundedMoments(grad, attrs, later));
  agree_by_chance(RoundedMoments(grad, attrs, reseeded));
  agree_by_chance(RoundedMoments(grad, other_stream, state));
}

TEST_CASE("bf16 moments follow a gradient through changes below their last place") {
  constexpr int64_t kCount = 512, kSteps = 2000;
  fb::AdamWT attrs = adamw_attrs();
  attrs.beta2 = 0.999;  // a step changes the second moment by at most a thousandth; its last place is 1/256
  const Tensor param = zeros(fb::DType::F32, kCount), moment1 = zeros(fb::DType::BF16, kCount),
               moment2 = zeros(fb::DType::BF16, kCount),
               grad(fb::DType::F32, {kCount}, std::vector<double>(kCount, 2));
  for (int64_t step = 0; step < kSteps; ++step)
    run("adamw", attrs, {param, grad, moment1, moment2, {}, state_tensor(step_state(step, 1e-3))},
        {param, moment1, moment2, {}});
  double mean = 0;
  for (const double value : moment2.values()) mean += value / kCount;
  CHECK(mean == doctest::Approx(1 - std::pow(0.999, kSteps)).epsilon(0.01));
}

TrainState norm_of(const std::vector<TensorView>& grads, float max_norm, double loss_scale = 1,
                   const TensorView& squares = {}) {
  TrainState start;
  start.loss_scale = loss_scale;
  start.non_finite = 1;  // of an earlier step
  fb::GradNormT attrs;
  attrs.max_norm = max_norm;
  const Tensor state = state_tensor(start);
  std::vector<TensorView> inputs = {state, squares};
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

TEST_CASE("grad_norm adds squares that were summed before") {
  Random random;
  const Tensor grad = random.normal(fb::DType::BF16, {1000});
  Tensor squares = zeros(fb::DType::F64, 50000);
  squares.set(0, 3);
  squares.set(49999, 1e60);
  double sum = 3 + 1e60;
  for (const double value : grad.values()) sum += value * value;
  CHECK(norm_of({grad}, 0, 8, squares).grad_norm == doctest::Approx(std::sqrt(sum) / 8).epsilon(1e-12));
  CHECK(norm_of({}, 0, 8, squares).grad_norm == doctest::Approx(std::sqrt(3 + 1e60) / 8).epsilon(1e-12));
  squares.set(25000, std::numeric_limits<double>::infinity());
  CHECK(norm_of({grad}, 0, 8, squares).non_finite == 1);
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
  fb::DType moments = fb::DType::F32;
  SUBCASE("f32 moments") { moments = fb::DType::F32; }
  SUBCASE("bf16 moments") { moments = fb::DType::BF16; }
  Random random;
  const Tensor grad = random.normal(fb::DType::F32, {3000000}),
               start = random.normal(fb::DType::F32, {3000000});
  check_same_bits_for_any_threads([&] {
    std::vector<Tensor> out;
    out.push_back(state_tensor(step_state(0, 0.1)));
    out.push_back(start.copy());
    out.push_back(zeros(moments, 3000000));
    out.push_back(zeros(moments, 3000000));
    run("grad_norm", fb::GradNormT{}, {out[0], {}, grad}, {out[0]});
    run("adamw", adamw_attrs(), {out[1], grad, out[2], out[3], {}, out[0]}, {out[1], out[2], out[3], {}});
    return out;
  });
}

}  // namespace
}  // namespace moec::test
