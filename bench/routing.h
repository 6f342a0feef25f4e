// Routing that is chosen rather than learned: how many rows every expert gets, in a step like any other.
#pragma once

#include <string>
#include <vector>

#include "runtime/session.h"
#include "runtime/status.h"

namespace moec::bench {

enum class Routing {
  kBalanced,    // every expert gets as many tokens as any other
  kSkewed,      // every second token has the first expert among its own, the others share the rest evenly
  kDegenerate,  // all tokens have the same experts, the first ones
};

/// In the order of their values.
inline const std::vector<std::string> kRoutingNames = {"balanced", "skewed", "degenerate"};

/// Sets embeddings and routers so that from now on a token's id decides its experts, in all layers: an
/// embedding has a large value in one dimension for each of its experts, and an expert's row of the router
/// reads that dimension alone. What blocks add to it, and a few hundred steps of training, are too small to
/// change the choice. The loads are those above where ids are drawn uniformly.
Status force_routing(runtime::Session& session, Routing routing);

/// Rows of the busiest expert over the mean of all experts: of every layer, in the batch that comes next.
Result<std::vector<double>> busiest_experts(runtime::Session& session);

}  // namespace moec::bench
