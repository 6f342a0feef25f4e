#include "runtime/session.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <utility>

#include "kernels/float16.h"
#include "kernels/master_weight.h"
#include "runtime/guard.h"
#include "runtime/window.h"

namespace moec::runtime {
namespace {

template <class T>
std::span<const std::byte> bytes_of(const T& value) {
  return std::as_bytes(std::span(&value, 1));
}

using MetricsRow = std::array<double, kMetricsColumns>;

/// Bytes from the start of the metrics ring.
uint64_t row_offset(int64_t step) { return static_cast<uint64_t>(step % kMetricsRows) * sizeof(MetricsRow); }

Result<StepMetrics> metrics_of(int64_t step, const MetricsRow& row) {
  if (row[kMetricStep] != static_cast<double>(step))
    return failure(fmt::format("the metrics of step {} are not on the device", step));
  return StepMetrics{.step = step,
                     .loss = row[kMetricLoss],
                     .aux_loss = row[kMetricAuxLoss],
                     .grad_norm = row[kMetricGradNorm],
                     .lr = row[kMetricLr],
                     .skipped_steps = static_cast<int64_t>(row[kMetricSkipped]),
                     .loss_scale = row[kMetricLossScale]};
}

/// Values of a floating-point tensor as f32.
Result<std::vector<float>> to_f32(const HostTensor& tensor) {
  std::vector<float> values;
  switch (tensor.info.dtype) {
    case fb::DType::F32:
      values.assign(tensor.as<float>().begin(), tensor.as<float>().end());
      break;
    case fb::DType::F64:
      for (const double x : tensor.as<double>()) values.push_back(static_cast<float>(x));
      break;
    case fb::DType::BF16:
      values.assign(tensor.as<bf16>().begin(), tensor.as<bf16>().end());
      break;
    case fb::DType::F16:
      values.assign(tensor.as<f16>().begin(), tensor.as<f16>().end());
      break;
    default:
      return failure(fmt::format("tensor '{}' is {}, not a float type the host reads", tensor.info.name,
                                 fb::EnumNameDType(tensor.info.dtype)));
  }
  return values;
}

}  // namespace

Result<Session> Session::create(std::shared_ptr<const LoadedPlan> plan, std::unique_ptr<Device> device,
                                MemoryOptions options) {
  MOEC_RETURN_IF_ERROR(device->load(plan, options));
  Session session(std::move(plan), std::move(device));
  MOEC_RETURN_IF_ERROR(session.check_interface());
  return session;
}

Status Session::check_interface() const {
  const fb::PlanT& plan = plan_->plan;
  if (plan.io == nullptr || plan.io->train_state < 0)
    return input_error(fmt::format("{}: the plan names no train state", plan_->source));
  for (const auto& parameter : plan.parameters) {
    const auto is = [&](int tensor, fb::DType dtype) {
      return tensor < 0 || plan_->tensor(tensor)->dtype == dtype;
    };
    if (!is(parameter->remainder, fb::DType::U16) || !is(parameter->master, fb::DType::F32) ||
        (parameter->remainder >= 0 && !is(parameter->param, fb::DType::BF16)) ||
        (parameter->master >= 0 && !is(parameter->param, fb::DType::F16)))
      return input_error(
          fmt::format("{}: parameter '{}' is neither a bf16 with a u16 remainder nor an f16 "
                      "with an f32 master",
                      plan_->source, parameter->name));
  }
  return {};
}

template <class T>
Status Session::write_state(T TrainState::*field, T value) {
  const TrainState layout;
  const auto offset =
      reinterpret_cast<const std::byte*>(&(layout.*field)) - reinterpret_cast<const std::byte*>(&layout);
  return device_->write(plan_->plan.io->train_state, static_cast<uint64_t>(offset), bytes_of(value));
}

Status Session::initialise(uint64_t seed, double lr) {
  Result<TrainState> before = read_train_state();
  MOEC_RETURN_IF_ERROR(before.status());
  TrainState state;
  state.seed = seed;
  state.base_lr = lr;
  state.window_tokens = before->window_tokens;
  if (const auto& scale = plan_->plan.recipe->loss_scale) state.loss_scale = scale->initial;
  MOEC_RETURN_IF_ERROR(device_->write(plan_->plan.io->train_state, 0, std::as_bytes(std::span(&state, 1))));
  step_ = 0;
  return device_->run(fb::ProgramKind::Init);
}

Status Session::set_learning_rate(double lr) { return write_state(&TrainState::base_lr, lr); }

int64_t Session::window_size() const {
  const fb::TensorT* window = plan_->tensor(plan_->plan.io->window);
  return window == nullptr ? 0 : static_cast<int64_t>(window->shape[0]);
}

Status Session::check_tokens(std::span<const int32_t> tokens) const {
  const auto bad =
      std::find_if(tokens.begin(), tokens.end(), [&](int32_t t) { return t < 0 || t >= vocab_size(); });
  if (bad == tokens.end()) return {};
  return input_error(fmt::format("token {} at position {} is outside the vocabulary of {}", *bad,
                                 bad - tokens.begin(), vocab_size()));
}

Status Session::set_data(std::vector<int32_t> train, std::vector<int32_t> validation) {
  if (window_size() <= seq_len())
    return input_error(fmt::format("{}: its token window of {} is no longer than a sequence of {}",
                                   plan_->source, window_size(), seq_len()));
  for (const auto* tokens : {&train, &validation}) {
    MOEC_RETURN_IF_ERROR(check_tokens(*tokens));
    if (!tokens->empty() && static_cast<int64_t>(tokens->size()) <= seq_len())
      return input_error(fmt::format("{} tokens of data, a sequence of {} and its targets need {}",
                                     tokens->size(), seq_len(), seq_len() + 1));
  }
  MOEC_RETURN_IF_ERROR(device_->wait());  // a chunk of the old data may be on its way
  staged_ = -1;
  train_ = std::move(train);
  validation_ = std::move(validation);
  chunk_ = -1;
  return {};
}

Status Session::fill_window(std::span<const int32_t> tokens) {
  MOEC_RETURN_IF_ERROR(device_->write(plan_->plan.io->window, 0, std::as_bytes(tokens)));
  return write_state(&TrainState::window_tokens, static_cast<int64_t>(tokens.size()));
}

Status Session::fill_window_for_step() {
  if (train_.empty()) return input_error("there is no training data");
  const WindowChunks chunks(train_, window_size(), seq_len());
  const int64_t chunk = step_ / chunks.steps_per_chunk(batch_size() * grad_accum()) % chunks.count();
  if (chunk == chunk_) return {};
  if (chunk != staged_) MOEC_RETURN_IF_ERROR(device_->stage(std::as_bytes(chunks.chunk(chunk))));
  MOEC_RETURN_IF_ERROR(device_->write_staged(plan_->plan.io->window));
  const auto tokens = static_cast<int64_t>(chunks.chunk(chunk).size());  // the same for all chunks
  if (chunk_ < 0) MOEC_RETURN_IF_ERROR(write_state(&TrainState::window_tokens, tokens));
  chunk_ = chunk;
  staged_ = (chunk + 1) % chunks.count();
  return staged_ == chunk ? Status() : device_->stage(std::as_bytes(chunks.chunk(staged_)));
}

Status Session::write_batch(std::span<const int32_t> tokens, std::span<const int32_t> targets) {
  const auto wanted = static_cast<size_t>(batch_size() * seq_len());
  if (tokens.size() != wanted || targets.size() != wanted)
    return input_error(fmt::format("{} tokens and {} targets; a batch has {} of each", tokens.size(),
                                   targets.size(), wanted));
  MOEC_RETURN_IF_ERROR(check_tokens(tokens));
  MOEC_RETURN_IF_ERROR(device_->write(plan_->plan.io->tokens, 0, std::as_bytes(tokens)));
  return device_->write(plan_->plan.io->targets, 0, std::as_bytes(targets));
}

Status Session::train_step(const Tracer& tracer) {
  if (window_size() > 0) MOEC_RETURN_IF_ERROR(fill_window_for_step());
  std::vector<fb::ProgramKind> sequence(static_cast<size_t>(grad_accum()), fb::ProgramKind::Accumulate);
  sequence.push_back(fb::ProgramKind::Apply);
  if (!tracer) {
    MOEC_RETURN_IF_ERROR(device_->run(sequence));
  } else {
    for (const fb::ProgramKind kind : sequence) MOEC_RETURN_IF_ERROR(device_->run(kind, tracer));
  }
  ++step_;
  return {};
}

int64_t Session::validation_batches() const {
  const WindowChunks chunks(validation_, window_size(), seq_len());
  return chunks.count() * std::max<int64_t>(1, chunks.sequences() / batch_size());
}

Result<double> Session::evaluate(int64_t max_batches) {
  MOEC_ASSIGN_OR_RETURN(const std::optional<double> loss, evaluate(max_batches, [] { return false; }));
  return *loss;
}

Result<std::optional<double>> Session::evaluate(int64_t max_batches, const std::function<bool()>& stop) {
  // Enough to hide a wait of the device for the host, few enough to stop soon.
  constexpr int64_t kBatchesInFlight = 16;
  if (validation_.empty()) return input_error("there is no validation data");
  const WindowChunks chunks(validation_, window_size(), seq_len());
  const int64_t per_chunk = validation_batches() / chunks.count();
  const int64_t batches =
      max_batches > 0 ? std::min(max_batches, validation_batches()) : validation_batches();
  chunk_ = -1;  // the next step brings the training data back
  double sum = 0;
  for (int64_t done = 0; done < batches;) {
    MOEC_RETURN_IF_ERROR(fill_window(chunks.chunk(done / per_chunk % chunks.count())));
    MOEC_RETURN_IF_ERROR(write_state(&TrainState::eval_batch, int64_t{0}));
    MOEC_RETURN_IF_ERROR(write_state(&TrainState::eval_loss, 0.0));
    const int64_t end = std::min(batches, done + per_chunk);
    for (; done < end; ++done) {
      if (done % kBatchesInFlight == 0) MOEC_RETURN_IF_ERROR(device_->wait());
      if (stop()) return std::optional<double>();
      MOEC_RETURN_IF_ERROR(device_->run(fb::ProgramKind::Evaluate));
    }
    MOEC_ASSIGN_OR_RETURN(const TrainState state, read_train_state());
    sum += state.eval_loss;
  }
  return std::optional(sum / static_cast<double>(batches));
}

int64_t Session::prefill_length() const {
  const fb::TensorT* prompt = plan_->tensor(plan_->plan.io->prompt);
  return prompt == nullptr ? 0 : static_cast<int64_t>(prompt->shape[1]);
}

Result<std::vector<float>> Session::prefill(std::span<const int32_t> tokens) {
  return guarded("prefill", [&]() -> Result<std::vector<float>> {
    const int64_t length = prefill_length();
    if (tokens.empty() || static_cast<int64_t>(tokens.size()) > length)
      return input_error(fmt::format("a prompt of {} tokens; the plan takes 1 to {}", tokens.size(), length));
    MOEC_RETURN_IF_ERROR(check_tokens(tokens));
    std::vector<int32_t> padded(static_cast<size_t>(length));
    std::copy(tokens.begin(), tokens.end(), padded.begin());
    MOEC_RETURN_IF_ERROR(device_->write(plan_->plan.io->prompt, 0, std::as_bytes(std::span(padded))));
    MOEC_RETURN_IF_ERROR(write_state(&TrainState::last_token, static_cast<int64_t>(tokens.size()) - 1));
    MOEC_RETURN_IF_ERROR(device_->run(fb::ProgramKind::Prefill));
    MOEC_ASSIGN_OR_RETURN(const HostTensor logits, read_tensor(plan_->plan.io->logits));
    return to_f32(logits);
  });
}

Result<StepMetrics> Session::read_metrics(int64_t step) {
  if (step < 0 || step >= step_)
    return failure(fmt::format("step {} has not been taken ({} steps done)", step, step_));
  MetricsRow row{};
  MOEC_RETURN_IF_ERROR(
      device_->read(plan_->plan.io->metrics, row_offset(step), std::as_writable_bytes(std::span(row))));
  return metrics_of(step, row);
}

Result<LateMetrics> Session::read_metrics_later(int64_t steps) {
  const int64_t first = step_ - steps;
  if (steps < 1 || steps > kMostLateSteps || first < 0)
    return failure(fmt::format("metrics of {} steps cannot be read after {} steps", steps, step_));
  if (first / kMetricsRows != (step_ - 1) / kMetricsRows)
    return failure(fmt::format("metrics of {} steps before step {} span the end of the ring", steps, step_));
  MOEC_ASSIGN_OR_RETURN(auto rows, device_->read_later(plan_->plan.io->metrics, row_offset(first),
                                                       static_cast<size_t>(steps) * sizeof(MetricsRow)));
  return LateMetrics(first, steps, std::move(rows));
}

Status Session::start_timer() {
  return device_->read_later(plan_->plan.io->train_state, 0, sizeof(uint64_t)).status();
}

Result<StepMetrics> LateMetrics::metrics(int64_t i) const {
  MetricsRow row{};
  std::memcpy(row.data(), rows_->bytes().data() + static_cast<size_t>(i) * sizeof(row), sizeof(row));
  return metrics_of(first_step_ + i, row);
}

Result<TrainState> Session::read_train_state() {
  TrainState state;
  MOEC_RETURN_IF_ERROR(
      device_->read(plan_->plan.io->train_state, 0, std::as_writable_bytes(std::span(&state, 1))));
  return state;
}

Status Session::restore_train_state(const TrainState& state) {
  if (state.step < 0 || state.micro_batch < 0)
    return input_error(
        fmt::format("a train state at step {}, micro-batch {}", state.step, state.micro_batch));
  MOEC_RETURN_IF_ERROR(device_->write(plan_->plan.io->train_state, 0, bytes_of(state)));
  step_ = state.step;
  chunk_ = -1;
  return {};
}

TensorInfo Session::tensor_info(int tensor) const {
  const fb::TensorT& t = *plan_->tensor(tensor);
  return {.name = t.name, .dtype = t.dtype, .shape = t.shape};
}

Result<HostTensor> Session::read_tensor(int tensor) {
  if (tensor < 0) return input_error(fmt::format("{}: the plan has no such tensor", plan_->source));
  return guarded("reading tensor '" + plan_->tensor(tensor)->name + "'", [&]() -> Result<HostTensor> {
    HostTensor value{.info = tensor_info(tensor), .data = {}};
    auto size = static_cast<uint64_t>(dtype_size(value.info.dtype));
    for (const uint64_t extent : value.info.shape) size *= extent;
    value.data.resize(size);
    MOEC_RETURN_IF_ERROR(device_->read(tensor, 0, value.data));
    return value;
  });
}

Status Session::write_tensor(int tensor, const HostTensor& value) {
  const TensorInfo info = tensor_info(tensor);
  if (value.info.dtype != info.dtype || value.info.shape != info.shape)
    return input_error(fmt::format("{}: tensor '{}' has another type or shape than '{}'", plan_->source,
                                   info.name, value.info.name));
  return device_->write(tensor, 0, value.data);
}

TensorInfo Session::parameter_info(size_t index) const {
  const fb::ParameterT& parameter = *plan_->plan.parameters[index];
  TensorInfo info = tensor_info(parameter.param);
  info.name = parameter.name;
  if (info.dtype != fb::DType::F64) info.dtype = fb::DType::F32;
  return info;
}

Result<HostTensor> Session::read_parameter(size_t index) {
  const fb::ParameterT& parameter = *plan_->plan.parameters[index];
  return guarded("reading parameter '" + parameter.name + "'", [&]() -> Result<HostTensor> {
    MOEC_ASSIGN_OR_RETURN(HostTensor stored,
                          read_tensor(parameter.master < 0 ? parameter.param : parameter.master));
    HostTensor value{.info = parameter_info(index), .data = {}};
    if (stored.info.dtype == value.info.dtype) {
      value.data = std::move(stored.data);
    } else if (parameter.remainder < 0) {
      MOEC_ASSIGN_OR_RETURN(const std::vector<float> wide, to_f32(stored));
      value.data.assign(std::as_bytes(std::span(wide)).begin(), std::as_bytes(std::span(wide)).end());
    } else {
      MOEC_ASSIGN_OR_RETURN(const HostTensor remainder, read_tensor(parameter.remainder));
      value.data.resize(stored.data.size() * 2);
      std::transform(stored.as<uint16_t>().begin(), stored.as<uint16_t>().end(),
                     remainder.as<uint16_t>().begin(), value.as<uint32_t>().begin(), join_master);
    }
    return value;
  });
}

Result<HostTensor> Session::read_parameter(std::string_view name) {
  const int index = plan_->parameter_index(name);
  if (index < 0) return input_error(fmt::format("{}: the plan has no parameter '{}'", plan_->source, name));
  return read_parameter(static_cast<size_t>(index));
}

Status Session::write_parameter(const HostTensor& value) {
  return guarded("writing parameter '" + value.info.name + "'", [&]() -> Status {
    const int index = plan_->parameter_index(value.info.name);
    if (index < 0)
      return input_error(fmt::format("{}: the plan has no parameter '{}'", plan_->source, value.info.name));
    const TensorInfo info = parameter_info(static_cast<size_t>(index));
    if (value.info != info)
      return input_error(
          fmt::format("{}: parameter '{}' has another type or shape", plan_->source, info.name));
    const fb::ParameterT& parameter = *plan_->plan.parameters[static_cast<size_t>(index)];
    const fb::DType stored = tensor_info(parameter.param).dtype;
    if (stored == info.dtype) return device_->write(parameter.param, 0, value.data);
    if (stored == fb::DType::F16) return write_copied(parameter, value);
    if (stored == fb::DType::BF16) return write_split(parameter, value);
    return failure(fmt::format("parameter '{}' is {}, which the host does not write", info.name,
                               fb::EnumNameDType(stored)));
  });
}

Status Session::write_split(const fb::ParameterT& parameter, const HostTensor& value) {
  std::vector<uint16_t> weights, remainders;
  for (const uint32_t bits : value.as<uint32_t>()) {
    const SplitMaster split = split_master(bits);
    weights.push_back(split.weight);
    remainders.push_back(split.remainder);
  }
  MOEC_RETURN_IF_ERROR(device_->write(parameter.param, 0, std::as_bytes(std::span(weights))));
  if (parameter.remainder < 0) return {};
  return device_->write(parameter.remainder, 0, std::as_bytes(std::span(remainders)));
}

Status Session::write_copied(const fb::ParameterT& parameter, const HostTensor& value) {
  const std::vector<f16> weights(value.as<float>().begin(), value.as<float>().end());
  MOEC_RETURN_IF_ERROR(device_->write(parameter.param, 0, std::as_bytes(std::span(weights))));
  if (parameter.master < 0) return {};
  return device_->write(parameter.master, 0, value.data);
}

Result<uint64_t> Session::state_hash() {
  const std::unique_ptr<XXH64_state_t, decltype(&XXH64_freeState)> hash(XXH64_createState(), XXH64_freeState);
  if (hash == nullptr) return failure("no host memory for a hash");
  XXH64_reset(hash.get(), 0);
  for (const auto& parameter : plan_->plan.parameters) {
    for (const int tensor : {parameter->param, parameter->remainder, parameter->master, parameter->moment1,
                             parameter->moment2}) {
      if (tensor < 0) continue;
      MOEC_ASSIGN_OR_RETURN(const HostTensor value, read_tensor(tensor));
      XXH64_update(hash.get(), value.data.data(), value.data.size());
    }
  }
  return XXH64_digest(hash.get());
}

}  // namespace moec::runtime
