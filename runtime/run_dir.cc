#include "runtime/run_dir.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <optional>
#include <regex>
#include <system_error>
#include <utility>
#include <vector>

#include "runtime/guard.h"
#include "runtime/safetensors.h"

namespace moec::runtime {
namespace {

using nlohmann::json;

constexpr int kConfigVersion = 2;  // 1 had no checksum
constexpr const char* kChecksum = "checksum";
constexpr const char* kModelPrefix = "model-";
constexpr const char* kOptimizerPrefix = "optimizer-";
constexpr const char* kTensorsSuffix = ".safetensors";

constexpr std::string_view kPlanFile = "run.plan", kConfigFile = "config.json", kLogFile = "log.jsonl",
                           kLockFile = "lock";

std::string plan_path(const std::string& dir) { return fmt::format("{}/{}", dir, kPlanFile); }
std::string lock_path(const std::string& dir) { return fmt::format("{}/{}", dir, kLockFile); }
std::string config_path(const std::string& dir) { return fmt::format("{}/{}", dir, kConfigFile); }
std::string stamped(const char* prefix, int64_t step) {
  return fmt::format("{}{:08}{}", prefix, step, kTensorsSuffix);
}

/// A tensor of the optimizer file, and the plan's tensor it is kept in.
struct Slot {
  int tensor;
  TensorInfo info;
};

std::vector<Slot> optimizer_slots(const Session& session) {
  std::vector<Slot> slots;
  const auto add = [&](int tensor, std::string name) {
    if (tensor < 0) return;
    TensorInfo info = session.tensor_info(tensor);
    info.name = std::move(name);
    slots.push_back({tensor, std::move(info)});
  };
  for (const auto& parameter : session.plan().plan.parameters) {
    add(parameter->moment1, parameter->name + ".moment1");
    add(parameter->moment2, parameter->name + ".moment2");
  }
  add(session.plan().plan.io->train_state, "train_state");
  return slots;
}

/// Of tensors, in any order: a damaged byte shows, and a tensor in the place of another.
class Checksum {
 public:
  void add(const HostTensor& tensor, std::string_view name) {
    sum_ += XXH64(tensor.data.data(), tensor.data.size(), XXH64(name.data(), name.size(), 0));
  }
  std::string text() const { return fmt::format("{:016x}", sum_); }
  /// A file whose checksum was not kept is taken as it is.
  Status check(const std::string& path, const std::string& kept) const {
    if (kept.empty() || kept == text()) return {};
    return input_error(path + ": damaged: it is not what was saved");
  }

 private:
  uint64_t sum_ = 0;
};

/// Returns the checksum.
Result<std::string> save_tensors(const std::string& path, const std::vector<TensorInfo>& infos,
                                 const TensorSource& source,
                                 const std::map<std::string, std::string>& metadata = {}) {
  Checksum sum;
  const auto summed = [&](size_t i) -> Result<HostTensor> {
    MOEC_ASSIGN_OR_RETURN(HostTensor value, source(i));
    sum.add(value, infos[i].name);
    return value;
  };
  MOEC_RETURN_IF_ERROR(write_safetensors(path, infos, summed, metadata));
  return sum.text();
}

Result<std::string> save_parameters(const std::string& path, Session& session) {
  std::vector<TensorInfo> infos;
  for (size_t i = 0; i < session.plan().plan.parameters.size(); ++i)
    infos.push_back(session.parameter_info(i));
  return save_tensors(path, infos, [&](size_t i) { return session.read_parameter(i); }, {{"format", "pt"}});
}

/// The train state without what evaluations, samples and the window in use have left in it, which no step
/// goes on from: a checkpoint depends on the steps alone.
HostTensor of_steps_alone(HostTensor tensor) {
  TrainState state;
  std::memcpy(&state, tensor.data.data(), sizeof(state));
  state.window_tokens = state.last_token = state.eval_batch = 0;
  state.eval_loss = 0;
  std::memcpy(tensor.data.data(), &state, sizeof(state));
  return tensor;
}

Result<std::string> save_optimizer(const std::string& path, Session& session) {
  const std::vector<Slot> slots = optimizer_slots(session);
  std::vector<TensorInfo> infos;
  for (const Slot& slot : slots) infos.push_back(slot.info);
  const auto source = [&](size_t i) -> Result<HostTensor> {
    MOEC_ASSIGN_OR_RETURN(HostTensor value, session.read_tensor(slots[i].tensor));
    const bool is_state = slots[i].tensor == session.plan().plan.io->train_state;
    return is_state ? of_steps_alone(std::move(value)) : std::move(value);
  };
  return save_tensors(path, infos, source);
}

/// Whether runs give this name to a file that nothing needs once another checkpoint is current: to one of a
/// checkpoint, or to one that they have not finished.
bool is_stale_name(const std::string& name) {
  static const std::regex form(
      R"((model|optimizer)-\d+\.safetensors(\.\d+-\d+)?|(run\.plan|config\.json)\.\d+-\d+)");
  return std::regex_match(name, form);
}

/// Removes checkpoint files, finished or not, other than the current ones.
void remove_stale(const std::string& dir, const RunConfig& current) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(dir, error)) {
    const std::string name = entry.path().filename();
    if (is_stale_name(name) && name != current.model_file && name != current.optimizer_file)
      std::filesystem::remove(entry.path(), error);  // one that cannot be removed is only wasted space
  }
}

