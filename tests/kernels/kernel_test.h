// What the tests of CPU kernels share: tensors between guards, a call through the catalog, comparisons.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/catalog.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/float16.h"

namespace moec::test {

inline constexpr std::array kFloatTypes = {fb::DType::F32, fb::DType::F64, fb::DType::BF16, fb::DType::F16};

/// The type that arithmetic on `dtype` is done in.
inline fb::DType accumulator(fb::DType dtype) { return dtype == fb::DType::F64 ? dtype : fb::DType::F32; }

/// Bound for max_error() of a kernel that stores `dtype`.
inline double tolerance(fb::DType dtype) {
  switch (dtype) {
    case fb::DType::F64:
      return 1e-12;
    case fb::DType::F32:
      return 1e-5;
    case fb::DType::F16:
      return 2e-3;
    default:
      return 1.5e-2;
  }
}

/// A tensor in memory of its own between two guards. Guards and fresh contents are 0xff bytes: NaN as a
/// float, -1 as an integer. The guards are checked when the tensor dies.
class Tensor {
 public:
  Tensor(fb::DType dtype, const std::vector<int64_t>& shape) {
    view_.dtype = dtype;
    view_.rank = static_cast<int>(shape.size());
    std::copy(shape.begin(), shape.end(), view_.shape.begin());
    bytes_ = static_cast<size_t>(view_.bytes());
    memory_.resize(2 * kGuard + (bytes_ + 63) / 64, Block::filled());
    view_.data = memory_.data() + kGuard;
  }
  Tensor(fb::DType dtype, const std::vector<int64_t>& shape, const std::vector<double>& values)
      : Tensor(dtype, shape) {
    REQUIRE(static_cast<int64_t>(values.size()) == view_.elements());
    for (size_t i = 0; i < values.size(); ++i) set(static_cast<int64_t>(i), values[i]);
  }
  Tensor(Tensor&&) = default;
  Tensor& operator=(Tensor&&) = delete;
  ~Tensor() {
    if (!memory_.empty()) CHECK_MESSAGE(guards_intact(), "a kernel wrote outside of its tensor");
  }

  operator TensorView() const { return view_; }  // NOLINT: a tensor is passed where a view is wanted
  const TensorView& view() const { return view_; }
  int64_t elements() const { return view_.elements(); }

  double get(int64_t i) const {
    switch (view_.dtype) {
      case fb::DType::I32:
        return view_.as<int32_t>()[i];
      case fb::DType::F64:
        return view_.as<double>()[i];
      case fb::DType::F32:
        return view_.as<float>()[i];
      case fb::DType::BF16:
        return view_.as<bf16>()[i];
      case fb::DType::F16:
        return view_.as<f16>()[i];
      case fb::DType::U16:
        return view_.as<uint16_t>()[i];
      default:
        return view_.as<uint8_t>()[i];
    }
  }
  void set(int64_t i, double value) {
    switch (view_.dtype) {
      case fb::DType::I32:
        view_.as<int32_t>()[i] = static_cast<int32_t>(value);
        break;
      case fb::DType::F64:
        view_.as<double>()[i] = value;
        break;
      case fb::DType::F32:
        view_.as<float>()[i] = static_cast<float>(value);
        break;
      case fb::DType::BF16:
        view_.as<bf16>()[i] = static_cast<float>(value);
        break;
      case fb::DType::F16:
        view_.as<f16>()[i] = static_cast<float>(value);
        break;
      case fb::DType::U16:
        view_.as<uint16_t>()[i] = static_cast<uint16_t>(value);
        break;
      default:
        view_.as<uint8_t>()[i] = static_cast<uint8_t>(value);
    }
  }
  /// All elements as stored, converted to f64.
  std::vector<double> values() const {
    std::vector<double> out(static_cast<size_t>(elements()));
    for (size_t i = 0; i < out.size(); ++i) out[i] = get(static_cast<int64_t>(i));
    return out;
  }
  /// A tensor with the same contents in memory of its own.
  Tensor copy() const {
    Tensor out(view_.dtype, {view_.shape.begin(), view_.shape.begin() + view_.rank});
    std::memcpy(out.view_.data, view_.data, bytes_);
    return out;
  }
  bool same_bits(const Tensor& other) const {
    return bytes_ == other.bytes_ && std::memcmp(view_.data, other.view_.data, bytes_) == 0;
  }

 private:
  struct alignas(64) Block {
    std::array<unsigned char, 64> bytes;
    static Block filled() {
      Block block;
      block.bytes.fill(0xff);
      return block;
    }
  };
  static constexpr size_t kGuard = 4;  // blocks on either side

