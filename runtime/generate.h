// Text generation by running the whole context through Prefill for every token.
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>

#include "runtime/sampler.h"
#include "runtime/session.h"
#include "runtime/status.h"
#include "runtime/tokenizer.h"

namespace moec::runtime {

struct GenerateOptions {
  int64_t max_tokens = 256;
  SamplerOptions sampler;
};

/// Called with each new token and its text; false stops the generation.
using TokenCallback = std::function<bool(int32_t token, std::string_view text)>;

/// Continues `prompt` token by token. When the context is full, the oldest tokens fall out. Ids that the
/// model has but the tokenizer does not are never drawn. An empty prompt is an input error.
Status generate(Session& session, const Tokenizer& tokenizer, std::string_view prompt,
                const GenerateOptions& options, const TokenCallback& on_token);

}  // namespace moec::runtime
