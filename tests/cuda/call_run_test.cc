// Which calls are computed together. That all modes then give the same bits show training_test and
// optimizer_test.
#include "kernels/cuda/call_run.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <deque>
#include <string_view>
#include <vector>

#include "kernels/train_state.h"
#include "runtime/cuda/call_sequence.h"
#include "tests/support/training.h"

namespace moec::test {
namespace {

using cuda::CallRun;
using cuda::KeyedCall;
using fb::DType;

/// Operands at addresses of their own.
class Memory {
 public:
  TensorView operator()(DType dtype, std::vector<int64_t> shape) {
    TensorView view;
    view.data = reinterpret_cast<void*>(end_);  // NOLINT(performance-no-int-to-ptr): never read
    view.dtype = dtype;
    view.rank = static_cast<int>(shape.size());
    for (size_t i = 0; i < shape.size(); ++i) view.shape[i] = shape[i];
    end_ += (static_cast<uintptr_t>(view.bytes()) + 255) / 256 * 256;
    return view;
  }

 private:
  uintptr_t end_ = 4096;
};

/// Apply, for bf16 groups of parameters of these sizes.
struct Apply {
  Memory memory;
  std::deque<KernelCall> calls;
  std::vector<KeyedCall> sequence;
  TensorView state = memory(DType::U8, {sizeof(TrainState)});

  explicit Apply(const std::vector<int64_t>& groups, DType grad_dtype = DType::F32) {
    KernelCall& norm = add("grad_norm", {{state, {}}, {state}, memory(DType::F64, {4096})});
    add("lr_schedule", {{state}, {state}, {}});
    for (const int64_t count : groups) {
      const TensorView param = memory(DType::BF16, {count}), grad = memory(grad_dtype, {count}),
                       moment1 = memory(DType::F32, {count}), moment2 = memory(DType::F32, {count}),
                       remainder = memory(DType::U16, {count});
      norm.inputs.push_back(grad);
      add("adamw",
          {{param, grad, moment1, moment2, remainder, state}, {param, moment1, moment2, remainder}, {}});
    }
    add("end_step", {{state}, {state, memory(DType::F64, {kMetricsRows, kMetricsColumns})}, {}});
  }

  KernelCall& add(std::string_view key, KernelCall call) {
    KernelCall& added = calls.emplace_back(std::move(call));
    sequence.push_back({key, &added});
    return added;
  }