/// After a checkpoint that could not be written: its files take the room that the disk lacks.
void remove_unfinished(const std::string& dir) {
  if (!has_checkpoint(dir)) return remove_stale(dir, {});
  const Result<RunConfig> previous = read_run_config(dir);
  if (previous.ok()) remove_stale(dir, *previous);
}

std::string text_of(const json& config, int indent) {
  return config.dump(indent, ' ', false, json::error_handler_t::replace);
}

/// Of all that a config says but its checksum.
std::string checksum_of(json config) {
  config.erase(kChecksum);
  const std::string text = text_of(config, -1);
  return fmt::format("{:016x}", XXH64(text.data(), text.size(), 0));
}

Status check_config(const json& config) {
  const int version = config.at("version").get<int>();
  if (version < 1 || version > kConfigVersion)
    return input_error(fmt::format("version {}; this build reads up to version {}", version, kConfigVersion));
  if (version == 1 && !config.contains(kChecksum)) return {};
  if (config.value(kChecksum, json()) == checksum_of(config)) return {};
  return input_error("damaged: it is not what was saved");
}

/// A file name without a directory, so that a config cannot point outside its own.
Result<std::string> plain_name(const json& config, const char* key) {
  auto name = config.at(key).get<std::string>();
  if (name.empty() || name.find('/') != name.npos)
    return input_error(fmt::format("'{}' is not the name of a file in the directory", key));
  return name;
}

Result<RunConfig> parse_config(const std::string& text) {
  const json config = json::parse(text);
  MOEC_RETURN_IF_ERROR(check_config(config));
  RunConfig result;
  result.step = config.at("step").get<int64_t>();
  MOEC_ASSIGN_OR_RETURN(result.model_file, plain_name(config, "model"));
  MOEC_ASSIGN_OR_RETURN(result.optimizer_file, plain_name(config, "optimizer"));
  MOEC_ASSIGN_OR_RETURN(result.tokenizer, parse_tokenizer(config.at("tokenizer")));
  result.model_checksum = config.value("model_checksum", "");
  result.optimizer_checksum = config.value("optimizer_checksum", "");
  result.options = config.at("options");
  if (!result.options.is_object()) return input_error("options is not an object");
  return result;
}

}  // namespace

bool has_checkpoint(const std::string& dir) { return file_exists(config_path(dir)); }

bool has_unnamed_checkpoint(const std::string& dir) {
  std::error_code error;
  const std::filesystem::directory_iterator files(dir, error);
  return !has_checkpoint(dir) && std::any_of(begin(files), end(files), [](const auto& entry) {
    const std::string name = entry.path().filename();
    return is_stale_name(name) && name.starts_with(kOptimizerPrefix) && name.ends_with(kTensorsSuffix);
  });
}

std::string log_path(const std::string& dir) { return fmt::format("{}/{}", dir, kLogFile); }

bool is_run_file(std::string_view name) {
  return name == kPlanFile || name == kConfigFile || name == kLogFile || name == kLockFile ||
         name.starts_with(kModelPrefix) || name.starts_with(kOptimizerPrefix);
}

Result<RunLock> lock_run(const std::string& dir) {
  MOEC_ASSIGN_OR_RETURN(TentativeDirectory directory, TentativeDirectory::make(dir));
  MOEC_ASSIGN_OR_RETURN(std::optional<FileLock> lock, FileLock::try_lock(lock_path(dir)));
  if (lock) return RunLock{std::move(directory), *std::move(lock)};
  return input_error(
      fmt::format("{}: another process trains in this directory: let it end, or choose another", dir));
}

