#include <algorithm>

#include "kernels/cuda/cudnn/graph.h"

namespace moec::cuda::cudnn {
namespace {

Extents packed_strides(const Extents& dims) {
  return {dims[1] * dims[2] * dims[3], dims[2] * dims[3], dims[3], 1};
}

Descriptor pointwise_mode(const Library& library, cudnnPointwiseMode_t mode, cudnnDataType_t type) {
  Descriptor descriptor(library, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
  descriptor.set(CUDNN_ATTR_POINTWISE_MODE, mode).set(CUDNN_ATTR_POINTWISE_MATH_PREC, type);
  return descriptor;
}

/// Whether an engine notes nothing to the contrary.
bool is_deterministic(const Library& library, const Descriptor& configuration) {
  Descriptor engine(library, CUDNN_BACKEND_ENGINE_DESCRIPTOR);
  if (configuration.get(CUDNN_ATTR_ENGINECFG_ENGINE, std::span(&engine, 1)) != 1) return false;
  std::vector<cudnnBackendNumericalNote_t> notes(CUDNN_NUMERICAL_NOTE_TYPE_COUNT);
  notes.resize(static_cast<size_t>(engine.get(CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, std::span(notes))));
  return std::ranges::find(notes, CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC) == notes.end();
}

/// Engine configurations for a graph, the best first.
std::vector<Descriptor> suggestions(const Library& library, const Descriptor& graph,
                                    cudnnBackendHeurMode_t mode) {
  Descriptor heuristics(library, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  heuristics.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph)
      .set(CUDNN_ATTR_ENGINEHEUR_MODE, mode)
      .finalize();
  const int64_t count = heuristics.get(CUDNN_ATTR_ENGINEHEUR_RESULTS, std::span<Descriptor>());
  std::vector<Descriptor> found;
  for (int64_t i = 0; i < count; ++i) found.emplace_back(library, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
  found.erase(found.begin() + heuristics.get(CUDNN_ATTR_ENGINEHEUR_RESULTS, std::span(found)), found.end());
  return found;
}

}  // namespace

Plan::Plan(Descriptor plan, std::vector<int64_t> operands, Scalars scalars)
    : plan_(std::move(plan)), operands_(std::move(operands)), scalars_(std::move(scalars)) {
  int64_t bytes = 0;
  plan_.get(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, std::span(&bytes, 1));
  workspace_bytes_ = static_cast<size_t>(bytes);
}

cudnnStatus_t Plan::execute(const Library& library, cudnnHandle_t handle, std::span<void* const> operands,
                            void* workspace) const {
  std::vector<int64_t> ids = operands_;
  std::vector<void*> places(operands.begin(), operands.end());
  for (const auto& [id, value] : scalars_) {
    ids.push_back(id);
    places.push_back(const_cast<float*>(&value));
  }
  Descriptor bindings(library, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  bindings.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, std::span<const int64_t>(ids))
      .set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, std::span<void* const>(places))
      .set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, workspace)
      .finalize();
  if (!bindings.ok()) return bindings.status();
  return library.cudnnBackendExecute(handle, plan_.handle(), bindings.handle());
}

Tensor Graph::add_tensor(cudnnDataType_t type, const Extents& dims, const Extents& strides, bool stored,
                         bool by_value) {
  constexpr int64_t kAlignment = 16;
  const auto id = static_cast<int64_t>(tensors_.size() + 1);
  Descriptor tensor(library_, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  tensor.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, id)
      .set(CUDNN_ATTR_TENSOR_DATA_TYPE, type)
      .set(CUDNN_ATTR_TENSOR_DIMENSIONS, std::span<const int64_t>(dims))
      .set(CUDNN_ATTR_TENSOR_STRIDES, std::span<const int64_t>(strides))
      .set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, kAlignment)
      .set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, !stored && !by_value)
      .set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, by_value)
      .finalize();
  tensors_.push_back(std::move(tensor));
  return {id, dims};
}

Tensor Graph::operand(cudnnDataType_t type, const Extents& dims, const Extents& strides) {
  const Tensor tensor = add_tensor(type, dims, strides, true, false);
  operands_.push_back(tensor.id);
  return tensor;
}

Tensor Graph::value(cudnnDataType_t type, const Extents& dims) {
  return add_tensor(type, dims, packed_strides(dims), false, false);
}

Tensor Graph::scalar(float value) {
  const Extents one = {1, 1, 1, 1};
  const Tensor tensor = add_tensor(CUDNN_DATA_FLOAT, one, one, false, true);
  scalars_.emplace_back(tensor.id, value);
  return tensor;
}

