#include "sample_plans.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kernels/catalog.h"
#include "kernels/train_state.h"
#include "planner/planner.h"

namespace moec::planner {
namespace {

constexpr uint64_t kRows = 24;
constexpr uint64_t kWidths[] = {16, 64};
constexpr int kNone = -1;  // an absent optional operand

class Builder {
 public:
  Builder() : plan_(std::make_unique<fb::PlanT>()) {
    plan_->model = std::make_unique<fb::ModelT>();
    plan_->model->name = "sample";
    plan_->recipe = std::make_unique<fb::RecipeT>();
    plan_->io = std::make_unique<fb::InterfaceT>();
    for (fb::ArenaKind kind : fb::EnumValuesArenaKind()) {
      plan_->arenas.push_back(std::make_unique<fb::ArenaT>());
      plan_->arenas.back()->kind = kind;
    }
  }

  fb::PlanT& plan() { return *plan_; }
  std::unique_ptr<fb::PlanT> take() { return std::move(plan_); }
  const fb::TensorT& tensor(int id) const { return *plan_->tensors[id]; }

  /// A buffer at the end of a persistent arena.
  uint32_t persistent_buffer(const std::string& name, fb::BufferKind kind, fb::ArenaKind arena,
                             uint64_t size) {
    uint64_t& end = plan_->arenas[static_cast<size_t>(arena)]->size;
    const uint64_t offset = (end + kAlignment - 1) / kAlignment * kAlignment;
    end = offset + size;
    return add_buffer(name, kind, arena, offset, {.size = size}, -1);
  }

  int add_tensor(const std::string& name, fb::DType dtype, std::vector<uint64_t> shape, uint32_t buffer,
                 uint64_t offset = 0, uint32_t version = 0) {
    auto tensor = std::make_unique<fb::TensorT>();
    tensor->name = name;
    tensor->dtype = dtype;
    tensor->shape = std::move(shape);
    tensor->buffer = buffer;
    tensor->offset = offset;
    tensor->version = version;
    plan_->tensors.push_back(std::move(tensor));
    return static_cast<int>(plan_->tensors.size()) - 1;
  }

  /// The tensor after one more write.
  int next_version(int id) {
    const fb::TensorT before = tensor(id);
    return add_tensor(before.name, before.dtype, before.shape, before.buffer, before.offset,
                      before.version + 1);
  }

  void begin_program(fb::ProgramKind kind) {
    plan_->programs.push_back(std::make_unique<fb::ProgramT>());
    plan_->programs.back()->kind = kind;
    problem_ = {};
    value_of_.clear();
  }

  /// A tensor whose buffer end_program decides.
  int transient(const std::string& name, std::vector<uint64_t> shape, fb::DType dtype = fb::DType::F32) {
    const int id = add_tensor(name, dtype, std::move(shape), 0);
    value_of_[id] = static_cast<int>(problem_.sizes.size());
    problem_.sizes.push_back(static_cast<uint64_t>(view(id).bytes()));
    return id;
  }

  void live_out(int id) { problem_.live_out.push_back(value_of_.at(id)); }

  template <class Attrs>
  void call(const std::string& kernel, std::vector<int> inputs, std::vector<int> outputs) {
    const KernelInfo& info = *find_kernel(kernel);
    auto instruction = std::make_unique<fb::InstructionT>();
    instruction->kernel = kernel;
    instruction->op.Set(Attrs());
    instruction->label = fmt::format("block.{}", kernel);
    KernelCall shapes;
    Step step;
    for (int id : inputs) {
      shapes.inputs.push_back(view(id));
      if (value_of_.count(id)) step.reads.push_back(value_of_[id]);
    }
    for (int id : outputs) {
      shapes.outputs.push_back(view(id));
      if (value_of_.count(id)) step.writes.push_back(value_of_[id]);
    }
    for (const InPlace& pair : info.in_place) {
      const int output = outputs[pair.output], input = inputs[pair.input];
      if (value_of_.count(output) && value_of_.count(input))
        step.shares.push_back({value_of_[output], value_of_[input], pair.required});
    }
    step.workspace = info.workspace(shapes);
    instruction->inputs = std::move(inputs);
    instruction->outputs = std::move(outputs);
    plan_->programs.back()->instructions.push_back(std::move(instruction));
    problem_.steps.push_back(std::move(step));
  }

