// A norm and a linear layer in one launch against the calls one by one: the same bits, into memory that is
// NaN.
#include <cuda_runtime.h>
#include <doctest/doctest.h>

#include <cstring>
#include <string>
#include <vector>

#include "kernels/cuda/call_run.h"
#include "kernels/train_state.h"
#include "tests/cuda/shared_tensor.h"

namespace moec::test {
namespace {

struct Shape {
  int64_t rows, in, out;
};

struct Layer {
  bool centred, norm_bias;  // of the norm
  bool fused;               // GELU, dropout and a residual behind the product
  bool wide;                // the result in f32
};

/// The contents, byte by byte.
std::vector<unsigned char> bytes(const SharedTensor& tensor) {
  const auto* data = tensor.view().as<const unsigned char>();
  return {data, data + tensor.view().bytes()};
}

void forget(SharedTensor& tensor) {
  std::memset(tensor.view().data, 0xff, static_cast<size_t>(tensor.view().bytes()));
}

cuda::CudaContext this_device() {
  cuda::CudaContext context = {};
  context.sm_count = 132;
  context.kernels_overlap = cuda::kernels_can_overlap();
  return context;
}

/// A norm and the linear layer behind it.
class NormLinear {
 public:
  NormLinear(fb::DType dtype, const Shape& shape, const Layer& layer)
      : x_(dtype, {shape.rows, shape.in}),
        gamma_(dtype, {shape.in}),
        beta_(dtype, {shape.in}),
        weight_(dtype, {shape.out, shape.in}),
        bias_(dtype, {shape.out}),
        residual_(dtype, {shape.rows, shape.out}),
        state_(fb::DType::I32, {int64_t{(sizeof(TrainState) + 3) / 4}}),
        y_(dtype, {shape.rows, shape.in}),
        mean_(fb::DType::F32, {shape.rows}),
        rstd_(fb::DType::F32, {shape.rows}),
        preactivation_(dtype, {shape.rows, shape.out}),
        result_(layer.wide ? fb::DType::F32 : dtype, {shape.rows, shape.out}),
        norm_key_(layer.centred ? "layernorm" : "rmsnorm"),
        linear_key_(layer.fused ? "fused_linear" : "linear") {
    unsigned seed = 0;
    for (SharedTensor* tensor : {&x_, &gamma_, &beta_, &weight_, &bias_, &residual_}) tensor->fill(++seed);
    std::memset(state_.view().data, 0, static_cast<size_t>(state_.view().bytes()));
    if (layer.centred) {
      norm_op_.Set(fb::LayerNormT());
      norm_ = {
          {x_, gamma_, layer.norm_bias ? beta_.view() : TensorView{}}, {y_, mean_, rstd_}, {}, &norm_op_};
    } else {
      norm_op_.Set(fb::RmsNormT());
      norm_ = {{x_, gamma_}, {y_, rstd_}, {}, &norm_op_};
    }
    fb::FusedLinearT fused;
    fused.activation = fb::Activation::Gelu;
    fused.dropout_p = 0.25f;
    linear_op_.Set(std::move(fused));
    linear_ = {{y_, weight_, bias_}, {result_}, {}, &linear_op_};
    if (!layer.fused) return;
    linear_.inputs.insert(linear_.inputs.end(), {residual_, state_});
    linear_.outputs.push_back(preactivation_);
  }

  /// Lets the layer overwrite the norm's `input`, or take the norm's result for its weights.
  void reuse(bool input) {
    if (input)
      linear_.outputs[0] = x_.view();
    else
      linear_.inputs[1] = y_.view();
  }

  bool is_joined() const { return find().calls == 2; }

  void check() {
    const cuda::CudaContext context = this_device();
    REQUIRE(cuda::find_kernel(norm_key_)(norm_, context) == cudaSuccess);
    REQUIRE(cuda::find_kernel(linear_key_)(linear_, context) == cudaSuccess);
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    const std::vector<std::vector<unsigned char>> alone = results();
    for (SharedTensor* tensor : written()) forget(*tensor);
    REQUIRE(is_joined());
    const cuda::CallRun run = find();
    REQUIRE(run.launches.size() == 1);
    REQUIRE(run.launches[0].enqueue(calls_, context) == cudaSuccess);
    REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    CHECK(results() == alone);
  }

 private:
  cuda::CallRun find() const { return cuda::find_call_run(calls_, this_device()); }
  std::vector<SharedTensor*> written() { return {&y_, &mean_, &rstd_, &preactivation_, &result_}; }
  std::vector<std::vector<unsigned char>> results() {
    std::vector<std::vector<unsigned char>> all;
    for (const SharedTensor* tensor : written()) all.push_back(bytes(*tensor));
    return all;
  }

  SharedTensor x_, gamma_, beta_, weight_, bias_, residual_, state_, y_, mean_, rstd_, preactivation_,
      result_;
  std::string norm_key_, linear_key_;
  fb::OpUnion norm_op_, linear_op_;
  KernelCall norm_, linear_;
  const std::vector<cuda::KeyedCall> calls_ = {{norm_key_, &norm_}, {linear_key_, &linear_}};
};

}  // namespace

TEST_SUITE_BEGIN("gpu");

TEST_CASE("a norm and the linear layer behind it in one launch have the bits of two") {
  if (!cuda::kernels_can_overlap()) {
    MESSAGE("no calls are joined on this GPU");
    return;
  }
  for (const fb::DType dtype : {fb::DType::BF16, fb::DType::F32})
    for (const Shape& shape :
         {Shape{1024, 128, 384}, Shape{1024, 128, 512}, Shape{1024, 128, 74}, Shape{999, 128, 500},
          Shape{1, 128, 8}, Shape{77, 72, 130}, Shape{640, 8, 1024}, Shape{33, 64, 40}})
      for (const Layer& layer :
           {Layer{true, true, false, false}, Layer{true, false, true, false}, Layer{true, true, true, false},
            Layer{false, false, false, true}, Layer{false, false, true, false}}) {
        CAPTURE(fb::EnumNameDType(dtype));
        CAPTURE(shape.rows);
        CAPTURE(shape.in);
        CAPTURE(shape.out);
        CAPTURE(layer.centred);
        CAPTURE(layer.fused);
        NormLinear(dtype, shape, layer).check();
      }
}

TEST_CASE(
    "a layer that overwrites what the norm reads, or reads what it writes as something else, is not joined") {
  for (const bool input : {true, false}) {
    NormLinear calls(fb::DType::BF16, {64, 64, 64}, {true, true, false, false});
    REQUIRE(calls.is_joined());
    calls.reuse(input);
    CHECK(!calls.is_joined());
  }
}

TEST_CASE("rows of a norm that a tile does not read at once, or in runs, are not joined") {
  const Layer layer{true, true, false, false};
  for (const Shape& shape : {Shape{64, 136, 64}, Shape{64, 100, 64}, Shape{64, 512, 64}})
    CHECK(!NormLinear(fb::DType::BF16, shape, layer).is_joined());
  CHECK(!NormLinear(fb::DType::F32, {64, 130, 64}, layer).is_joined());
  CHECK(!NormLinear(fb::DType::F32, {64, 126, 64}, layer).is_joined());
}

TEST_SUITE_END();

}  // namespace moec::test
