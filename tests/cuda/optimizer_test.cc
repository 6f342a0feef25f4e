// The Apply program on the GPU: the CPU's bits, for every type of weights, gradients and moments.
#include <doctest/doctest.h>

#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kernels/float16.h"
#include "tests/cuda/gpu.h"
#include "tests/support/training.h"

namespace moec::test {
namespace {

using fb::DType;
using runtime::Session;

struct Types {
  DType dtype, grad, moment;
};

constexpr Types kTypes[] = {{DType::F64, DType::F64, DType::F32},    {DType::F32, DType::F32, DType::F32},
                            {DType::F32, DType::F32, DType::BF16},   {DType::BF16, DType::F32, DType::F32},
                            {DType::BF16, DType::BF16, DType::BF16}, {DType::F16, DType::F32, DType::BF16},
                            {DType::F16, DType::F16, DType::F32}};

fb::ModelT small_model(const Types& types) {
  fb::ModelT model = example_model("moe-tiny");
  model.recipe->dtype = types.dtype;
  model.recipe->grad_dtype = types.grad;
  model.recipe->moment_dtype = types.moment;
  model.recipe->clip_norm = 0.5;
  model.recipe->adamw->weight_decay = 0.1;
  return model;
}

template <class T>
std::vector<std::byte> as_stored(const std::vector<float>& values) {
  const std::vector<T> stored(values.begin(), values.end());
  const auto bytes = std::as_bytes(std::span(stored));
  return {bytes.begin(), bytes.end()};
}

std::vector<std::byte> as_stored(DType dtype, const std::vector<float>& values) {
  switch (dtype) {
    case DType::F64:
      return as_stored<double>(values);
    case DType::BF16:
      return as_stored<bf16>(values);
    case DType::F16:
      return as_stored<f16>(values);
    default:
      return as_stored<float>(values);
  }
}

/// Multiples of 2^-7 up to 1, whose squares add up without rounding in any order, so that the norm is the
/// same on both devices; and, if asked, an infinity.
std::vector<float> random_gradient(size_t count, std::mt19937_64& rng, bool infinite) {
  std::uniform_int_distribution<int> distribution(-128, 128);
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(distribution(rng)) / 128;
  if (infinite) values[count / 2] = std::numeric_limits<float>::infinity();
  return values;
}

void write_gradients(Session& a, Session& b, std::mt19937_64& rng, bool infinite = false) {
  for (const auto& parameter : a.plan().plan.parameters) {
    const runtime::TensorInfo info = a.tensor_info(parameter->grad);
    size_t count = 1;
    for (const uint64_t extent : info.shape) count *= extent;
    const std::vector<std::byte> bytes = as_stored(info.dtype, random_gradient(count, rng, infinite));
    must(a.device().write(parameter->grad, 0, bytes));
    must(b.device().write(parameter->grad, 0, bytes));
  }
}

void check_same_state(Session& a, Session& b) {
  CHECK(must(a.state_hash()) == must(b.state_hash()));
  const TrainState of_a = must(a.read_train_state()), of_b = must(b.read_train_state());
  CHECK(std::memcmp(&of_a, &of_b, sizeof(TrainState)) == 0);
  const int metrics = a.plan().plan.io->metrics;
  CHECK(must(a.read_tensor(metrics)).data == must(b.read_tensor(metrics)).data);
}

}  // namespace

TEST_SUITE_BEGIN("gpu");

TEST_CASE("the optimizer step has the CPU's bits") {
  for (const Types& types : kTypes) {
    CAPTURE(fb::EnumNameDType(types.dtype));
    CAPTURE(fb::EnumNameDType(types.grad));
    CAPTURE(fb::EnumNameDType(types.moment));
    Session gpu = must(host_batch_session(small_model(types), cuda_device()));
    Session cpu = must(host_batch_session(small_model(types), runtime::make_cpu_device()));
    for (size_t i = 0; i < cpu.plan().plan.parameters.size(); ++i)
      must(gpu.write_parameter(must(cpu.read_parameter(i))));
    std::mt19937_64 rng(3);
    uint64_t hash = must(cpu.state_hash());
    for (int step = 0; step < 6; ++step) {
      const bool infinite = step == 3;
      write_gradients(gpu, cpu, rng, infinite);
      for (Session* session : {&gpu, &cpu}) must(session->device().run(fb::ProgramKind::Apply));
      check_same_state(gpu, cpu);
      CHECK((must(cpu.state_hash()) == hash) == infinite);
      hash = must(cpu.state_hash());
    }
    CHECK(must(gpu.read_train_state()).skipped_steps == 1);
    if (types.dtype == DType::F16) CHECK(must(gpu.read_train_state()).loss_scale == 32768);
  }
}

TEST_SUITE_END();

}  // namespace moec::test
