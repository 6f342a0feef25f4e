// Training and validation tokens from files.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "runtime/status.h"
#include "runtime/tokenizer.h"

namespace moec::runtime {

enum class TextEncoding { kBytes, kCharacters };

struct DatasetOptions {
  std::vector<std::string> files;
  /// When empty, the last part of `files` is held out instead.
  std::vector<std::string> validation_files;
  /// Share of the tokens held out for validation; 0 for none.
  double validation_fraction = 0.1;
  /// How text becomes tokens. Unset: bytes when the model's vocabulary has room for all 256, otherwise
  /// characters.
  std::optional<TextEncoding> encoding;
  /// Use this tokenizer (of the run that is continued) for text instead of making one.
  TokenizerPtr tokenizer;
  /// The model's: every token must be below vocab_size; each split must hold a sequence of seq_len and its
  /// targets.
  int64_t vocab_size = 0;
  int64_t seq_len = 0;
};

struct Dataset {
  std::vector<int32_t> train;
  std::vector<int32_t> validation;  // empty when none was asked for
  TokenizerPtr tokenizer;
};

/// Reads files and concatenates them in the order given, either all text or all token shards. A shard is a
/// file of llm.c: 256 i32 (magic, version, token count, zeros), then the tokens: u16 for magic 20240520
/// version 1, u32 for magic 20240801 version 7; files named *.bin must be shards. Characters of all files
/// together make the vocabulary of a character tokenizer.
Result<Dataset> load_dataset(const DatasetOptions& options);

}  // namespace moec::runtime
