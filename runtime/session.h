// A plan at work on a device: training steps, evaluation, prefill, and access to the state by name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/train_state.h"
#include "runtime/device.h"
#include "runtime/host_tensor.h"
#include "runtime/plan.h"
#include "runtime/status.h"

namespace moec::runtime {

/// One row of the metrics ring. `step` counts from 0.
struct StepMetrics {
  int64_t step = 0;
  double loss = 0;
  double aux_loss = 0;
  double grad_norm = 0;
  double lr = 0;
  int64_t skipped_steps = 0;  // up to and including this one
  double loss_scale = 0;      // of this step; 0 where it is not dynamic
};

/// Metrics of successive steps on their way to the host.
class LateMetrics {
 public:
  LateMetrics(int64_t first_step, int64_t steps, std::unique_ptr<LateRead> rows)
      : first_step_(first_step), steps_(steps), rows_(std::move(rows)) {}

  /// The first of the steps, counting from 0.
  int64_t first_step() const { return first_step_; }
  int64_t steps() const { return steps_; }
  /// Whether the steps are done; does not wait.
  Result<bool> ready() { return rows_->ready(); }
  /// Of the i-th of the steps, once ready() has said that they are done.
  Result<StepMetrics> metrics(int64_t i = 0) const;
  /// Seconds on the device's clock from the step whose metrics were asked for before, or from start_timer if
  /// that was later, to the end of the last of these; likewise.
  Result<double> seconds() { return rows_->seconds(); }

 private:
  int64_t first_step_;
  int64_t steps_;
  std::unique_ptr<LateRead> rows_;
};

/// B sequences of S tokens per micro-batch, A micro-batches per step.
///
/// Data longer than the plan's window W is cut into chunks (WindowChunks), each of which stays in the window
/// for n / (A*B) steps, n being its number of sequences; the chunk of a step is a function of the step alone,
/// so that a run that is continued sees the same data. While one chunk is used the next one is on its way to
/// the device, and no step waits for the host. Where A*B does not divide n, a pass over a chunk
/// leaves out some sequences that the next pass may meet.
class Session {
 public:
  /// Loads the plan on the device.
  static Result<Session> create(std::shared_ptr<const LoadedPlan> plan, std::unique_ptr<Device> device,
                                MemoryOptions options = {});

  Session(Session&&) = default;
  Session& operator=(Session&&) = delete;

  const LoadedPlan& plan() const { return *plan_; }
  Device& device() { return *device_; }
  int64_t batch_size() const { return plan_->plan.recipe->batch_size; }
  int64_t seq_len() const { return plan_->plan.recipe->seq_len; }
  int64_t grad_accum() const { return plan_->plan.recipe->grad_accum; }
  int64_t vocab_size() const { return plan_->plan.vocab_size; }
  /// Optimizer steps done.
  int64_t step() const { return step_; }

  /// Starts a run: sets the seed and the peak learning rate and runs the Init program.
  Status initialise(uint64_t seed, double lr);
  Status set_learning_rate(double lr);

  /// The tokens to train on and, if any, to evaluate on; the session keeps both. Each set must hold more than
  /// S tokens, all below the vocabulary size.
  Status set_data(std::vector<int32_t> train, std::vector<int32_t> validation);

  /// Sets the batch by hand, [B,S] each, for plans compiled without a window.
  Status write_batch(std::span<const int32_t> tokens, std::span<const int32_t> targets);

  /// One optimizer step: A times Accumulate, then Apply. With a tracer, instruction by instruction. A plan
  /// without a window takes the batch of write_batch.
  Status train_step(const Tracer& tracer = nullptr);

  /// Mean cross-entropy over the first `max_batches` batches of the validation data in file order; 0 takes
  /// one pass, which is also the most. Leaves parameters and training position as they are.
  Result<double> evaluate(int64_t max_batches);
  /// The same, asking between batches whether to stop: nothing where that came before the end.
  Result<std::optional<double>> evaluate(int64_t max_batches, const std::function<bool()>& stop);
  /// Batches of one pass over the validation data, which there is; at least one.
  int64_t validation_batches() const;

  /// Logits [V] of the token after `tokens`, 1 to prefill_length() of them.
  Result<std::vector<float>> prefill(std::span<const int32_t> tokens);
  /// Longest prompt; 0 when the plan has no Prefill program.
  int64_t prefill_length() const;

  /// Metrics of a step that is among the last kMetricsRows; waits for it.
  Result<StepMetrics> read_metrics(int64_t step);
  /// Metrics of the last `steps` steps, at most kMostLateSteps, without waiting for them; their rows lie
  /// behind each other in the ring (s % kMetricsRows grows from step to step). To be read before the ring
  /// comes to them again, and to be dropped before the session.
  Result<LateMetrics> read_metrics_later(int64_t steps = 1);
  static constexpr int64_t kMostLateSteps = Device::kMostLateBytes / (kMetricsColumns * sizeof(double));
  /// Lets the time of the next step whose metrics are read later begin when the device comes to here.
  Status start_timer();

  Result<TrainState> read_train_state();
  /// Continues from a saved state; the window and its size stay those of this session's data.
  Status restore_train_state(const TrainState& state);

  /// Name, shape and type of parameter `index` as the host sees it: f64 in f64 plans, else f32.
  TensorInfo parameter_info(size_t index) const;
  /// The parameter as the optimizer knows it: of a 16-bit parameter, the exact f32 master.
  Result<HostTensor> read_parameter(size_t index);
  Result<HostTensor> read_parameter(std::string_view name);
  /// Sets the parameter named by `value.info`, which must equal its parameter_info. A 16-bit parameter
  /// without a master takes the nearest value.
  Status write_parameter(const HostTensor& value);

  /// Any tensor of the plan, as it is stored.
  TensorInfo tensor_info(int tensor) const;
  Result<HostTensor> read_tensor(int tensor);
  Status write_tensor(int tensor, const HostTensor& value);

  /// XXH64 of all parameters, remainders, masters and moments in the plan's order.
  Result<uint64_t> state_hash();

 private:
  Session(std::shared_ptr<const LoadedPlan> plan, std::unique_ptr<Device> device)
      : plan_(std::move(plan)), device_(std::move(device)) {}

  Status check_interface() const;
  /// Writes f32 values to a bf16 parameter and its remainder, or to an f16 parameter and its master.
  Status write_split(const fb::ParameterT& parameter, const HostTensor& value);
  Status write_copied(const fb::ParameterT& parameter, const HostTensor& value);
  Status check_tokens(std::span<const int32_t> tokens) const;
  /// Writes one field of the train state.
  template <class T>
  Status write_state(T TrainState::*field, T value);
  int64_t window_size() const;
  Status fill_window(std::span<const int32_t> tokens);
  Status fill_window_for_step();

  std::shared_ptr<const LoadedPlan> plan_;
  std::vector<int32_t> train_;
  std::vector<int32_t> validation_;
  std::unique_ptr<Device> device_;  // reads train_ until it is destroyed
  int64_t step_ = 0;
  int64_t chunk_ = -1;   // of train_ in the window, -1 for none
  int64_t staged_ = -1;  // chunk of train_ that was staged last, -1 for none
};

}  // namespace moec::runtime
