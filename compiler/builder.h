// Turns a model into a graph: resolves names, unrolls repeated blocks, declares parameters.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "compiler/graph.h"
#include "compiler/op.h"
#include "model_generated.h"

namespace moec {

/// Names of the memory that programs share with the host.
inline constexpr char kTrainStateName[] = "train_state";
inline constexpr char kMetricsName[] = "metrics";
inline constexpr char kWindowName[] = "window";
inline constexpr char kTokensName[] = "tokens";
inline constexpr char kTargetsName[] = "targets";
inline constexpr char kPromptName[] = "prompt";
inline constexpr char kLogitsName[] = "logits";

enum class Mode : uint8_t {
  kTrain,     // everything
  kEvaluate,  // no dropout, no auxiliary losses
  kPrefill,   // no losses; logits of one position only
};

struct Parameter {
  std::string name;
  ParameterSpec spec;
  TensorType squares{};  // sums of squares of its gradient, where the kernel that writes it makes them
};

/// Adds the nodes of models to a graph.
class ModelBuilder {
 public:
  ModelBuilder(Graph& graph, Mode mode);

  /// Makes a value known to nodes under `name`.
  void define(const std::string& name, ValueId value) { scope_[name] = value; }
  ValueId lookup(const std::string& name) const;

  /// Adds all blocks. Throws CompileError naming block and node.
  void add_model(const fb::ModelT& model);

  const std::vector<Parameter>& parameters() const { return parameters_; }
  const std::vector<ValueId>& cross_entropies() const { return cross_entropies_; }
  const std::vector<ValueId>& auxiliary_losses() const { return auxiliary_losses_; }
  /// Input of the last cross-entropy, kNoValue before there is one.
  ValueId logits() const { return logits_; }

 private:
  using Scope = std::map<std::string, ValueId>;

  void add_block(const fb::BlockT& block);
  void add_repetition(const fb::BlockT& block, const std::string& prefix);
  void add_node(const fb::NodeT& node, const std::string& prefix);
  bool ready(const fb::NodeT& node) const;
  void publish(const fb::NodeT& node, const KernelInfo& kernel, const std::vector<ValueId>& outputs);
  std::vector<ValueId> data_inputs(const fb::NodeT& node, const OpDef& def, const std::string& label) const;
  void add_parameters(const fb::NodeT& node, const OpDef& def, const std::string& label,
                      std::vector<ValueId>& inputs);
  ValueId parameter(const std::string& label, const ParameterSpec& spec);
  void find_logits(const fb::ModelT& model);

  Graph& graph_;
  Mode mode_;
  Scope scope_;
  std::vector<Parameter> parameters_;
  std::vector<ValueId> cross_entropies_;
  std::vector<ValueId> auxiliary_losses_;
  ValueId logits_ = kNoValue;
  std::string logits_node_;  // the Linear whose output the loss reads
  uint32_t next_stream_ = 0;
};

/// State of the run as a value of a program.
ValueId train_state(Graph& graph);

}  // namespace moec
