#include "kernels/random.h"

#include "tests/kernels/train_state_tensor.h"

namespace moec::test {
namespace {

fb::DropoutT dropout_attrs(float p, uint32_t stream) {
  fb::DropoutT attrs;
  attrs.p = p;
  attrs.stream = stream;
  return attrs;
}
fb::InitNormalT normal_attrs(float mean, float std, uint32_t stream) {
  fb::InitNormalT attrs;
  attrs.mean = mean;
  attrs.std = std;
  attrs.stream = stream;
  return attrs;
}

TEST_CASE("Philox4x32-10 gives the published test vectors") {
  const auto check = [](RandomBlock counter, uint64_t key, RandomBlock expected) {
    const RandomBlock actual = philox4x32(counter, key);
    for (int i = 0; i < 4; ++i) CHECK(actual.word[i] == expected.word[i]);
  };
  check({{0, 0, 0, 0}}, 0, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}});
  check({{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}}, 0xffffffffffffffff,
        {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}});
  check({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0x299f31d0a4093822,
        {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}});
}

TEST_CASE("streams, domains, sequences and seeds give different numbers") {
  const auto word = [](uint64_t seed, RandomDomain domain, uint32_t stream, uint32_t sequence,
                       uint64_t block) {
    return random_block(seed, domain, stream, sequence, block).word[0];
  };
  const uint32_t base = word(1, RandomDomain::Init, 0, 0, 0);
  CHECK(base != word(2, RandomDomain::Init, 0, 0, 0));
  CHECK(base != word(uint64_t{1} << 32 | 1, RandomDomain::Init, 0, 0, 0));
  CHECK(base != word(1, RandomDomain::Dropout, 0, 0, 0));
  CHECK(base != word(1, RandomDomain::Init, 1, 0, 0));
  CHECK(base != word(1, RandomDomain::Init, 0, 1, 0));
  CHECK(base != word(1, RandomDomain::Init, 0, 0, 1));
  CHECK(base != word(1, RandomDomain::Init, 0, 0, uint64_t{1} << 32));
}

TEST_CASE("init_normal has the moments of a normal distribution") {
  TrainState state;
  state.seed = 42;
  const Tensor seed = state_tensor(state);
  constexpr int64_t kElements = 1000002;
  Tensor y(fb::DType::F32, {kElements});
  run("init_normal", normal_attrs(0.5f, 2, 3), {seed}, {y});
  double moment[5] = {};
  for (int64_t i = 0; i < kElements; ++i) {
    const double z = (y.get(i) - 0.5) / 2;
    for (int k = 1; k <= 4; ++k) moment[k] += std::pow(z, k) / kElements;
  }
  // Bounds are five standard errors: sqrt(1, 2, 15, 96) / 1000.
  CHECK(std::abs(moment[1]) < 0.005);
  CHECK(std::abs(moment[2] - 1) < 0.0071);
  CHECK(std::abs(moment[3]) < 0.0194);
  CHECK(std::abs(moment[4] - 3) < 0.049);
}

TEST_CASE("an element of init_normal depends on seed, stream and place alone") {
  TrainState state;
  state.seed = 7;
  const Tensor seed = state_tensor(state);
  Tensor large(fb::DType::F64, {20001}), small(fb::DType::F64, {5}), other(fb::DType::F64, {5});
  run("init_normal", normal_attrs(0, 1, 1), {seed}, {large});
  run("init_normal", normal_attrs(0, 1, 1), {seed}, {small});
  run("init_normal", normal_attrs(0, 1, 2), {seed}, {other});
  for (int64_t i = 0; i < 5; ++i) {
    CHECK(small.get(i) == large.get(i));
    CHECK(small.get(i) != other.get(i));
  }
  CHECK(large.get(20000) == initial_normals(7, 1, 5000).value[0]);
}

TEST_CASE("fill writes every type") {
  fb::FillT attrs;
  attrs.value = 3;
  using fb::DType;
  for (DType dtype : {DType::F32, DType::F64, DType::BF16, DType::F16, DType::I32, DType::U16, DType::U8}) {
    Tensor y(dtype, {40000});
    run("fill", attrs, {}, {y});
    CHECK(y.values() == std::vector<double>(40000, 3));
  }
}

TEST_CASE("dropout keeps and scales the expected share, the same in forward and backward") {
  Random random;
  for (fb::DType dtype : kFloatTypes) {
    constexpr int64_t kElements = 100003;
    TrainState state;
    state.micro_batch = 9;
    const Tensor step = state_tensor(state);
    Tensor x(dtype, {kElements}, std::vector<double>(kElements, 3)), y(dtype, {kElements});
    run("dropout", dropout_attrs(0.25f, 5), {x, step}, {y});
    int64_t kept = 0;
    for (int64_t i = 0; i < kElements; ++i) {
      REQUIRE((y.get(i) == 0 || y.get(i) == doctest::Approx(4).epsilon(tolerance(dtype))));
      kept += y.get(i) != 0;
    }
    CHECK(std::abs(static_cast<double>(kept) / kElements - 0.75) < 0.007);  // five standard errors
    run("dropout", dropout_attrs(0.25f, 5), {x, step}, {x});
    CHECK(x.same_bits(y));
  }
}

TEST_CASE("the dropout mask changes with seed, micro-batch and stream") {
  const Tensor x(fb::DType::F32, {1000}, std::vector<double>(1000, 1));
  const auto mask = [&](uint64_t seed, int64_t micro_batch, uint32_t stream) {
    TrainState state;
    state.seed = seed;
    state.micro_batch = micro_batch;
    Tensor y(fb::DType::F32, {1000});
    run("dropout", dropout_attrs(0.5f, stream), {x, state_tensor(state)}, {y});
    return y.values();
  };
  CHECK(mask(1, 2, 3) == mask(1, 2, 3));
  CHECK(mask(1, 2, 3) != mask(2, 2, 3));
  CHECK(mask(1, 2, 3) != mask(1, 3, 3));
  CHECK(mask(1, 2, 3) != mask(1, 2, 4));
}

TEST_CASE("dropout at p = 0 is the identity, at p = 1 zero, and a dropped NaN is zero") {
  Random random;
  const Tensor x = random.normal(fb::DType::F32, {999}), step = state_tensor({});
  Tensor y(fb::DType::F32, {999});
  run("dropout", dropout_attrs(0, 0), {x, step}, {y});
  CHECK(y.same_bits(x));
  const Tensor nan(fb::DType::F32, {999});
  run("dropout", dropout_attrs(1, 0), {nan, step}, {y});
  CHECK(y.values() == std::vector<double>(999, 0));
}

TEST_CASE("init and dropout have the same bits for any number of threads") {
  const Tensor step = state_tensor({});
  check_same_bits_for_any_threads([&] {
    std::vector<Tensor> out;
    out.emplace_back(fb::DType::F32, std::vector<int64_t>{70001});
    out.emplace_back(fb::DType::F32, std::vector<int64_t>{70001});
    run("init_normal", normal_attrs(0, 1, 0), {step}, {out[0]});
    run("dropout", dropout_attrs(0.1f, 0), {out[0], step}, {out[1]});
    return out;
  });
}

}  // namespace
}  // namespace moec::test
