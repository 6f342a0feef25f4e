// Graphs of operations on tensors of four dimensions, [batch, heads, rows, columns], that cuDNN computes in
// one go.
#pragma once

#include <array>
#include <initializer_list>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "kernels/cuda/cudnn/backend.h"

namespace moec::cuda::cudnn {

using Extents = std::array<int64_t, 4>;

/// A tensor of a graph, which knows it by its id.
struct Tensor {
  int64_t id;
  Extents dims;
};

/// By the ids of their tensors.
using Scalars = std::vector<std::pair<int64_t, float>>;

/// A graph as one of cuDNN's engines computes it.
class Plan {
 public:
  Plan(Descriptor plan, std::vector<int64_t> operands, Scalars scalars);

  size_t workspace_bytes() const { return workspace_bytes_; }

  /// Enqueues it on the handle's stream; `operands` are in the order in which the graph got them.
  cudnnStatus_t execute(const Library& library, cudnnHandle_t handle, std::span<void* const> operands,
                        void* workspace) const;

 private:
  Descriptor plan_;
  std::vector<int64_t> operands_;  // ids
  Scalars scalars_;
  size_t workspace_bytes_;
};

/// A graph under construction. The result of an operation is `to` or, where that is not given, a new f32
/// tensor that is stored nowhere.
class Graph {
 public:
  explicit Graph(const Library& library) : library_(library) {}

  /// A tensor in the device's memory, aligned to 16 bytes.
  Tensor operand(cudnnDataType_t type, const Extents& dims, const Extents& strides);
  /// A tensor that is stored nowhere, without gaps.
  Tensor value(cudnnDataType_t type, const Extents& dims);
  Tensor scalar(float value);

  Tensor matmul(Tensor a, Tensor b, std::optional<Tensor> to = {});
  /// Of one to three inputs, which are broadcast to the dimensions of the first.
  Tensor pointwise(cudnnPointwiseMode_t mode, std::initializer_list<Tensor> inputs,
                   std::optional<Tensor> to = {});
  /// The index of each element of x along a dimension, in i32.
  Tensor index(Tensor x, int64_t dimension);
  /// Whether a >= b, element by element.
  Tensor at_least(Tensor a, Tensor b);
  /// Over the dimensions in which `to` has fewer elements than x: of all, or of groups of neighbours.
  void reduce(cudnnReduceTensorOp_t operation, Tensor x, Tensor to);
  /// x with rows and columns exchanged, as a tensor of these strides and type.
  Tensor transposed(Tensor x, const Extents& strides, cudnnDataType_t type);

  /// By the first of the engines that cuDNN suggests which supports the graph and gives the same bits every
  /// time.
  std::optional<Plan> plan(cudnnHandle_t handle);

 private:
  Tensor add_tensor(cudnnDataType_t type, const Extents& dims, const Extents& strides, bool stored,
                    bool by_value);
  Tensor elementwise(Descriptor mode, std::initializer_list<Tensor> inputs, Tensor to);
  const Descriptor& descriptor(Tensor tensor) const { return tensors_[static_cast<size_t>(tensor.id - 1)]; }
  bool complete() const;

  const Library& library_;
  std::vector<Descriptor> tensors_;  // by id - 1
  std::vector<Descriptor> operations_;
  std::vector<int64_t> operands_;  // ids
  Scalars scalars_;
};

}  // namespace moec::cuda::cudnn