  /// How many calls are computed together on a device of 132 multiprocessors.
  size_t together() const { return find_call_run(sequence, {.sm_count = 132}).calls; }
};

TEST_CASE("Apply is one launch where a device holds all parameters") {
  CHECK(Apply({819'072}).together() == 4);
  CHECK(Apply({542'208, 640}).together() == 5);
  CHECK(Apply({263 * 4096}).together() == 4);
  CHECK(Apply({263 * 4096 + 4}).together() == 0);
  CHECK(Apply({542'208, 642}).together() == 0);  // no whole vectors
  CHECK(Apply({4096, 4096, 4096}).together() == 0);
  CHECK(Apply({819'072}, DType::BF16).together() == 0);

  Apply others({819'072});
  others.calls[0].inputs[2] = others.memory(DType::F32, {819'072});  // the norm of something else
  CHECK(others.together() == 0);
  Apply squares({819'072});
  squares.calls[0].inputs[1] = squares.memory(DType::F64, {4});
  CHECK(squares.together() == 0);
  Apply incomplete({819'072});
  incomplete.sequence.pop_back();
  CHECK(incomplete.together() == 0);
}

TEST_CASE("the launch of Apply touches what its calls touch") {
  const Apply apply({819'072});
  const CallRun run = find_call_run(apply.sequence, {.sm_count = 132});
  REQUIRE(run.launches.size() == 1);
  const KernelCall& operands = run.launches[0].operands;
  for (const KernelCall& call : apply.calls)
    for (const TensorView& output : call.outputs)
      CHECK(
          std::ranges::any_of(operands.outputs, [&](const TensorView& y) { return y.data == output.data; }));
  CHECK(operands.inputs.size() == 2 + 1 + 1 + 6 + 1);
}

TEST_CASE("the mean of a loss is a launch that what follows need not wait for") {
  Memory memory;
  const TensorView state = memory(DType::U8, {sizeof(TrainState)}), dloss = memory(DType::F32, {}),
                   logits = memory(DType::BF16, {1024, 74}), targets = memory(DType::I32, {1024}),
                   loss = memory(DType::F32, {}), terms = memory(DType::F64, {2048});
  const KernelCall seed{.inputs = {state}, .outputs = {dloss}, .workspace = {}};
  const KernelCall gradient{
      .inputs = {logits, targets, dloss}, .outputs = {loss, logits}, .workspace = terms};
  const std::vector<KeyedCall> sequence = {{"seed_gradient", &seed}, {"cross_entropy_gradient", &gradient}};
  for (const size_t calls : {2, 1}) {
    const CallRun run = find_call_run(std::span(sequence).last(calls), {});
    CHECK(run.calls == calls);
    REQUIRE(run.launches.size() == 2);
    const auto writes = [&](size_t launch, const TensorView& view) {
      return std::ranges::any_of(run.launches[launch].operands.outputs,
                                 [&](const TensorView& output) { return output.data == view.data; });
    };
    CHECK(writes(0, logits));
    CHECK(writes(0, terms));
    CHECK(!writes(0, loss));
    CHECK(writes(1, loss));
    CHECK(!writes(1, logits));
  }
}

TEST_CASE(
    "the gradient of probabilities that only the auxiliary loss gives is made with that of the logits") {
  Memory memory;
  const TensorView dloss = memory(DType::F32, {}), probs = memory(DType::F32, {64, 8}),
                   offsets = memory(DType::I32, {9}), dprobs = memory(DType::F32, {64, 8}),
                   weights = memory(DType::F32, {64, 2}), experts = memory(DType::I32, {64, 2}),
                   other = memory(DType::F32, {64, 8});
  const auto together = [&](const TensorView& gradient, const TensorView& dlogits) {
    const KernelCall aux{.inputs = {dloss, probs, offsets}, .outputs = {dprobs}, .workspace = {}};
    const KernelCall router{
        .inputs = {weights, gradient, probs, experts, weights}, .outputs = {dlogits}, .workspace = {}};
    return find_call_run(std::vector<KeyedCall>{{"aux_loss_bwd", &aux}, {"router_bwd", &router}}, {}).calls;
  };
  CHECK(together(dprobs, dprobs) == 2);
  CHECK(together(dprobs, other) == 0);  // dprobs stay, and may be read later
  CHECK(together(other, other) == 0);
}

TEST_CASE("sums of gradients of norms go together but where one needs another, or is of other types") {
  Memory memory;
  const auto sum_of = [&](DType grad_dtype) {
    return KernelCall{.inputs = {memory(DType::F32, {131, 768}), {}},
                      .outputs = {memory(grad_dtype, {768})},
                      .workspace = {}};
  };
  const KernelCall one = sum_of(DType::BF16), two = sum_of(DType::BF16), other = sum_of(DType::F32);
  KernelCall again = sum_of(DType::BF16);
  again.inputs[1] = again.outputs[0] = one.outputs[0];
  const auto together = [](const std::vector<const KernelCall*>& calls) {
    std::vector<KeyedCall> sequence;
    for (const KernelCall* call : calls) sequence.push_back({"norm_bwd_sum", call});
    return find_call_run(sequence, {}).calls;
  };
  CHECK(together({&one, &two}) == 2);
  CHECK(together({&one, &two, &other, &other}) == 2);
  CHECK(together({&one, &two, &again}) == 2);
  CHECK(together({&two, &again}) == 2);
  CHECK(together({&one}) == 0);
  CHECK(together({&one, &other}) == 0);
  std::deque<KernelCall> many;
  std::vector<const KernelCall*> calls;
  for (int i = 0; i < 65; ++i) calls.push_back(&many.emplace_back(sum_of(DType::F32)));
  CHECK(together(calls) == 64);
}

/// The calls of a plan's program, at addresses of imagined arenas.
std::vector<KernelCall> calls_of(const fb::PlanT& plan, const fb::ProgramT& program) {
  constexpr uintptr_t kArenaBytes = uintptr_t{1} << 40;
  const auto operand = [&](int id) {
    TensorView view;
    if (id < 0) return view;
    const fb::TensorT& tensor = *plan.tensors[static_cast<size_t>(id)];
    const fb::BufferT& buffer = *plan.buffers[tensor.buffer];
    const uintptr_t arena = kArenaBytes * (1 + static_cast<uintptr_t>(buffer.arena));
    view.data =
        reinterpret_cast<void*>(arena + buffer.offset + tensor.offset);  // NOLINT(performance-no-int-to-ptr)
    view.dtype = tensor.dtype;
    view.rank = static_cast<int>(tensor.shape.size());
    std::ranges::copy(tensor.shape, view.shape.begin());
    return view;
  };
  std::vector<KernelCall> calls;
  for (const auto& instruction : program.instructions) {
    KernelCall& call = calls.emplace_back();
    for (const int id : instruction->inputs) call.inputs.push_back(operand(id));
    for (const int id : instruction->outputs) call.outputs.push_back(operand(id));
    call.workspace = operand(instruction->workspace);
    call.op = &instruction->op;
  }
  return calls;
}

TEST_CASE("one launch sums the gradients of all norms of a model with many rows") {
  const fb::PlanT plan = compile(example_model("moe-100m"), {});
  const auto is_accumulate = [](const auto& program) { return program->kind == fb::ProgramKind::Accumulate; };
  const fb::ProgramT& program = **std::ranges::find_if(plan.programs, is_accumulate);
  const std::vector<KernelCall> calls = calls_of(plan, program);
  std::vector<runtime::PlacedCall> placed;
  for (size_t i = 0; i < calls.size(); ++i)
    placed.push_back({{0, i}, program.instructions[i].get(), {}, &calls[i]});
  const auto sums_norms = [](const auto& instruction) { return instruction->kernel == "norm_bwd_sum"; };
  REQUIRE(std::ranges::count_if(program.instructions, sums_norms) == 17);
  const auto launches = [&](bool together) {
    const runtime::CallSequence sequence(placed, together, {.sm_count = 132});
    return std::ranges::count_if(sequence.schedule(), [&](const runtime::ScheduledLaunch& launch) {
      return sums_norms(program.instructions[sequence.place(launch).second]);
    });
  };
  CHECK(launches(true) == 1);
  CHECK(launches(false) == 17);
}

TEST_CASE("what runs beside a launch of several calls is as far from its results as beside each of them") {
  Memory memory;
  const auto bytes = [&] { return memory(DType::U8, {64}); };
  const TensorView counter = bytes(), gradient = bytes();
  const KernelCall start{.inputs = {bytes()}, .outputs = {bytes()}, .workspace = {}},
      count{.inputs = {start.outputs[0]}, .outputs = {counter}, .workspace = {}},
      gradients{.inputs = {start.outputs[0]}, .outputs = {gradient}, .workspace = {}},
      update{.inputs = {counter, gradient}, .outputs = {bytes()}, .workspace = {}};
  for (const size_t calls : {1, 2}) {
    const auto launches = runtime::schedule_calls(
        std::vector<runtime::SequenceCall>{{&start, runtime::kSmallCalls},
                                           {&count, runtime::kSmallCalls},
                                           {&gradients, runtime::kSmallCalls, nullptr, calls},
                                           {&update, runtime::kSmallCalls}});
    CHECK(launches.size() == 4);
    CHECK(std::ranges::any_of(launches, &runtime::ScheduledLaunch::branch) == (calls == 2));
  }
}

}  // namespace
}  // namespace moec::test