  bool guards_intact() const {
    const auto* begin = reinterpret_cast<const unsigned char*>(memory_.data());
    const auto* end = reinterpret_cast<const unsigned char*>(memory_.data() + memory_.size());
    const auto* data = view_.as<const unsigned char>();
    const auto untouched = [](unsigned char byte) { return byte == 0xff; };
    return std::all_of(begin, data, untouched) && std::all_of(data + bytes_, end, untouched);
  }

  std::vector<Block> memory_;
  TensorView view_;
  size_t bytes_ = 0;
};

/// Normal random values from a seed.
class Random {
 public:
  explicit Random(uint64_t seed = 1) : engine_(seed) {}
  Tensor normal(fb::DType dtype, const std::vector<int64_t>& shape, double std = 1, double mean = 0) {
    std::normal_distribution<double> distribution(mean, std);
    Tensor tensor(dtype, shape);
    for (int64_t i = 0; i < tensor.elements(); ++i) tensor.set(i, distribution(engine_));
    return tensor;
  }
  /// Integers in [0, bound).
  Tensor integers(const std::vector<int64_t>& shape, int32_t bound) {
    std::uniform_int_distribution<int32_t> distribution(0, bound - 1);
    Tensor tensor(fb::DType::I32, shape);
    for (int64_t i = 0; i < tensor.elements(); ++i) tensor.set(i, distribution(engine_));
    return tensor;
  }

 private:
  std::mt19937_64 engine_;
};

/// Calls the CPU kernel `key` with operands in the catalog's order ({} for an absent one) and a workspace of
/// exactly the bytes that the catalog states, filled with NaN. Checks that outputs alias inputs where they
/// must, and that no input but an aliased one changes.
template <class Attrs>
void run(std::string_view key, Attrs attrs, const std::vector<TensorView>& inputs,
         const std::vector<TensorView>& outputs) {
  const KernelInfo* info = find_kernel(key);
  REQUIRE(info != nullptr);
  const auto is_output = [&](const TensorView& input) {
    return std::any_of(outputs.begin(), outputs.end(),
                       [&](const auto& out) { return out.data == input.data; });
  };
  for (const InPlace& rule : info->in_place) {
    const TensorView& input = inputs[static_cast<size_t>(rule.input)];
    if (rule.required && input.present())
      REQUIRE(input.data == outputs[static_cast<size_t>(rule.output)].data);
  }
  std::vector<std::vector<unsigned char>> before;
  for (const TensorView& input : inputs) {
    const auto* bytes = input.as<const unsigned char>();
    before.emplace_back(bytes, bytes + input.bytes());
  }

  fb::OpUnion op;
  op.Set(std::move(attrs));
  KernelCall call{.inputs = inputs, .outputs = outputs, .workspace = {}, .op = &op};
  const Tensor workspace(fb::DType::U8, {static_cast<int64_t>(info->workspace(call))});
  call.workspace = workspace;
  cpu::find_kernel(key)(call);

  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!inputs[i].present() || is_output(inputs[i])) continue;
    CHECK_MESSAGE(std::memcmp(before[i].data(), inputs[i].data, before[i].size()) == 0,
                  "kernel " << key << " changed its input " << i);
  }
}

/// Largest absolute difference over the largest absolute expected value; infinite when either holds a NaN.
inline double max_error(const Tensor& actual, const std::vector<double>& expected) {
  REQUIRE(actual.elements() == static_cast<int64_t>(expected.size()));
  double difference = 0, scale = 1e-30;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double error = std::abs(actual.get(static_cast<int64_t>(i)) - expected[i]);
    if (std::isnan(error)) return std::numeric_limits<double>::infinity();
    difference = std::max(difference, error);
    scale = std::max(scale, std::abs(expected[i]));
  }
  return difference / scale;
}

/// Checks that `compute`, which returns the tensors that a kernel wrote, gives the same bits with 1, 2 and 3
/// threads.
template <class Compute>
void check_same_bits_for_any_threads(Compute&& compute) {
  cpu::set_threads(1);
  const std::vector<Tensor> expected = compute();
  for (int threads : {2, 3}) {
    cpu::set_threads(threads);
    const std::vector<Tensor> actual = compute();
    REQUIRE(actual.size() == expected.size());
    for (size_t i = 0; i < actual.size(); ++i) {
      CHECK_MESSAGE(actual[i].same_bits(expected[i]),
                    "output " << i << " differs with " << threads << " threads");
    }
  }
  cpu::set_threads(0);
}

}  // namespace moec::test