Tensor Graph::matmul(Tensor a, Tensor b, std::optional<Tensor> to) {
  const Tensor c = to ? *to : value(CUDNN_DATA_FLOAT, {a.dims[0], a.dims[1], a.dims[2], b.dims[3]});
  Descriptor arithmetic(library_, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
  arithmetic.set(CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_DATA_FLOAT).finalize();
  Descriptor operation(library_, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
  operation.set(CUDNN_ATTR_OPERATION_MATMUL_DESC, arithmetic)
      .set(CUDNN_ATTR_OPERATION_MATMUL_ADESC, descriptor(a))
      .set(CUDNN_ATTR_OPERATION_MATMUL_BDESC, descriptor(b))
      .set(CUDNN_ATTR_OPERATION_MATMUL_CDESC, descriptor(c))
      .finalize();
  operations_.push_back(std::move(operation));
  return c;
}

Tensor Graph::elementwise(Descriptor mode, std::initializer_list<Tensor> inputs, Tensor to) {
  constexpr cudnnBackendAttributeName_t kInputs[] = {CUDNN_ATTR_OPERATION_POINTWISE_XDESC,
                                                     CUDNN_ATTR_OPERATION_POINTWISE_BDESC,
                                                     CUDNN_ATTR_OPERATION_POINTWISE_TDESC};
  Descriptor operation(library_, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
  operation.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, mode.finalize());
  for (size_t i = 0; i < inputs.size(); ++i) operation.set(kInputs[i], descriptor(inputs.begin()[i]));
  operation.set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, descriptor(to)).finalize();
  operations_.push_back(std::move(operation));
  return to;
}

Tensor Graph::pointwise(cudnnPointwiseMode_t mode, std::initializer_list<Tensor> inputs,
                        std::optional<Tensor> to) {
  const Tensor y = to ? *to : value(CUDNN_DATA_FLOAT, inputs.begin()->dims);
  return elementwise(pointwise_mode(library_, mode, CUDNN_DATA_FLOAT), inputs, y);
}

Tensor Graph::index(Tensor x, int64_t dimension) {
  Descriptor mode = pointwise_mode(library_, CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_INT32);
  mode.set(CUDNN_ATTR_POINTWISE_AXIS, dimension);
  return elementwise(std::move(mode), {x}, value(CUDNN_DATA_INT32, x.dims));
}

Tensor Graph::at_least(Tensor a, Tensor b) {
  return elementwise(pointwise_mode(library_, CUDNN_POINTWISE_CMP_GE, CUDNN_DATA_BOOLEAN), {a, b},
                     value(CUDNN_DATA_BOOLEAN, a.dims));
}

void Graph::reduce(cudnnReduceTensorOp_t reduction, Tensor x, Tensor to) {
  Descriptor arithmetic(library_, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
  arithmetic.set(CUDNN_ATTR_REDUCTION_OPERATOR, reduction)
      .set(CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_DATA_FLOAT)
      .finalize();
  Descriptor operation(library_, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
  operation.set(CUDNN_ATTR_OPERATION_REDUCTION_DESC, arithmetic)
      .set(CUDNN_ATTR_OPERATION_REDUCTION_XDESC, descriptor(x))
      .set(CUDNN_ATTR_OPERATION_REDUCTION_YDESC, descriptor(to))
      .finalize();
  operations_.push_back(std::move(operation));
}

Tensor Graph::transposed(Tensor x, const Extents& strides, cudnnDataType_t type) {
  const Tensor y = add_tensor(type, {x.dims[0], x.dims[1], x.dims[3], x.dims[2]}, strides, false, false);
  Descriptor operation(library_, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
  operation.set(CUDNN_ATTR_OPERATION_RESHAPE_XDESC, descriptor(x))
      .set(CUDNN_ATTR_OPERATION_RESHAPE_YDESC, descriptor(y))
      .finalize();
  operations_.push_back(std::move(operation));
  return y;
}

bool Graph::complete() const {
  return std::ranges::all_of(tensors_, &Descriptor::ok) && std::ranges::all_of(operations_, &Descriptor::ok);
}

std::optional<Plan> Graph::plan(cudnnHandle_t handle) {
  if (!complete()) return {};
  Descriptor graph(library_, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  graph.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, handle)
      .set(CUDNN_ATTR_OPERATIONGRAPH_OPS, std::span<const Descriptor>(operations_))
      .finalize();
  for (const cudnnBackendHeurMode_t mode : {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK})
    for (const Descriptor& configuration : suggestions(library_, graph, mode)) {
      if (!is_deterministic(library_, configuration)) continue;
      Descriptor plan(library_, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
      plan.set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, handle)
          .set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, configuration)
          .finalize();
      if (plan.ok()) return Plan(std::move(plan), operands_, scalars_);
    }
  return {};
}

}  // namespace moec::cuda::cudnn