  /// Places the transient tensors of the program.
  void end_program() {
    const Placement placement = plan_memory(problem_);
    const int program = static_cast<int>(plan_->programs.size()) - 1;
    const uint32_t base = static_cast<uint32_t>(plan_->buffers.size());
    for (size_t b = 0; b < placement.buffers.size(); ++b)
      add_buffer(fmt::format("t{}", b), fb::BufferKind::Temp, fb::ArenaKind::Activations,
                 placement.offsets[b], placement.buffers[b], program);
    for (const auto& [id, value] : value_of_)
      plan_->tensors[id]->buffer = base + static_cast<uint32_t>(placement.buffer_of_value[value]);
    for (size_t s = 0; s < problem_.steps.size(); ++s)
      if (const int b = placement.buffer_of_workspace[s]; b >= 0)
        plan_->programs.back()->instructions[s]->workspace = add_tensor(
            "workspace", fb::DType::U8, {problem_.steps[s].workspace}, base + static_cast<uint32_t>(b));
    uint64_t& arena = plan_->arenas[static_cast<size_t>(fb::ArenaKind::Activations)]->size;
    arena = std::max(arena, placement.peak);
    plan_->activations_lower_bound = std::max(plan_->activations_lower_bound, placement.lower_bound);
  }

 private:
  uint32_t add_buffer(const std::string& name, fb::BufferKind kind, fb::ArenaKind arena, uint64_t offset,
                      const Lifetime& lifetime, int program) {
    auto buffer = std::make_unique<fb::BufferT>();
    buffer->name = name;
    buffer->kind = kind;
    buffer->arena = arena;
    buffer->offset = offset;
    buffer->size = lifetime.size;
    buffer->program = program;
    buffer->first = lifetime.first;
    buffer->last = lifetime.last;
    plan_->buffers.push_back(std::move(buffer));
    return static_cast<uint32_t>(plan_->buffers.size()) - 1;
  }

  TensorView view(int id) const {
    TensorView result;
    if (id == kNone) return result;
    result.dtype = tensor(id).dtype;
    result.rank = static_cast<int>(tensor(id).shape.size());
    for (size_t i = 0; i < tensor(id).shape.size(); ++i)
      result.shape[i] = static_cast<int64_t>(tensor(id).shape[i]);
    return result;
  }

  std::unique_ptr<fb::PlanT> plan_;
  Problem problem_;
  std::map<int, int> value_of_;  // tensor id -> value of the problem, for transient tensors
};

/// The persistent tensors at version 0: a range over all parameters, and each by itself.
struct Model {
  std::vector<int> norm, norm_grad;      // per width: [width]
  std::vector<std::vector<int>> linear;  // from width, to width: [to, from]
  int params = -1, grads = -1, moment1 = -1, moment2 = -1;
  int state = -1, metrics = -1, x = -1;
};

Model add_model(Builder& b) {
  using enum fb::ArenaKind;
  constexpr uint64_t kWide = kWidths[0] + kWidths[1], kElements = kWide + kWide * kWide;
  const auto whole = [&](const char* name, fb::BufferKind kind, fb::ArenaKind arena) {
    const uint32_t buffer = b.persistent_buffer(name, kind, arena, 4 * kElements);
    return b.add_tensor(name, fb::DType::F32, {kElements}, buffer);
  };
  Model m;
  m.params = whole("params", fb::BufferKind::Param, Params);
  m.grads = whole("grads", fb::BufferKind::Grad, Grads);
  m.moment1 = whole("moment1", fb::BufferKind::OptimizerState, OptimizerState);
  m.moment2 = whole("moment2", fb::BufferKind::OptimizerState, OptimizerState);
  uint64_t offset = 0;
  const auto part = [&](const std::string& name, const std::vector<uint64_t>& shape) {
    auto parameter = std::make_unique<fb::ParameterT>();
    parameter->name = fmt::format("{}.{}", name, b.plan().parameters.size());
    const auto view = [&](int range) {
      return b.add_tensor(name, fb::DType::F32, shape, b.tensor(range).buffer, offset);
    };
    parameter->param = view(m.params);
    parameter->grad = view(m.grads);
    parameter->moment1 = view(m.moment1);
    parameter->moment2 = view(m.moment2);
    uint64_t bytes = 4;
    for (uint64_t dim : shape) bytes *= dim;
    offset += bytes;
    const std::pair ids(parameter->param, parameter->grad);
    b.plan().parameters.push_back(std::move(parameter));
    return ids;
  };
  for (uint64_t from : kWidths) {
    const auto [weight, grad] = part("norm", {from});
    m.norm.push_back(weight);
    m.norm_grad.push_back(grad);
    m.linear.emplace_back();
    for (uint64_t to : kWidths) m.linear.back().push_back(part("linear", {to, from}).first);
  }
  const auto state = [&](const char* name, fb::DType dtype, std::vector<uint64_t> shape, uint64_t bytes) {
    return b.add_tensor(name, dtype, std::move(shape),
                        b.persistent_buffer(name, fb::BufferKind::Io, State, bytes));
  };
  m.state = state("state", fb::DType::U8, {sizeof(TrainState)}, sizeof(TrainState));
  m.metrics = state("metrics", fb::DType::F64, {kMetricsRows, kMetricsColumns},
                    kMetricsRows * kMetricsColumns * sizeof(double));
  m.x = state("x", fb::DType::F32, {kRows, kWidths[0]}, 4 * kRows * kWidths[0]);
  b.plan().io->train_state = m.state;
  b.plan().io->metrics = m.metrics;
  return m;
}

void add_init(Builder& b, const Model& m) {
  b.begin_program(fb::ProgramKind::Init);
  b.call<fb::InitNormalT>("init_normal", {m.state}, {b.next_version(m.params)});
  for (const int id : {m.grads, m.x}) b.call<fb::FillT>("fill", {}, {b.next_version(id)});
  b.end_program();
}

/// Draws the instructions of the accumulate program.
class Accumulate {
 public:
  Accumulate(Builder& b, Model& m, uint32_t seed) : b_(b), m_(m), random_(seed), pool_(2) {
    pool_[0] = {m.x};
  }

