// Runs an op's sample on a device: inputs, parameters, outputs, output gradients and input gradients are all
// memory that a test can read and write.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "compiler/op.h"
#include "runtime/device.h"

namespace moec::test {

/// Values of a sample's inputs, parameters and output gradients by name, all as f64.
using Tensors = std::map<std::string, std::vector<double>>;

class OpHarness {
 public:
  /// Adds nodes to the graph; `inputs` are the sample's by name. Returns the values whose weighted sum is
  /// differentiated.
  using Build =
      std::function<std::vector<ValueId>(Graph& graph, const std::map<std::string, ValueId>& inputs)>;

  /// Changes the plan before it is loaded.
  using Edit = std::function<void(fb::PlanT& plan)>;

  static constexpr runtime::MemoryOptions kPoisoned{.poison_activations = true};

  /// Compiles the sample's nodes in the given precision and loads them on `device`.
  OpHarness(const Sample& sample, Precision precision, std::unique_ptr<runtime::Device> device,
            runtime::MemoryOptions memory = kPoisoned, const Edit& edit = nullptr);
  /// The same with nodes added by `build`.
  OpHarness(const Sample& sample, Precision precision, std::unique_ptr<runtime::Device> device,
            const Build& build, runtime::MemoryOptions memory = kPoisoned, const Edit& edit = nullptr);

  /// Random inputs as the sample asks, random parameters and output gradients; the same for the same seed.
  Tensors random_values(uint64_t seed) const;

  /// The values as memory of this precision holds them, for a reference in a higher one.
  Tensors rounded(const Tensors& values) const;

  /// Writes the values and runs forward; outputs by name.
  Tensors forward(const Tensors& values);
  /// Writes the values and runs forward and backward; gradients by the name of what they belong to.
  Tensors backward(const Tensors& values);
  /// sum of output * output gradient: the function whose gradient `backward` computes.
  double objective(const Tensors& values);

  /// Type of an input, a parameter or a "seed:" of random_values().
  const TensorType& type(const std::string& name) const { return memory_.at(name); }

  const runtime::Device& device() const { return *device_; }

  /// Whether a program calls this kernel.
  bool runs(std::string_view kernel) const;

  /// Names of the real inputs and the parameters.
  const std::vector<std::string>& differentiable() const { return differentiable_; }

 private:
  Graph make_graph(const Sample& sample, Precision precision, const Build& build, bool with_backward);
  void write(const Tensors& values);
  Tensors read(const std::string& prefix) const;

  Sample sample_;
  std::map<std::string, TensorType> memory_;  // persistent memory by name
  std::map<std::string, int> tensor_;         // its tensor ids
  std::vector<std::string> differentiable_;
  std::set<std::string_view> kernels_;  // of both programs
  std::unique_ptr<runtime::Device> device_;
};

}  // namespace moec::test
