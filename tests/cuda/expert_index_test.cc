// The order of assignments by expert against a stable sort, around the sizes at which other launches make it.
#include <cuda_runtime.h>
#include <doctest/doctest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <span>
#include <vector>

#include "kernels/cuda/cuda_kernels.h"
#include "kernels/workspace.h"
#include "tests/cuda/shared_tensor.h"

namespace moec::test {
namespace {

/// How assignments are spread over experts.
enum class Spread { kEven, kOneExpert, kMostlyOne };

std::vector<int32_t> choose(int64_t assignments, int experts, Spread spread) {
  std::mt19937 random(static_cast<unsigned>(assignments));
  std::uniform_int_distribution<int32_t> any(0, experts - 1), quarter(0, 3);
  std::vector<int32_t> chosen(static_cast<size_t>(assignments));
  for (int32_t& expert : chosen) {
    const bool one = spread == Spread::kOneExpert || (spread == Spread::kMostlyOne && quarter(random) > 0);
    expert = one ? experts - 1 : any(random);
  }
  return chosen;
}

}  // namespace

TEST_SUITE_BEGIN("gpu");

TEST_CASE("assignments are sorted by expert, those of one expert in their order") {
  cuda::CudaContext context;
  context.kernels_overlap = cuda::kernels_can_overlap();
  for (const int experts : {1, 7, 16, 256, 300})
    for (const int64_t assignments : {1, 33, 1023, 1024, 1025, 8192, 8193, 40'000})
      for (const Spread spread : {Spread::kEven, Spread::kOneExpert, Spread::kMostlyOne}) {
        CAPTURE(experts);
        CAPTURE(assignments);
        const std::vector<int32_t> chosen = choose(assignments, experts, spread);
        const SharedTensor keys(fb::DType::I32, {assignments, 1}), offsets(fb::DType::I32, {experts + 1}),
            permutation(fb::DType::I32, {assignments}), inverse(fb::DType::I32, {assignments}),
            counts(fb::DType::I32, {(assignments + kExpertIndexBlock - 1) / kExpertIndexBlock, experts});
        std::ranges::copy(chosen, keys.view().as<int32_t>());
        REQUIRE(cuda::expert_index({.inputs = {keys.view()},
                                    .outputs = {offsets.view(), permutation.view(), inverse.view()},
                                    .workspace = counts.view()},
                                   context) == cudaSuccess);
        REQUIRE(cudaDeviceSynchronize() == cudaSuccess);

        std::vector<int32_t> order(chosen.size());
        std::iota(order.begin(), order.end(), 0);
        std::ranges::stable_sort(order, {}, [&](int32_t a) { return chosen[static_cast<size_t>(a)]; });
        CHECK(std::ranges::equal(order, std::span(permutation.view().as<int32_t>(), order.size())));
        std::vector<int32_t> places(order.size());
        for (size_t place = 0; place < order.size(); ++place)
          places[static_cast<size_t>(order[place])] = static_cast<int32_t>(place);
        CHECK(std::ranges::equal(places, std::span(inverse.view().as<int32_t>(), places.size())));
        for (int expert = 0; expert <= experts; ++expert)
          CHECK(offsets.get(expert) ==
                static_cast<double>(std::ranges::count_if(chosen, [&](int32_t e) { return e < expert; })));
      }
}

TEST_SUITE_END();

}  // namespace moec::test
