// Text to token ids and back.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/status.h"

namespace moec::runtime {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  /// Number of ids; valid ids are [0, vocab_size). A model may have more.
  virtual int64_t vocab_size() const = 0;
  /// An input error names the first piece of text that has no id, and its byte offset.
  virtual Result<std::vector<int32_t>> encode(std::string_view text) const = 0;
  /// Inverse of encode; an id outside the vocabulary becomes U+FFFD.
  virtual std::string decode(std::span<const int32_t> ids) const = 0;
  /// What parse_tokenizer makes the same tokenizer from.
  virtual nlohmann::json to_json() const = 0;
};

using TokenizerPtr = std::shared_ptr<const Tokenizer>;

/// One id per byte; vocabulary 256.
TokenizerPtr make_byte_tokenizer();

/// One id per Unicode code point that occurs in `text` (UTF-8), in ascending order of code points. Text that
/// is not UTF-8 is an input error with its byte offset.
Result<TokenizerPtr> make_character_tokenizer(std::string_view text);

/// Ids written as decimal numbers between blanks: for token files whose vocabulary is not known here.
TokenizerPtr make_id_tokenizer(int64_t vocab_size);

/// The tokenizer that to_json() described.
Result<TokenizerPtr> parse_tokenizer(const nlohmann::json& description);

}  // namespace moec::runtime
