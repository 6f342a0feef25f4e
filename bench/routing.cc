#include "bench/routing.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <string>

namespace moec::bench {
namespace {

using runtime::HostTensor;

/// Of an embedding in the dimensions of its experts. What the blocks of a model add is of order 1.
constexpr float kStrength = 10;

/// The parameters that decide which experts a token gets.
struct Routers {
  std::string embedding;
  std::vector<std::string> gates;  // [E, D], of every layer in order
  int64_t top_k = 0;
};

/// The weight of a node, in every repetition of its block.
std::vector<std::string> weights_of(const fb::PlanT& plan, const std::string& block,
                                    const std::string& node) {
  std::vector<std::string> names;
  for (const auto& parameter : plan.parameters)
    if (parameter->name.starts_with(block + ".") && parameter->name.ends_with("." + node + ".weight"))
      names.push_back(parameter->name);
  return names;
}

Result<Routers> find_routers(const fb::PlanT& plan) {
  Routers routers;
  for (const auto& block : plan.model->blocks)
    for (const auto& node : block->nodes) {
      if (node->op.type == fb::Op::Embedding)
        routers.embedding = weights_of(plan, block->name, node->name).at(0);
      if (node->op.type != fb::Op::Router) continue;
      if (routers.top_k > 0)
        return input_error(fmt::format("{}: more than one kind of router", plan.model->name));
      routers.gates = weights_of(plan, block->name, node->inputs.at(0));
      routers.top_k = node->op.AsRouter()->top_k;
    }
  if (routers.gates.empty() || routers.embedding.empty())
    return input_error(fmt::format("{}: no router of experts, or no embedding", plan.model->name));
  return routers;
}

std::vector<int64_t> experts_of(int64_t token, Routing routing, int64_t experts, int64_t top_k) {
  std::vector<int64_t> chosen;
  const auto choose = [&](int64_t count, int64_t first, int64_t of, int64_t from) {
    for (int64_t j = 0; j < count; ++j) chosen.push_back(first + (from + j) % of);
  };
  switch (routing) {
    case Routing::kBalanced:
      choose(top_k, 0, experts, token);
      break;
    case Routing::kSkewed:
      if (token % 2 == 0) choose(1, 0, 1, 0);
      choose(top_k - static_cast<int64_t>(chosen.size()), 1, experts - 1, token / 2);
      break;
    case Routing::kDegenerate:
      choose(top_k, 0, experts, 0);
      break;
  }
  return chosen;
}

}  // namespace

Status force_routing(runtime::Session& session, Routing routing) {
  MOEC_ASSIGN_OR_RETURN(const Routers routers, find_routers(session.plan().plan));
  MOEC_ASSIGN_OR_RETURN(HostTensor embedding, session.read_parameter(routers.embedding));
  const auto width = static_cast<int64_t>(embedding.info.shape[1]);
  int64_t experts = 0;
  for (const std::string& name : routers.gates) {
    MOEC_ASSIGN_OR_RETURN(HostTensor gate, session.read_parameter(name));
    experts = static_cast<int64_t>(gate.info.shape[0]);
    if (gate.info.dtype != fb::DType::F32 || experts > width || routers.top_k >= experts)
      return input_error(
          fmt::format("{}: routing cannot be forced: f64, or more experts than dimensions, or all "
                      "experts chosen",
                      name));
    const auto rows = gate.as<float>();
    std::ranges::fill(rows, 0.0f);
    for (int64_t e = 0; e < experts; ++e) rows[static_cast<size_t>(e * width + e)] = 1;
    MOEC_RETURN_IF_ERROR(session.write_parameter(gate));
  }
  for (int64_t token = 0; token < session.vocab_size(); ++token) {
    const auto row = embedding.as<float>().subspan(static_cast<size_t>(token * width));
    std::fill_n(row.begin(), experts, 0.0f);
    for (const int64_t e : experts_of(token, routing, experts, routers.top_k))
      row[static_cast<size_t>(e)] = kStrength;
  }
  return session.write_parameter(embedding);
}

Result<std::vector<double>> busiest_experts(runtime::Session& session) {
  MOEC_ASSIGN_OR_RETURN(const Routers routers, find_routers(session.plan().plan));
  const fb::ProgramT& program = *session.plan().program(fb::ProgramKind::Accumulate);
  std::vector<double> busiest;
  for (size_t i = 0; i < program.instructions.size() && busiest.size() < routers.gates.size(); ++i) {
    MOEC_RETURN_IF_ERROR(session.device().run_instruction(fb::ProgramKind::Accumulate, i).status());
    const fb::InstructionT& instruction = *program.instructions[i];
    if (instruction.op.type != fb::Op::ExpertIndex) continue;
    MOEC_ASSIGN_OR_RETURN(const HostTensor offsets, session.read_tensor(instruction.outputs[0]));
    const auto ends = offsets.as<int32_t>();
    int32_t most = 0;
    for (size_t e = 1; e < ends.size(); ++e) most = std::max(most, ends[e] - ends[e - 1]);
    busiest.push_back(most / (static_cast<double>(ends.back()) / static_cast<double>(ends.size() - 1)));
  }
  return busiest;
}

}  // namespace moec::bench
