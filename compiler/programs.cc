#include "compiler/programs.h"

#include <algorithm>
#include <set>
#include <string>

#include "compiler/autodiff.h"
#include "compiler/check_heads.h"
#include "compiler/check_routing.h"
#include "kernels/train_state.h"

namespace moec {
namespace {

/// Random streams of parameter initialisation start here; those of the model's dropouts start at 0.
constexpr uint32_t kInitStreams = 1u << 20;

/// Moves the last node, which counts the micro-batch, in front of the gradients of parameters behind the last
/// activation, so that a device may run it beside them.
void count_early(Graph& graph) {
  std::vector<Node> nodes = graph.nodes();
  const auto makes_activation = [&](const Node& node) {
    return std::ranges::any_of(node.outputs, [&](ValueId id) {
      return id != kNoValue && graph.value(id).role == Role::kActivation;
    });
  };
  const auto behind = std::find_if(nodes.rbegin(), nodes.rend(), makes_activation).base();
  if (behind != nodes.end()) std::rotate(behind, nodes.end() - 1, nodes.end());
  graph.replace_nodes(std::move(nodes));
}

/// Refuses parameters of which none that AdamW updates in one call has a gradient: nothing would train them.
/// One without among others is well, as what the last repetition of a block makes for a next one.
void check_parameters_train(const Graph& graph, const std::vector<Parameter>& parameters, bool all_decay) {
  std::set<std::string> written;
  for (const Node& node : graph.nodes())
    for (const ValueId id : node.outputs)
      if (id != kNoValue && graph.value(id).role == Role::kGradient) written.insert(graph.value(id).name);
  for (const bool decay : {false, true}) {
    const auto updated = [&](const Parameter& p) { return (all_decay || p.spec.shape.size() >= 2) == decay; };
    const auto trains = [&](const Parameter& p) {
      return updated(p) && written.contains(gradient_name(p.name));
    };
    const auto first = std::ranges::find_if(parameters, updated);
    if (first != parameters.end() && std::ranges::none_of(parameters, trains))
      compile_error("{}: no loss depends on this parameter", first->name);
  }
}

/// Loads a batch (unless the host writes it) and adds the model.
ModelBuilder add_model(Graph& graph, const fb::ModelT& model, const fb::RecipeT& recipe, bool evaluate,
                       int64_t window_tokens, bool host_batches) {
  const TensorType type{fb::DType::I32, {recipe.batch_size, recipe.seq_len}};
  ValueId tokens = graph.persistent(kTokensName, type, Role::kIo);
  ValueId targets = graph.persistent(kTargetsName, type, Role::kIo);
  if (!host_batches) {
    const ValueId window = graph.persistent(kWindowName, {fb::DType::I32, {window_tokens}}, Role::kIo);
    tokens = graph.next_version(tokens);
    targets = graph.next_version(targets);
    fb::LoadBatchT attrs;
    attrs.sampling = evaluate ? fb::Sampling::Sequential : recipe.sampling;
    attrs.evaluate = evaluate;
    graph.add_node(find_op("load_batch"), make_attrs(attrs), "load_batch", {window, train_state(graph)},
                   {tokens, targets});
  }
  ModelBuilder builder(graph, evaluate ? Mode::kEvaluate : Mode::kTrain);
  builder.define(kTokensName, tokens);
  builder.define(kTargetsName, targets);
  builder.add_model(model);
  check_routing(graph);
  check_heads(graph);
  return builder;
}

void record_losses(Graph& graph, const ModelBuilder& builder, const fb::RecipeT& recipe, bool evaluate) {
  fb::RecordLossT attrs;
  attrs.losses = static_cast<uint32_t>(builder.cross_entropies().size());
  attrs.grad_accum = recipe.grad_accum;
  attrs.evaluate = evaluate;
  std::vector<ValueId> inputs = {train_state(graph)};
  inputs.insert(inputs.end(), builder.cross_entropies().begin(), builder.cross_entropies().end());
  inputs.insert(inputs.end(), builder.auxiliary_losses().begin(), builder.auxiliary_losses().end());
  graph.add_node(find_op("record_loss"), make_attrs(attrs), "record_loss", inputs,
                 {graph.next_version(inputs[0])}, evaluate ? Phase::kForward : Phase::kBackward);
}

}  // namespace

Graph init_program(const std::vector<Parameter>& parameters, const Precision& precision) {
  Graph graph(precision, 0);
  const ValueId state = train_state(graph);
  for (size_t i = 0; i < parameters.size(); ++i) {
    const ParameterSpec& spec = parameters[i].spec;
    const auto initialise = [&](const std::string& name, fb::DType dtype, Role role) {
      const ValueId memory = graph.next_version(graph.persistent(name, {dtype, spec.shape}, role));
      if (spec.init_std > 0) {
        fb::InitNormalT normal;
        normal.std = spec.init_std;
        normal.stream = kInitStreams + static_cast<uint32_t>(i);
        graph.add_node(find_op("init_normal"), make_attrs(normal), name, {state}, {memory});
      } else {
        fb::FillT fill;
        fill.value = spec.init_value;
        graph.add_node(find_op("fill"), make_attrs(fill), name, {}, {memory});
      }
    };
    const std::string& name = parameters[i].name;
    initialise(name, precision.compute, Role::kParameter);
    // The same numbers, so that the parameter is its master rounded.
    if (precision.compute == fb::DType::F16)
      initialise(master_name(name), fb::DType::F32, Role::kOptimizerState);
  }
  return graph;
}

Graph accumulate_program(const fb::ModelT& model, const fb::RecipeT& recipe, const Precision& precision,
                         int64_t window_tokens, bool host_batches, std::vector<Parameter>& parameters) {
  Graph graph(precision, int64_t{recipe.batch_size} * recipe.seq_len);
  const ModelBuilder builder = add_model(graph, model, recipe, false, window_tokens, host_batches);
  if (builder.cross_entropies().empty())
    compile_error("{}: the model has no CrossEntropy to train", model.name);
  parameters = builder.parameters();
  check_parameter_names(parameters);

  fb::SeedGradientT attrs;
  attrs.grad_accum = recipe.grad_accum;
  const int seed = graph.add_node(find_op("seed_gradient"), make_attrs(attrs), "seed_gradient",
                                  {train_state(graph)}, {}, Phase::kBackward);
  const ValueId seed_value = graph.nodes()[static_cast<size_t>(seed)].outputs[0];
  std::vector<std::pair<ValueId, ValueId>> seeds;
  for (const ValueId loss : builder.cross_entropies()) seeds.emplace_back(loss, seed_value);
  for (const ValueId loss : builder.auxiliary_losses()) seeds.emplace_back(loss, seed_value);
  add_backward(graph, seeds, recipe.grad_accum > 1);
  check_parameters_train(graph, parameters, recipe.weight_decay_scope == fb::WeightDecayScope::All);
  record_losses(graph, builder, recipe, false);
  count_early(graph);
  return graph;
}

Graph apply_program(const Storage& storage, const fb::RecipeT& recipe, const Precision& precision) {
  Graph graph(precision, 0);
  const auto memory = [&](const std::string& name) {
    const StorageSlot& slot = storage.slot(name);
    return graph.persistent(name, slot.type, slot.role);
  };
  const auto update = [&](const char* op, fb::OpUnion attrs, std::string label, std::vector<ValueId> inputs,
                          std::vector<ValueId> outputs) {
    graph.add_node(find_op(op), attrs, std::move(label), std::move(inputs), std::move(outputs),
                   Phase::kOptimizer);
  };
  const auto update_state = [&](const char* op, fb::OpUnion attrs, std::vector<ValueId> inputs) {
    const ValueId state = train_state(graph);
    inputs.insert(inputs.begin(), state);
    update(op, std::move(attrs), op, std::move(inputs), {graph.next_version(state)});
  };

  std::vector<ValueId> gradients = {storage.squares.empty() ? kNoValue : memory(storage.squares)};
  for (const ParameterGroup& group : storage.groups)
    if (!group.unsummed.empty()) gradients.push_back(memory(group.unsummed));
  fb::GradNormT norm;
  norm.max_norm = recipe.clip_norm;
  update_state("grad_norm", make_attrs(norm), gradients);
  fb::LrScheduleT rate;
  rate.lr = recipe.lr;
  rate.schedule = std::make_unique<fb::ScheduleT>(*recipe.schedule);
  update_state("lr_schedule", make_attrs(std::move(rate)), {});

  uint32_t stream = 0;
  for (const ParameterGroup& group : storage.groups) {
    fb::AdamWT attrs = *recipe.adamw;
    if (!group.decay) attrs.weight_decay = 0;
    attrs.stream = stream++;
    const ValueId param = memory(group.param), m1 = memory(group.moment1), m2 = memory(group.moment2);
    const ValueId master = group.master.empty() ? kNoValue : memory(group.master);
    std::vector<ValueId> outputs = {graph.next_version(param), graph.next_version(m1),
                                    graph.next_version(m2)};
    if (master != kNoValue) outputs.push_back(graph.next_version(master));
    update("adamw", make_attrs(attrs), "adamw." + group.param,
           {param, memory(group.grad), m1, m2, master, train_state(graph)}, outputs);
  }
  if (recipe.grad_accum > 1)
    for (const ParameterGroup& group : storage.groups)
      update("fill", make_attrs<fb::FillT>(), "zero." + group.grad, {},
             {graph.next_version(memory(group.grad))});

  const ValueId state = train_state(graph), metrics = memory(kMetricsName);
  fb::EndStepT end;
  if (recipe.loss_scale) end.loss_scale = std::make_unique<fb::LossScaleT>(*recipe.loss_scale);
  update("end_step", make_attrs(std::move(end)), "end_step", {state, metrics},
         {graph.next_version(state), graph.next_version(metrics)});
  return graph;
}

Graph evaluate_program(const fb::ModelT& model, const fb::RecipeT& recipe, const Precision& precision,
                       int64_t window_tokens, bool host_batches) {
  Graph graph(precision, int64_t{recipe.batch_size} * recipe.seq_len);
  const ModelBuilder builder = add_model(graph, model, recipe, true, window_tokens, host_batches);
  record_losses(graph, builder, recipe, true);
  return graph;
}

Graph prefill_program(const fb::ModelT& model, const fb::RecipeT& recipe, const Precision& precision,
                      TensorType& logits) {
  Graph graph(precision, recipe.seq_len);
  ModelBuilder builder(graph, Mode::kPrefill);
  builder.define(kTokensName,
                 graph.persistent(kPromptName, {fb::DType::I32, {1, recipe.seq_len}}, Role::kIo));
  builder.define(
      kTargetsName,
      graph.persistent(kTargetsName, {fb::DType::I32, {recipe.batch_size, recipe.seq_len}}, Role::kIo));
  builder.add_model(model);
  const ValueId made = builder.logits();
  logits = {graph.value(made).type.dtype, {1, 1, graph.value(made).type.cols()}};
  const ValueId result = graph.next_version(graph.persistent(kLogitsName, logits, Role::kIo));
  if (graph.value(made).type == logits)
    graph.add_node(find_op("scale"), make_attrs<fb::ScaleT>(), "logits", {made}, {result});
  else
    graph.add_node(find_op("select_token"), make_attrs<fb::SelectTokenT>(), "logits",
                   {made, train_state(graph)}, {result});
  return graph;
}

}  // namespace moec
