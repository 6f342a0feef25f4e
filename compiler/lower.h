// Lowers program graphs to instructions and plans their memory.
#pragma once

#include <map>
#include <string>

#include "compiler/cost_model.h"
#include "compiler/graph.h"
#include "compiler/storage.h"
#include "plan_generated.h"

namespace moec {

/// Collects the programs of a plan over one storage.
class PlanWriter {
 public:
  /// `costs`, where given, outlives the writer and predicts what each instruction takes.
  explicit PlanWriter(const Storage& storage, const CostModel* costs = nullptr);

  /// Appends a program: one instruction per node, activations placed by the planner. Where the arena grows by
  /// at most `spare` bytes, what small gradients of parameters and those of experts read stays in place
  /// for some nodes more, so that a device can compute them beside the chain of the other gradients.
  void add_program(fb::ProgramKind kind, const Graph& graph, uint64_t spare = 0);

  /// Id of the tensor that views persistent memory as programs find it, -1 when there is no such name.
  int tensor_id(const std::string& name) const;

  /// The plan so far, arenas sized. The recipe, parameters and interface are the caller's to fill in.
  fb::PlanT finish() &&;

 private:
  int add_tensor(const std::string& name, const TensorType& type, uint32_t buffer, uint64_t offset,
                 int version);

  const CostModel* costs_;
  fb::PlanT plan_;
  std::map<std::string, int> persistent_;  // name -> tensor id of version 0
};

}  // namespace moec
