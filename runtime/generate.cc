#include "runtime/generate.h"

#include <algorithm>
#include <span>
#include <vector>

#include "runtime/guard.h"

namespace moec::runtime {

Status generate(Session& session, const Tokenizer& tokenizer, std::string_view prompt,
                const GenerateOptions& options, const TokenCallback& on_token) {
  return guarded("generating", [&]() -> Status {
    MOEC_ASSIGN_OR_RETURN(Sampler sampler, Sampler::create(options.sampler));
    MOEC_ASSIGN_OR_RETURN(std::vector<int32_t> tokens, tokenizer.encode(prompt));
    if (tokens.empty()) return input_error("the prompt is empty");
    if (session.prefill_length() == 0)
      return input_error(session.plan().source + ": the plan has no Prefill program");
    const auto context = static_cast<size_t>(session.prefill_length());
    for (int64_t i = 0; i < options.max_tokens; ++i) {
      const std::span<const int32_t> all = tokens;
      MOEC_ASSIGN_OR_RETURN(const std::vector<float> logits,
                            session.prefill(all.last(std::min(all.size(), context))));
      const auto known = std::min(logits.size(), static_cast<size_t>(tokenizer.vocab_size()));
      MOEC_ASSIGN_OR_RETURN(const int32_t token, sampler.sample(std::span(logits).first(known)));
      tokens.push_back(token);
      if (!on_token(token, tokenizer.decode({&token, 1}))) break;
    }
    return {};
  });
}

}  // namespace moec::runtime