  void run(int instructions) {
    b_.begin_program(fb::ProgramKind::Accumulate);
    for (int i = 0; i < instructions; ++i) add();
    const int logits = fresh(0);
    b_.call<fb::ScaleT>("scale", {pick(0)}, {logits});
    b_.live_out(logits);
    b_.plan().io->logits = logits;
    keep(0, [&](int y) { b_.call<fb::SiluT>("silu", {pick(0)}, {y}); });
    b_.end_program();
  }

 private:
  struct Norm {
    int x, rstd;
    size_t width;
  };

  size_t draw(size_t n) { return random_() % n; }
  int fresh(size_t width) { return b_.transient("v", {kRows, kWidths[width]}); }

  /// A tensor [rows, width], mostly a young one.
  int pick(size_t width) {
    const std::vector<int>& pool = pool_[width];
    return pool[pool.size() - 1 - draw(draw(3) ? std::min<size_t>(pool.size(), 3) : pool.size())];
  }

  void add() {
    const size_t width = pool_[1].empty() ? 0 : draw(2);
    switch (draw(7)) {
      case 0:
        return keep(width, [&](int y) { b_.call<fb::SiluT>("silu", {pick(width)}, {y}); });
      case 1:
        return keep(width, [&](int y) { b_.call<fb::AddT>("add", {pick(width), pick(width)}, {y}); });
      case 2:
        return keep(width, [&](int y) { b_.call<fb::SiluT>("silu_bwd", {pick(width), pick(width)}, {y}); });
      case 3:
        return keep(width, [&](int y) { b_.call<fb::DropoutT>("dropout", {pick(width), m_.state}, {y}); });
      case 4:
        return add_linear(width);
      case 5:
        return add_norm(width);
      default:
        return norms_.empty() ? add_norm(width) : add_norm_gradient();
    }
  }

  template <class Emit>
  void keep(size_t width, const Emit& emit) {
    const int y = fresh(width);
    emit(y);
    pool_[width].push_back(y);
  }

  void add_linear(size_t from) {
    const size_t to = draw(2);
    keep(to, [&](int y) { b_.call<fb::LinearT>("linear", {pick(from), m_.linear[from][to], kNone}, {y}); });
  }

  void add_norm(size_t width) {
    const int x = pick(width), rstd = b_.transient("rstd", {kRows});
    keep(width, [&](int y) { b_.call<fb::RmsNormT>("rmsnorm", {x, m_.norm[width]}, {y, rstd}); });
    norms_.push_back({x, rstd, width});
  }

  void add_norm_gradient() {
    const Norm norm = norms_[draw(norms_.size())];
    int& grad = m_.norm_grad[norm.width];
    const int before = std::exchange(grad, b_.next_version(grad));
    keep(norm.width, [&](int dx) {
      b_.call<fb::RmsNormT>("rmsnorm_bwd",
                            {pick(norm.width), norm.x, m_.norm[norm.width], norm.rstd, before, kNone},
                            {dx, grad});
    });
  }

  Builder& b_;
  Model& m_;
  std::mt19937 random_;
  std::vector<std::vector<int>> pool_;  // per width
  std::vector<Norm> norms_;
};

void add_apply(Builder& b, const Model& m) {
  b.begin_program(fb::ProgramKind::Apply);
  const int state1 = b.next_version(m.state), state2 = b.next_version(state1),
            state3 = b.next_version(state2);
  b.call<fb::LrScheduleT>("lr_schedule", {m.state}, {state1});
  b.call<fb::GradNormT>("grad_norm", {state1, kNone, m.grads}, {state2});
  b.call<fb::AdamWT>("adamw", {m.params, m.grads, m.moment1, m.moment2, kNone, state2},
                     {b.next_version(m.params), b.next_version(m.moment1), b.next_version(m.moment2), kNone});
  b.call<fb::EndStepT>("end_step", {state2, m.metrics}, {state3, b.next_version(m.metrics)});
  b.end_program();
}

}  // namespace

std::unique_ptr<fb::PlanT> sample_plan(uint32_t seed, int instructions) {
  Builder b;
  Model model = add_model(b);
  add_init(b, model);
  Accumulate(b, model, seed).run(instructions);
  add_apply(b, model);
  return b.take();
}

}  // namespace moec::planner
