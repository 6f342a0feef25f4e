// The Apply program on the GPU: the CPU's bits, for every type of weights, gradients and moments.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "compiler/lower.h"
#include "compiler/op.h"
#include "kernels/float16.h"
#include "kernels/train_state.h"
#include "schema/plan_file.h"
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

/// A plan that updates one range of `count` weights, its gradient clipped, and its memory by name.
class RangePlan {
 public:
  RangePlan(const Types& types, int64_t count) {
    Graph graph({.compute = types.dtype, .gradient = types.grad}, 0);
    const bool wide = types.dtype == DType::F64;
    const DType moment = wide ? DType::F64 : types.moment;
    const ValueId param = add(graph, "param", types.dtype, count),
                  grad = add(graph, "grad", types.grad, count), m1 = add(graph, "moment1", moment, count),
                  m2 = add(graph, "moment2", moment, count),
                  state = add(graph, "state", DType::U8, sizeof(TrainState));
    ValueId master = kNoValue;
    if (types.dtype == DType::BF16) master = add(graph, "master", DType::U16, count);
    if (types.dtype == DType::F16) master = add(graph, "master", DType::F32, count);
    std::vector<ValueId> outputs = {graph.next_version(param), graph.next_version(m1),
                                    graph.next_version(m2)};
    if (master != kNoValue) outputs.push_back(graph.next_version(master));
    const ValueId normed = graph.next_version(state);
    graph.add_node(find_op("grad_norm"), make_attrs<fb::GradNormT>(), "grad_norm", {state, kNoValue, grad},
                   {normed}, Phase::kOptimizer);
    fb::AdamWT attrs;
    attrs.stream = 5;
    graph.add_node(find_op("adamw"), make_attrs(attrs), "adamw", {param, grad, m1, m2, master, normed},
                   outputs, Phase::kOptimizer);
    PlanWriter writer(storage_);
    writer.add_program(fb::ProgramKind::Apply, graph);
    for (const StorageSlot& slot : storage_.slots) tensor_[slot.name] = writer.tensor_id(slot.name);
    fb::PlanT plan = std::move(writer).finish();
    plan.model = std::make_unique<fb::ModelT>();
    plan.recipe = std::make_unique<fb::RecipeT>();
    plan.io = std::make_unique<fb::InterfaceT>();
    plan.io->train_state = tensor_.at("state");
    const std::vector<uint8_t> bytes = serialize_plan(plan);
    loaded_ = must(runtime::parse_plan(std::string(bytes.begin(), bytes.end()), "range.plan"));
  }

  /// Everything that a step leaves on a device that starts with random weights, gradients and moments.
  std::vector<std::byte> run(std::unique_ptr<runtime::Device> device) const {
    must(device->load(loaded_));
    std::mt19937_64 rng(9);
    std::normal_distribution<float> normal;
    for (const auto& [name, tensor] : tensor_) {
      const fb::TensorT& info = *loaded_->tensor(tensor);
      std::vector<float> values(info.shape[0]);
      for (float& value : values) value = std::abs(normal(rng));
      if (name == "grad") values = random_gradient(values.size(), rng, false);
      if (info.dtype == DType::U16) continue;  // remainders of 0
      if (name != "state") must(device->write(tensor, 0, as_stored(info.dtype, values)));
    }
    TrainState state;
    state.seed = 77;
    state.step = 12;
    state.lr = 1e-3;
    must(device->write(tensor_.at("state"), 0, std::as_bytes(std::span(&state, 1))));
    must(device->run(fb::ProgramKind::Apply));
    std::vector<std::byte> all;
    for (const auto& [name, tensor] : tensor_) {
      const fb::TensorT& info = *loaded_->tensor(tensor);
      std::vector<std::byte> bytes(info.shape[0] * static_cast<uint64_t>(dtype_size(info.dtype)));
      must(device->read(tensor, 0, bytes));
      all.insert(all.end(), bytes.begin(), bytes.end());
    }
    return all;
  }

 private:
  ValueId add(Graph& graph, const std::string& name, DType dtype, int64_t count) {
    const TensorType type{dtype, {count}};
    fb::BufferT buffer;
    buffer.name = name;
    buffer.kind = fb::BufferKind::Io;
    buffer.arena = fb::ArenaKind::State;
    buffer.offset = end_;
    buffer.size = static_cast<uint64_t>(type.bytes());
    end_ += (buffer.size + 255) / 256 * 256;
    storage_.slots.push_back({name, type, Role::kIo, static_cast<uint32_t>(storage_.buffers.size()), 0});
    storage_.buffers.push_back(buffer);
    return graph.persistent(name, type, Role::kIo);
  }

  Storage storage_;
  uint64_t end_ = 0;
  std::map<std::string, int> tensor_;
  std::shared_ptr<const runtime::LoadedPlan> loaded_;
};

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

TEST_CASE("the optimizer step of ragged ranges has the CPU's bits") {
  for (const Types& types : kTypes)
    for (const int64_t count : {1, 3, 4, 127, 4099}) {
      CAPTURE(fb::EnumNameDType(types.dtype));
      CAPTURE(fb::EnumNameDType(types.moment));
      CAPTURE(count);
      const RangePlan plan(types, count);
      CHECK(plan.run(cuda_device()) == plan.run(runtime::make_cpu_device()));
    }
}

TEST_SUITE_END();

}  // namespace moec::test
