#include "runtime/dataset.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string_view>
#include <utility>

#include "runtime/file_io.h"
#include "runtime/guard.h"

namespace moec::runtime {
namespace {

constexpr size_t kShardHeader = 256;  // i32 words

struct ShardFormat {
  int32_t magic;
  int32_t version;
  size_t token_bytes;
};
constexpr std::array<ShardFormat, 2> kShardFormats = {{{20240520, 1, 2}, {20240801, 7, 4}}};

/// A file's content, with the shard format that its first word names, nullptr for text.
struct Source {
  std::string path;
  std::string content;
  const ShardFormat* shard = nullptr;
};

int32_t word(const std::string& content, size_t index) {
  int32_t value = 0;
  std::memcpy(&value, content.data() + index * sizeof(value), sizeof(value));
  return value;
}

Result<Source> read_source(const std::string& path) {
  Source source{.path = path, .content = {}, .shard = nullptr};
  MOEC_ASSIGN_OR_RETURN(source.content, read_file(path));
  if (source.content.empty()) return input_error(path + ": the file is empty");
  const int32_t magic = source.content.size() >= sizeof(int32_t) ? word(source.content, 0) : 0;
  for (const ShardFormat& format : kShardFormats)
    if (magic == format.magic) source.shard = &format;
  if (source.shard == nullptr && path.ends_with(".bin"))
    return input_error(fmt::format("{}: not a token file: its magic is {}, expected {} or {}", path, magic,
                                   kShardFormats[0].magic, kShardFormats[1].magic));
  return source;
}

Result<std::vector<int32_t>> decode_shard(const Source& source) {
  const auto& [path, content, format] = source;
  constexpr size_t kHeaderBytes = kShardHeader * sizeof(int32_t);
  if (content.size() < kHeaderBytes)
    return input_error(
        fmt::format("{}: truncated: {} bytes, its header alone has {}", path, content.size(), kHeaderBytes));
  if (word(content, 1) != format->version)
    return input_error(fmt::format("{}: token file version {}, this build reads {}", path, word(content, 1),
                                   format->version));
  const int32_t count = word(content, 2);
  if (count < 0) return input_error(fmt::format("{}: its header says {} tokens", path, count));
  const size_t expected = kHeaderBytes + static_cast<size_t>(count) * format->token_bytes;
  if (content.size() != expected)
    return input_error(fmt::format("{}: {}: {} bytes, {} tokens need {}", path,
                                   content.size() < expected ? "truncated" : "too long", content.size(),
                                   count, expected));
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  if (format->token_bytes == sizeof(int32_t)) {
    std::memcpy(tokens.data(), content.data() + kHeaderBytes, content.size() - kHeaderBytes);
  } else {
    std::vector<uint16_t> narrow(tokens.size());
    std::memcpy(narrow.data(), content.data() + kHeaderBytes, content.size() - kHeaderBytes);
    std::copy(narrow.begin(), narrow.end(), tokens.begin());
  }
  return tokens;
}

Result<std::vector<Source>> read_sources(const std::vector<std::string>& paths) {
  std::vector<Source> sources;
  for (const std::string& path : paths) {
    MOEC_ASSIGN_OR_RETURN(Source source, read_source(path));
    if (!sources.empty() && (source.shard == nullptr) != (sources[0].shard == nullptr))
      return input_error(fmt::format("{}: text and token files cannot be mixed ({})", path, sources[0].path));
    sources.push_back(std::move(source));
  }
  return sources;
}

/// The characters of all these sources: a vocabulary covers training and validation text.
Result<TokenizerPtr> character_tokenizer_of(const std::vector<Source>& train,
                                            const std::vector<Source>& validation) {
  std::string characters;
  for (const auto* sources : {&train, &validation}) {
    for (const Source& source : *sources) {
      const auto own = make_character_tokenizer(source.content);
      if (!own.ok()) return Error{own.error().kind, source.path + ": " + own.error().message};
      std::vector<int32_t> all(static_cast<size_t>((*own)->vocab_size()));
      std::iota(all.begin(), all.end(), 0);
      characters += (*own)->decode(all);
    }
  }
  return make_character_tokenizer(characters);
}

Result<TokenizerPtr> choose_tokenizer(const DatasetOptions& options, const std::vector<Source>& train,
                                      const std::vector<Source>& validation) {
  if (train[0].shard != nullptr) return make_id_tokenizer(options.vocab_size);
  if (options.tokenizer != nullptr) return options.tokenizer;
  const TextEncoding fitting = options.vocab_size >= 256 ? TextEncoding::kBytes : TextEncoding::kCharacters;
  if (options.encoding.value_or(fitting) == TextEncoding::kBytes) return make_byte_tokenizer();
  return character_tokenizer_of(train, validation);
}

/// Tokens of all sources in a row, each below vocab_size.
Result<std::vector<int32_t>> tokenize(const std::vector<Source>& sources, const Tokenizer& tokenizer,
                                      int64_t vocab_size) {
  std::vector<int32_t> tokens;
  for (const Source& source : sources) {
    auto part = source.shard != nullptr ? decode_shard(source) : tokenizer.encode(source.content);
    if (!part.ok()) {
      const Error& error = part.error();
      return source.shard != nullptr ? error : Error{error.kind, source.path + ": " + error.message};
    }
    const auto bad =
        std::find_if(part->begin(), part->end(), [&](int32_t t) { return t < 0 || t >= vocab_size; });
    if (bad != part->end())
      return input_error(fmt::format("{}: token {} at position {} is outside the model's vocabulary of {}",
                                     source.path, static_cast<uint32_t>(*bad), bad - part->begin(),
                                     vocab_size));
    tokens.insert(tokens.end(), part->begin(), part->end());
  }
  return tokens;
}

Status check_length(const std::string& file, std::string_view what, const std::vector<int32_t>& tokens,
                    int64_t seq_len) {
  const auto found = static_cast<int64_t>(tokens.size());
  if (found > seq_len) return {};
  return input_error(
      fmt::format("{}: {} data: {} tokens are there, one sequence of {} and its targets need {}", file, what,
                  found, seq_len, seq_len + 1));
}

Status check_options(const DatasetOptions& options) {
  if (options.files.empty()) return input_error("no data file was given");
  if (!(options.validation_fraction >= 0 && options.validation_fraction < 1))
    return input_error(fmt::format("validation fraction {} is not in [0, 1)", options.validation_fraction));
  if (options.vocab_size < 1 || options.seq_len < 1)
    return input_error(fmt::format("vocabulary size {} and sequence length {} must be positive",
                                   options.vocab_size, options.seq_len));
  return {};
}

}  // namespace

Result<Dataset> load_dataset(const DatasetOptions& options) {
  return guarded("loading data", [&]() -> Result<Dataset> {
    MOEC_RETURN_IF_ERROR(check_options(options));
    MOEC_ASSIGN_OR_RETURN(const std::vector<Source> train, read_sources(options.files));
    MOEC_ASSIGN_OR_RETURN(const std::vector<Source> held_out, read_sources(options.validation_files));
    if (!held_out.empty() && (held_out[0].shard == nullptr) != (train[0].shard == nullptr))
      return input_error(
          fmt::format("{}: text and token files cannot be mixed ({})", held_out[0].path, train[0].path));
    Dataset data;
    MOEC_ASSIGN_OR_RETURN(data.tokenizer, choose_tokenizer(options, train, held_out));
    if (data.tokenizer->vocab_size() > options.vocab_size)
      return input_error(fmt::format("{}: its tokenizer has {} ids, the model's vocabulary only {}",
                                     train[0].path, data.tokenizer->vocab_size(), options.vocab_size));
    MOEC_ASSIGN_OR_RETURN(data.train, tokenize(train, *data.tokenizer, options.vocab_size));
    if (!held_out.empty()) {
      MOEC_ASSIGN_OR_RETURN(data.validation, tokenize(held_out, *data.tokenizer, options.vocab_size));
    } else if (options.validation_fraction > 0) {
      const double kept = static_cast<double>(data.train.size()) * (1 - options.validation_fraction);
      const auto boundary = data.train.begin() + std::llround(kept);
      data.validation.assign(boundary, data.train.end());
      data.train.erase(boundary, data.train.end());
    }
    MOEC_RETURN_IF_ERROR(check_length(train[0].path, "training", data.train, options.seq_len));
    if (!held_out.empty() || options.validation_fraction > 0)
      MOEC_RETURN_IF_ERROR(check_length(held_out.empty() ? train[0].path : held_out[0].path, "validation",
                                        data.validation, options.seq_len));
    return data;
  });
}

}  // namespace moec::runtime