Status save_run(const std::string& dir, Session& session, const Tokenizer& tokenizer, const json& options) {
  return guarded("saving " + dir, [&]() -> Status {
    const RunConfig current{.step = session.step(),
                            .model_file = stamped(kModelPrefix, session.step()),
                            .optimizer_file = stamped(kOptimizerPrefix, session.step()),
                            .tokenizer = nullptr,
                            .options = options};
    json config = {{"version", kConfigVersion},        {"step", current.step},
                   {"model", current.model_file},      {"optimizer", current.optimizer_file},
                   {"tokenizer", tokenizer.to_json()}, {"options", options}};
    const auto write = [&]() -> Status {
      MOEC_RETURN_IF_ERROR(make_directories(dir));
      MOEC_RETURN_IF_ERROR(write_file(plan_path(dir), session.plan().bytes));
      MOEC_ASSIGN_OR_RETURN(config["model_checksum"],
                            save_parameters(dir + "/" + current.model_file, session));
      MOEC_ASSIGN_OR_RETURN(config["optimizer_checksum"],
                            save_optimizer(dir + "/" + current.optimizer_file, session));
      config[kChecksum] = checksum_of(config);
      return write_file(config_path(dir), text_of(config, 2) + "\n");
    };
    Status written = write();
    written.ok() ? remove_stale(dir, current) : remove_unfinished(dir);
    return written;
  });
}

Result<RunConfig> read_run_config(const std::string& dir) {
  MOEC_ASSIGN_OR_RETURN(const std::string text, read_file(config_path(dir)));
  return guarded("reading " + config_path(dir), [&]() -> Result<RunConfig> {
    try {
      auto config = parse_config(text);
      if (!config.ok()) return input_error(config_path(dir) + ": " + config.error().message);
      return config;
    } catch (const json::exception& e) {
      return input_error(config_path(dir) + ": " + e.what());
    }
  });
}

Result<std::shared_ptr<const LoadedPlan>> load_run_plan(const std::string& dir) {
  return load_plan(plan_path(dir));
}

Status check_checkpoint_files(const std::string& dir, const RunConfig& config) {
  for (const std::string& file : {config.model_file, config.optimizer_file})
    MOEC_RETURN_IF_ERROR(Safetensors::open(fmt::format("{}/{}", dir, file)).status());
  return {};
}

Status load_parameters(const std::string& dir, const RunConfig& config, Session& session) {
  const std::string path = dir + "/" + config.model_file;
  MOEC_ASSIGN_OR_RETURN(const Safetensors file, Safetensors::open(path));
  Checksum sum;
  for (size_t i = 0; i < session.plan().plan.parameters.size(); ++i) {
    MOEC_ASSIGN_OR_RETURN(const HostTensor value, file.read(session.parameter_info(i)));
    sum.add(value, session.parameter_info(i).name);
    MOEC_RETURN_IF_ERROR(session.write_parameter(value));
  }
  return sum.check(path, config.model_checksum);
}

Result<RunConfig> load_current_parameters(const std::string& dir, Session& session) {
  MOEC_ASSIGN_OR_RETURN(RunConfig config, read_run_config(dir));
  for (;;) {
    const Status loaded = load_parameters(dir, config, session);
    if (loaded.ok()) return config;
    // A training removes the files of a checkpoint when the next one is current.
    MOEC_ASSIGN_OR_RETURN(RunConfig next, read_run_config(dir));
    if (next.model_file == config.model_file) return loaded.error();
    config = std::move(next);
  }
}

Status load_checkpoint(const std::string& dir, const RunConfig& config, Session& session) {
  MOEC_RETURN_IF_ERROR(load_parameters(dir, config, session));
  const std::string path = dir + "/" + config.optimizer_file;
  MOEC_ASSIGN_OR_RETURN(const Safetensors file, Safetensors::open(path));
  Checksum sum;
  for (const Slot& slot : optimizer_slots(session)) {
    MOEC_ASSIGN_OR_RETURN(const HostTensor value, file.read(slot.info));
    sum.add(value, slot.info.name);
    MOEC_RETURN_IF_ERROR(session.write_tensor(slot.tensor, value));
  }
  MOEC_RETURN_IF_ERROR(sum.check(path, config.optimizer_checksum));
  MOEC_ASSIGN_OR_RETURN(const TrainState state, session.read_train_state());
  if (state.step != config.step)
    return input_error(fmt::format("{}: {} is of step {}, config.json of step {}", dir, config.optimizer_file,
                                   state.step, config.step));
  return session.restore_train_state(state);
}

}  // namespace moec::runtime
