// A run directory: everything needed to continue a training run or to use its model.
//
//   run.plan                            the plan
//   model-00000100.safetensors          parameters by name (f32; f64 in f64 plans), as of step 100
//   optimizer-00000100.safetensors      "<parameter>.moment1", "<parameter>.moment2", "train_state" (u8)
//   config.json                         step, names of the two files above, checksums, tokenizer, options
//   log.jsonl                           one line per logged step, evaluation or sample
//   lock                                empty; there while a process trains
//
// config.json is what makes a checkpoint current. It is replaced, atomically, only when the files it names
// are on disk, and files it no longer names are removed after that; so a crash at any moment leaves a
// directory that loads.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "runtime/file_io.h"
#include "runtime/plan.h"
#include "runtime/session.h"
#include "runtime/status.h"
#include "runtime/tokenizer.h"

namespace moec::runtime {

struct RunConfig {
  int64_t step = 0;
  std::string model_file;  // names inside the directory
  std::string optimizer_file;
  std::string model_checksum;  // of what the files hold; empty where none was kept
  std::string optimizer_checksum;
  TokenizerPtr tokenizer;
  nlohmann::json options;  // what the caller of save_run wanted to remember
};

/// Whether the directory holds a checkpoint.
bool has_checkpoint(const std::string& dir);
/// Whether it holds the files of one, whole, without the config.json that would make them current.
bool has_unnamed_checkpoint(const std::string& dir);

/// Keeps other processes from training in a run directory as long as it lives. At its end directories that it
/// has made go away where they hold nothing else.
struct RunLock {
  TentativeDirectory directory;
  FileLock lock;  // its file goes before the directory
};

/// Makes the directory where there is none, and locks it. One that another process holds is an input error.
Result<RunLock> lock_run(const std::string& dir);

/// Writes a checkpoint of the session's state and makes it the current one.
Status save_run(const std::string& dir, Session& session, const Tokenizer& tokenizer,
                const nlohmann::json& options);

Result<RunConfig> read_run_config(const std::string& dir);
Result<std::shared_ptr<const LoadedPlan>> load_run_plan(const std::string& dir);
std::string log_path(const std::string& dir);
/// Whether a file of this name in a run's directory is the run's own.
bool is_run_file(std::string_view name);

/// Whether the checkpoint's files are there and whole, as their headers tell; reads no tensor.
Status check_checkpoint_files(const std::string& dir, const RunConfig& config);

/// Sets all parameters from the checkpoint. Any plan with parameters of the same names, shapes and types will
/// do.
Status load_parameters(const std::string& dir, const RunConfig& config, Session& session);

/// Sets all parameters from the checkpoint that is current, also while a training replaces it, and returns
/// its config. Likewise.
Result<RunConfig> load_current_parameters(const std::string& dir, Session& session);

/// Sets parameters, moments and train state, so that training goes on with the same bits as if it had not
/// stopped.
Status load_checkpoint(const std::string& dir, const RunConfig& config, Session& session);

}  // namespace moec::runtime
