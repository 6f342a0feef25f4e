#include "tests/support/model_oracle.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "compiler/compile.h"
#include "compiler/frontend.h"
#include "runtime/safetensors.h"
#include "runtime/session.h"
#include "tests/support/must.h"
#include "tests/support/relative_error.h"

namespace moec::test {
namespace {

using runtime::HostTensor;
using runtime::Safetensors;
using runtime::Session;

/// Real numbers of any width as f64.
template <class Tensor>
std::vector<double> reals(const Tensor& tensor) {
  const auto widen = [&]<class T>(T) {
    std::vector<double> values(tensor.data.size() / sizeof(T));
    for (size_t i = 0; i < values.size(); ++i) {
      T value;
      std::memcpy(&value, tensor.data.data() + i * sizeof(T), sizeof(T));
      values[i] = static_cast<double>(value);
    }
    return values;
  };
  return tensor.info.dtype == fb::DType::F64 ? widen(double{}) : widen(float{});
}

/// A model of the oracle in one precision, set to the golden parameters.
class OracleRun {
 public:
  OracleRun(const std::string& name, const MakeDevice& make_device, fb::DType dtype)
      : golden_(
            must(Safetensors::open(std::string(MOEC_SOURCE_DIR "/tests/golden/") + name + ".safetensors"))) {
    fb::ModelT model = read_model(std::string(MOEC_SOURCE_DIR "/tests/oracle/specs/") + name + ".json");
    model.recipe->dtype = dtype;
    model.recipe->grad_dtype = dtype;
    const std::vector<uint8_t> plan = serialize_plan(compile(model, {.host_batches = true}));
    auto loaded = must(runtime::parse_plan(std::string(plan.begin(), plan.end()), name));
    session_.emplace(must(Session::create(loaded, make_device(), {.poison_activations = true})));
    must(session_->initialise(1, model.recipe->lr));
    for (size_t i = 0; i < parameters().size(); ++i) {
      HostTensor value{session_->parameter_info(i), {}};
      const std::vector<double> start = read("param." + value.info.name);
      value.data.resize(start.size() * static_cast<size_t>(dtype_size(value.info.dtype)));
      if (dtype == fb::DType::F64) std::copy(start.begin(), start.end(), value.as<double>().begin());
      if (dtype == fb::DType::F32) std::copy(start.begin(), start.end(), value.as<float>().begin());
      must(session_->write_parameter(value));
    }
    tokens_ = integers("tokens");
    targets_ = integers("targets");
  }

  Session& session() { return *session_; }
  const std::vector<std::unique_ptr<fb::ParameterT>>& parameters() const {
    return session_->plan().plan.parameters;
  }
  std::vector<double> read(const std::string& name) const { return reals(golden_.tensors().at(name)); }
  size_t batch_tokens() const { return static_cast<size_t>(session_->batch_size() * session_->seq_len()); }
  std::span<const int32_t> tokens(size_t micro_batch) const {
    return {&tokens_[micro_batch * batch_tokens()], batch_tokens()};
  }

  void accumulate(size_t micro_batch) {
    must(session_->write_batch(tokens(micro_batch),
                               {&targets_[micro_batch * batch_tokens()], batch_tokens()}));
    must(session_->device().run(fb::ProgramKind::Accumulate));
  }

  /// One optimizer step on the golden batches of `step`.
  void train_step(size_t step) {
    const auto count = static_cast<size_t>(session_->grad_accum());
    for (size_t i = 0; i < count; ++i) accumulate(step * count + i);
    must(session_->device().run(fb::ProgramKind::Apply));
  }

  double metric(size_t step, MetricsColumn column) {
    const HostTensor rows = must(session_->read_tensor(session_->plan().plan.io->metrics));
    return rows.as<double>()[step * kMetricsColumns + column];
  }

 private:
  std::vector<int32_t> integers(const std::string& name) const {
    const auto& entry = golden_.tensors().at(name);
    std::vector<int32_t> values(entry.data.size() / sizeof(int32_t));
    std::memcpy(values.data(), entry.data.data(), entry.data.size());
    return values;
  }

  Safetensors golden_;
  std::optional<Session> session_;
  std::vector<int32_t> tokens_, targets_;
};

constexpr const char* kModels[] = {"mixtral-tiny", "char-gpt-tiny", "qwen2-tiny", "moe-ntk-tiny"};

}  // namespace

void check_logits(const MakeDevice& make_device, fb::DType dtype, double bound) {
  for (const std::string name : kModels) {
    CAPTURE(name);
    OracleRun run(name, make_device, dtype);
    const std::vector<double> golden = run.read("logits");
    const auto seq = static_cast<size_t>(run.session().seq_len());
    const auto vocab = static_cast<size_t>(run.session().vocab_size());
    std::vector<double> logits;
    for (size_t sequence = 0; sequence * seq * vocab < golden.size(); ++sequence)
      for (size_t length = 1; length <= seq; ++length) {
        const size_t batch = sequence * seq / run.batch_tokens(), start = sequence * seq % run.batch_tokens();
        const auto row = must(run.session().prefill(run.tokens(batch).subspan(start, length)));
        logits.insert(logits.end(), row.begin(), row.end());
      }
    CHECK(relative_error(logits, golden) < bound);
  }
}

void check_gradients(const MakeDevice& make_device, fb::DType dtype, double bound) {
  for (const std::string name : kModels) {
    CAPTURE(name);
    OracleRun run(name, make_device, dtype);
    for (size_t i = 0; i < static_cast<size_t>(run.session().grad_accum()); ++i) run.accumulate(i);
    const TrainState state = must(run.session().read_train_state());
    CHECK(relative_error({state.loss}, run.read("loss")) < bound);
    CHECK(std::abs(state.aux_loss - run.read("aux_loss")[0]) <= bound * std::abs(run.read("aux_loss")[0]));
    for (const auto& parameter : run.parameters()) {
      CAPTURE(parameter->name);
      const std::vector<double> gradient = reals(must(run.session().read_tensor(parameter->grad)));
      CHECK(relative_error(gradient, run.read("grad." + parameter->name)) < bound);
    }
  }
}

void check_adamw_steps(const MakeDevice& make_device, fb::DType dtype, double bound) {
  for (const std::string name : kModels) {
    CAPTURE(name);
    OracleRun run(name, make_device, dtype);
    const std::vector<double> losses = run.read("losses"), rates = run.read("lrs"),
                              norms = run.read("grad_norms");
    for (size_t step = 0; step < losses.size(); ++step) {
      run.train_step(step);
      CAPTURE(step);
      CHECK(run.metric(step, kMetricLoss) == doctest::Approx(losses[step]).epsilon(bound));
      CHECK(run.metric(step, kMetricLr) == doctest::Approx(rates[step]).epsilon(1e-9));
      CHECK(run.metric(step, kMetricGradNorm) == doctest::Approx(norms[step]).epsilon(100 * bound));
    }
  }
}

}  // namespace moec::test
