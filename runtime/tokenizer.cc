#include "runtime/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <utility>

#include "runtime/guard.h"

namespace moec::runtime {
namespace {

using nlohmann::json;

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD
constexpr int64_t kMaxVocabulary = int64_t{1} << 31;

class ByteTokenizer final : public Tokenizer {
 public:
  int64_t vocab_size() const override { return 256; }

  Result<std::vector<int32_t>> encode(std::string_view text) const override {
    return guarded("encoding text", [&]() -> Result<std::vector<int32_t>> {
      std::vector<int32_t> ids(text.size());
      std::transform(text.begin(), text.end(), ids.begin(),
                     [](char c) { return static_cast<unsigned char>(c); });
      return ids;
    });
  }

  std::string decode(std::span<const int32_t> ids) const override {
    std::string text;
    for (const int32_t id : ids) {
      if (id >= 0 && id < 256)
        text += static_cast<char>(id);
      else
        text += kReplacement;
    }
    return text;
  }

  json to_json() const override { return {{"kind", "bytes"}}; }
};

/// Reads the code point at `offset` and moves past it; -1 where the text is not UTF-8 (overlong forms,
/// surrogates and values above U+10FFFF included).
int32_t next_code_point(std::string_view text, size_t& offset) {
  const auto byte = [&](size_t i) -> uint32_t { return static_cast<unsigned char>(text[i]); };
  const uint32_t lead = byte(offset);
  const size_t length = lead < 0x80         ? 1
                        : lead >> 5 == 0x6  ? 2
                        : lead >> 4 == 0xE  ? 3
                        : lead >> 3 == 0x1E ? 4
                                            : 0;
  if (length == 0 || length > text.size() - offset) return -1;
  uint32_t code = length == 1 ? lead : lead & (0x7Fu >> length);
  for (size_t i = 1; i < length; ++i) {
    const uint32_t next = byte(offset + i);
    if (next >> 6 != 0x2) return -1;
    code = code << 6 | (next & 0x3F);
  }
  constexpr uint32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
  if (code < kSmallest[length] || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) return -1;
  offset += length;
  return static_cast<int32_t>(code);
}

std::string to_utf8(uint32_t code) {
  const auto tail = [&](int shift) { return static_cast<char>(0x80 | (code >> shift & 0x3F)); };
  if (code < 0x80) return {static_cast<char>(code)};
  if (code < 0x800) return {static_cast<char>(0xC0 | code >> 6), tail(0)};
  if (code < 0x10000) return {static_cast<char>(0xE0 | code >> 12), tail(6), tail(0)};
  return {static_cast<char>(0xF0 | code >> 18), tail(12), tail(6), tail(0)};
}

class CharacterTokenizer final : public Tokenizer {
 public:
  /// `code_points` are distinct and ascending.
  explicit CharacterTokenizer(std::vector<int32_t> code_points) : code_points_(std::move(code_points)) {}

  int64_t vocab_size() const override { return static_cast<int64_t>(code_points_.size()); }

  Result<std::vector<int32_t>> encode(std::string_view text) const override {
    return guarded("encoding text", [&]() -> Result<std::vector<int32_t>> {
      std::vector<int32_t> ids;
      ids.reserve(text.size());
      for (size_t offset = 0; offset < text.size();) {
        const size_t start = offset;
        const int32_t code = next_code_point(text, offset);
        if (code < 0) return input_error(fmt::format("the text is not UTF-8 at byte {}", start));
        const auto found = std::lower_bound(code_points_.begin(), code_points_.end(), code);
        if (found == code_points_.end() || *found != code)
          return input_error(
              fmt::format("character '{}' (U+{:04X}, byte {}) is not among the {} of the vocabulary",
                          text.substr(start, offset - start), code, start, code_points_.size()));
        ids.push_back(static_cast<int32_t>(found - code_points_.begin()));
      }
      return ids;
    });
  }

