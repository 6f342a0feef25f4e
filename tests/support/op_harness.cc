#include "tests/support/op_harness.h"

#include <cstring>
#include <random>
#include <stdexcept>
#include <type_traits>

#include "compiler/autodiff.h"
#include "compiler/builder.h"
#include "compiler/compile.h"
#include "compiler/frontend.h"
#include "compiler/fuse.h"
#include "compiler/lower.h"
#include "compiler/recompute.h"
#include "kernels/float16.h"
#include "kernels/train_state.h"

namespace moec::test {
namespace {

constexpr char kOutput[] = "output:";
constexpr char kSeed[] = "seed:";
constexpr char kGradient[] = "gradient:";

bool starts_with(const std::string& text, const std::string& prefix) { return text.rfind(prefix, 0) == 0; }

bool is_integer(const SampleInput& input) { return input.fill != Fill::kNormal && input.fill != Fill::kTies; }

fb::ModelT model_of(const Sample& sample) {
  return parse_model("{name: \"sample\", blocks: [{name: \"b\", nodes: " + sample.nodes + "}]}", sample.name);
}

void must(const Status& status) {
  if (!status.ok()) throw std::runtime_error(status.error().message);
}

std::vector<double> random_input(const SampleInput& input, std::mt19937_64& rng) {
  size_t count = 1;
  for (const int64_t d : input.shape) count *= static_cast<size_t>(d);
  std::vector<double> values(count);
  std::normal_distribution<double> normal;
  const auto draw = [&](int64_t low, int64_t bound) {
    return static_cast<double>(std::uniform_int_distribution<int64_t>(low, bound - 1)(rng));
  };
  const size_t cols = static_cast<size_t>(input.shape.empty() ? 1 : input.shape.back());
  for (size_t i = 0; i < count; ++i) {
    const size_t row = i / cols, col = i % cols;
    switch (input.fill) {
      case Fill::kNormal:
        values[i] = normal(rng);
        break;
      case Fill::kTies:
        values[i] = (col + row) % cols < 2 ? 1 : -1;
        break;
      case Fill::kTokens:
        values[i] = draw(0, input.bound);
        break;
      case Fill::kTargets:
        values[i] = draw(-1, input.bound);
        break;
      case Fill::kOneExpert:
        values[i] = static_cast<double>(col);
        break;
      case Fill::kDistinctExperts: {
        const auto choices = static_cast<size_t>(input.bound - 1);
        const size_t start = static_cast<size_t>(col == 0 ? draw(0, input.bound - 1) : 0);
        values[i] = col == 0 ? static_cast<double>(start)
                             : static_cast<double>((static_cast<size_t>(values[i - 1]) + 1) % choices);
        break;
      }
    }
  }
  return values;
}

/// The values as elements of T; those of 16 bits are rounded from f32.
template <class T>
std::vector<std::byte> pack_as(const std::vector<double>& values) {
  using Wide = std::conditional_t<sizeof(T) == 2, float, T>;
  std::vector<std::byte> bytes(values.size() * sizeof(T));
  for (size_t i = 0; i < values.size(); ++i) {
    const T value = static_cast<T>(static_cast<Wide>(values[i]));
    std::memcpy(bytes.data() + i * sizeof(T), &value, sizeof(T));
  }
  return bytes;
}

template <class T>
std::vector<double> unpack_as(const std::vector<std::byte>& bytes) {
  std::vector<double> values(bytes.size() / sizeof(T));
  for (size_t i = 0; i < values.size(); ++i) {
    T value;
    std::memcpy(&value, bytes.data() + i * sizeof(T), sizeof(T));
    values[i] = static_cast<double>(value);
  }
  return values;
}

/// Calls body.template operator()<T>() with the type that stores `dtype`.
template <class Body>
auto with_storage(fb::DType dtype, Body&& body) {
  switch (dtype) {
    case fb::DType::F64:
      return body.template operator()<double>();
    case fb::DType::F32:
      return body.template operator()<float>();
    case fb::DType::BF16:
      return body.template operator()<bf16>();
    case fb::DType::F16:
      return body.template operator()<f16>();
    case fb::DType::I32:
      return body.template operator()<int32_t>();
    default:
      throw std::logic_error("samples hold no such type");
  }
}

std::vector<std::byte> pack(fb::DType dtype, const std::vector<double>& values) {
  return with_storage(dtype, [&]<class T>() { return pack_as<T>(values); });
}

std::vector<double> unpack(fb::DType dtype, const std::vector<std::byte>& bytes) {
  return with_storage(dtype, [&]<class T>() { return unpack_as<T>(bytes); });
}

/// Adds the nodes that a spec names; the outputs of the last one are differentiated.
std::vector<ValueId> build_nodes(const Sample& sample, Graph& graph,
                                 const std::map<std::string, ValueId>& inputs) {
  ModelBuilder builder(graph, Mode::kTrain);
  for (const auto& [name, id] : inputs) builder.define(name, id);
  builder.add_model(model_of(sample));
  return graph.nodes().back().outputs;
}

/// Every memory in a buffer of its own.
Storage one_buffer_each(const std::map<std::string, TensorType>& memory) {
  Storage storage;
  uint64_t offset = 0;
  for (const auto& [name, type] : memory) {
    fb::BufferT buffer;
    buffer.name = name;
    buffer.kind = fb::BufferKind::Io;
    buffer.arena = fb::ArenaKind::State;
    buffer.offset = offset;
    buffer.size = static_cast<uint64_t>(type.bytes());
    offset += (buffer.size + 255) / 256 * 256;
    storage.slots.push_back({name, type, Role::kIo, static_cast<uint32_t>(storage.buffers.size()), 0});
    storage.buffers.push_back(buffer);
  }
  return storage;
}

}  // namespace

OpHarness::OpHarness(const Sample& sample, Precision precision, std::unique_ptr<runtime::Device> device,
                     runtime::MemoryOptions memory, const Edit& edit)
    : OpHarness(
          sample, precision, std::move(device),
          [&](Graph& graph, const std::map<std::string, ValueId>& inputs) {
            return build_nodes(sample, graph, inputs);
          },
          memory, edit) {}

OpHarness::OpHarness(const Sample& sample, Precision precision, std::unique_ptr<runtime::Device> device,
                     const Build& build, runtime::MemoryOptions memory, const Edit& edit)
    : sample_(sample), device_(std::move(device)) {
  const Graph forward = make_graph(sample, precision, build, false);
  const Graph backward = make_graph(sample, precision, build, true);
  for (const Graph* graph : {&forward, &backward}) {
    for (const Node& node : graph->nodes()) kernels_.insert(node.def->key);
    for (const Value& value : graph->values())
      if (value.role != Role::kActivation) memory_[value.name] = value.type;
  }
  for (const Value& value : forward.values())
    if (value.role != Role::kActivation && value.version == 0 && value.requires_grad)
      differentiable_.push_back(value.name);
  PlanWriter writer(one_buffer_each(memory_));
  writer.add_program(fb::ProgramKind::Evaluate, forward);
  writer.add_program(fb::ProgramKind::Accumulate, backward);
  for (const auto& [name, type] : memory_) tensor_[name] = writer.tensor_id(name);
  fb::PlanT plan = std::move(writer).finish();
  plan.model = std::make_unique<fb::ModelT>();
  plan.recipe = std::make_unique<fb::RecipeT>();
  plan.io = std::make_unique<fb::InterfaceT>();
  if (tensor_.contains(kTrainStateName)) plan.io->train_state = tensor_[kTrainStateName];
  if (edit) edit(plan);
  const std::vector<uint8_t> bytes = serialize_plan(plan);
  auto loaded = runtime::parse_plan(std::string(bytes.begin(), bytes.end()), sample.name);
  must(loaded.status());
  must(device_->load(loaded.value(), memory));
  if (tensor_.contains(kTrainStateName)) {
    TrainState state;
    state.seed = 7;
    must(device_->write(tensor_[kTrainStateName], 0, std::as_bytes(std::span(&state, 1))));
  }
}

Graph OpHarness::make_graph(const Sample& sample, Precision precision, const Build& build,
                            bool with_backward) {
  int64_t tokens = 1;  // all leading dimensions of the first input that has rows
  for (const SampleInput& input : sample.inputs)
    if (input.fill == Fill::kDistinctExperts || input.fill == Fill::kOneExpert)
      for (size_t i = 0; i + 1 < input.shape.size(); ++i) tokens *= input.shape[i];
  Graph graph(precision, tokens);
  std::map<std::string, ValueId> inputs;
  for (const SampleInput& input : sample.inputs) {
    // Router values are in the accumulation type; everything else is computed in the plan's type.
    const std::string routed = "inputs: [\"" + input.name + "\"], op_type: \"Router";
    const bool router_value = input.fill == Fill::kTies || sample.nodes.find(routed) != std::string::npos ||
                              input.name == "weights";
    const fb::DType real = router_value ? precision.accumulator() : precision.compute;
    const ValueId id =
        graph.persistent(input.name, {is_integer(input) ? fb::DType::I32 : real, input.shape}, Role::kIo);
    graph.value(id).requires_grad = !is_integer(input);
    inputs[input.name] = id;
  }
  const std::vector<ValueId> outputs = build(graph, inputs);
  std::vector<std::pair<ValueId, ValueId>> seeds;
  const auto copy = [&](const std::string& name, ValueId from) {
    const ValueId memory = graph.persistent(name, graph.value(from).type, Role::kIo);
    graph.add_node(find_op("scale"), make_attrs<fb::ScaleT>(), name, {from}, {graph.next_version(memory)},
                   Phase::kBackward);
  };
  for (const ValueId id : outputs) {
    if (id == kNoValue || !graph.value(id).requires_grad) continue;
    const Value output = graph.value(id);
    seeds.emplace_back(id, graph.persistent(kSeed + output.name, output.type, Role::kIo));
  }
  std::vector<ValueId> gradients;
  if (with_backward) gradients = add_backward(graph, seeds, false);
  for (const auto& [id, seed] : seeds) copy(kOutput + graph.value(id).name, id);
  if (with_backward)
    for (const auto& [name, id] : inputs)
      if (const ValueId gradient = gradients[static_cast<size_t>(id)]; gradient != kNoValue)
        copy(kGradient + name, gradient);
  fuse(graph);
  return sample.keeps_activations ? keep_activations(graph) : graph;
}

bool OpHarness::runs(std::string_view kernel) const { return kernels_.contains(kernel); }

Tensors OpHarness::random_values(uint64_t seed) const {
  std::mt19937_64 rng(seed);
  std::normal_distribution<double> normal;
  Tensors values;
  for (const SampleInput& input : sample_.inputs) values[input.name] = random_input(input, rng);
  for (const auto& [name, type] : memory_) {
    if (values.contains(name) || name == kTrainStateName || starts_with(name, kOutput) ||
        starts_with(name, kGradient) || starts_with(name, "grad."))
      continue;
    std::vector<double> numbers(static_cast<size_t>(type.elements()));
    for (double& number : numbers) number = normal(rng);
    values[name] = std::move(numbers);
  }
  return values;
}

Tensors OpHarness::rounded(const Tensors& values) const {
  Tensors result;
  for (const auto& [name, numbers] : values) {
    const fb::DType dtype = memory_.at(name).dtype;
    result[name] = unpack(dtype, pack(dtype, numbers));
  }
  return result;
}

void OpHarness::write(const Tensors& values) {
  for (const auto& [name, numbers] : values)
    must(device_->write(tensor_.at(name), 0, pack(memory_.at(name).dtype, numbers)));
}

Tensors OpHarness::read(const std::string& prefix) const {
  Tensors found;
  for (const auto& [name, id] : tensor_) {
    if (!starts_with(name, prefix)) continue;
    const TensorType& type = memory_.at(name);
    std::vector<std::byte> bytes(static_cast<size_t>(type.bytes()));
    must(device_->read(id, 0, bytes));
    found[name.substr(prefix.size())] = unpack(type.dtype, bytes);
  }
  return found;
}

Tensors OpHarness::forward(const Tensors& values) {
  write(values);
  must(device_->run(fb::ProgramKind::Evaluate));
  return read(kOutput);
}

Tensors OpHarness::backward(const Tensors& values) {
  write(values);
  must(device_->run(fb::ProgramKind::Accumulate));
  Tensors gradients = read(kGradient);
  gradients.merge(read("grad."));
  return gradients;
}

double OpHarness::objective(const Tensors& values) {
  double sum = 0;
  for (const auto& [name, output] : forward(values)) {
    const std::vector<double>& weights = values.at(kSeed + name);
    for (size_t i = 0; i < output.size(); ++i) sum += output[i] * weights[i];
  }
  return sum;
}

}  // namespace moec::test