  std::string decode(std::span<const int32_t> ids) const override {
    std::string text;
    for (const int32_t id : ids) {
      const bool known = id >= 0 && id < vocab_size();
      text += known ? to_utf8(static_cast<uint32_t>(code_points_[static_cast<size_t>(id)]))
                    : std::string(kReplacement);
    }
    return text;
  }

  json to_json() const override {
    std::string vocabulary;
    for (const int32_t code : code_points_) vocabulary += to_utf8(static_cast<uint32_t>(code));
    return {{"kind", "characters"}, {"vocabulary", vocabulary}};
  }

 private:
  std::vector<int32_t> code_points_;
};

class IdTokenizer final : public Tokenizer {
 public:
  explicit IdTokenizer(int64_t vocab_size) : vocab_size_(vocab_size) {}

  int64_t vocab_size() const override { return vocab_size_; }

  Result<std::vector<int32_t>> encode(std::string_view text) const override {
    return guarded("reading token ids", [&]() -> Result<std::vector<int32_t>> {
      constexpr std::string_view kBlanks = " \t\r\n";
      std::vector<int32_t> ids;
      for (size_t start = text.find_first_not_of(kBlanks); start != text.npos;) {
        const size_t end = std::min(text.find_first_of(kBlanks, start), text.size());
        int32_t id = -1;
        const auto [stop, error] = std::from_chars(text.data() + start, text.data() + end, id);
        if (error != std::errc() || stop != text.data() + end || id < 0 || id >= vocab_size_)
          return input_error(fmt::format("'{}' at byte {} is not a token id below {}",
                                         text.substr(start, end - start), start, vocab_size_));
        ids.push_back(id);
        start = text.find_first_not_of(kBlanks, end);
      }
      return ids;
    });
  }

  std::string decode(std::span<const int32_t> ids) const override {
    std::string text;
    for (const int32_t id : ids) {
      if (id >= 0 && id < vocab_size_)
        text += fmt::format("{} ", id);
      else
        text += fmt::format("{} ", kReplacement);
    }
    return text;
  }

  json to_json() const override { return {{"kind", "ids"}, {"vocab_size", vocab_size_}}; }

 private:
  int64_t vocab_size_;
};

}  // namespace

TokenizerPtr make_byte_tokenizer() { return std::make_shared<ByteTokenizer>(); }

Result<TokenizerPtr> make_character_tokenizer(std::string_view text) {
  return guarded("collecting characters", [&]() -> Result<TokenizerPtr> {
    std::vector<bool> seen(0x110000);
    for (size_t offset = 0; offset < text.size();) {
      const size_t start = offset;
      const int32_t code = next_code_point(text, offset);
      if (code < 0) return input_error(fmt::format("the text is not UTF-8 at byte {}", start));
      seen[static_cast<size_t>(code)] = true;
    }
    std::vector<int32_t> code_points;
    for (size_t code = 0; code < seen.size(); ++code)
      if (seen[code]) code_points.push_back(static_cast<int32_t>(code));
    return TokenizerPtr(std::make_shared<CharacterTokenizer>(std::move(code_points)));
  });
}

TokenizerPtr make_id_tokenizer(int64_t vocab_size) { return std::make_shared<IdTokenizer>(vocab_size); }

Result<TokenizerPtr> parse_tokenizer(const json& description) {
  return guarded("reading the tokenizer", [&]() -> Result<TokenizerPtr> {
    try {
      const auto kind = description.at("kind").get<std::string>();
      if (kind == "bytes") return make_byte_tokenizer();
      if (kind == "characters")
        return make_character_tokenizer(description.at("vocabulary").get<std::string>());
      if (kind != "ids") return input_error(fmt::format("unknown tokenizer kind '{}'", kind));
      const auto vocab_size = description.at("vocab_size").get<int64_t>();
      if (vocab_size < 1 || vocab_size > kMaxVocabulary)
        return input_error(fmt::format("a vocabulary of {} ids", vocab_size));
      return make_id_tokenizer(vocab_size);
    } catch (const json::exception& e) {
      return input_error(fmt::format("the tokenizer's description: {}", e.what()));
    }
  });
}

}  // namespace moec::runtime
