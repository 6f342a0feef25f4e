#include <set>

#include "kernels/shuffle.h"
#include "tests/kernels/train_state_tensor.h"

namespace moec::test {
namespace {

TEST_CASE("shuffled_index is a permutation of [0, n)") {
  for (uint64_t n : {1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 100, 1000, 1023, 1025, 4097})
    for (uint32_t epoch : {0u, 1u, 77u}) {
      std::vector<bool> seen(n);
      for (uint64_t i = 0; i < n; ++i) {
        const uint64_t index = shuffled_index(5, epoch, n, i);
        REQUIRE(index < n);
        REQUIRE(!seen[index]);
        seen[index] = true;
      }
    }
}

TEST_CASE("shuffled_index differs between epochs and seeds and moves elements far") {
  constexpr uint64_t kN = 1000;
  const auto order = [](uint64_t seed, uint32_t epoch) {
    std::vector<uint64_t> indices;
    for (uint64_t i = 0; i < kN; ++i) indices.push_back(shuffled_index(seed, epoch, kN, i));
    return indices;
  };
  const auto base = order(1, 0);
  CHECK(base != order(1, 1));
  CHECK(base != order(2, 0));
  // The mean distance |index - i| of a random permutation is n/3, with a standard error of about 7 here.
  double distance = 0;
  for (uint64_t i = 0; i < kN; ++i)
    distance += std::abs(static_cast<double>(base[i]) - static_cast<double>(i)) / kN;
  CHECK(std::abs(distance - kN / 3.0) < 40);
}

TEST_CASE("shuffled_index reaches every place from every place, even of a small set") {
  for (uint64_t n : {3, 5}) {
    std::vector<std::set<uint64_t>> reached(n);
    for (uint32_t epoch = 0; epoch < 200; ++epoch)
      for (uint64_t i = 0; i < n; ++i) reached[i].insert(shuffled_index(0, epoch, n, i));
    for (const auto& places : reached) CHECK(places.size() == n);
  }
}

constexpr int64_t kBatch = 3, kSeqLen = 10;

struct Batch {
  Tensor tokens{fb::DType::I32, {kBatch, kSeqLen}}, targets{fb::DType::I32, {kBatch, kSeqLen}};
};

/// A window with room for more tokens than are valid; token i is i, what lies behind is -1.
Tensor counting_window(int64_t valid) {
  Tensor window(fb::DType::I32, {valid + 100});
  for (int64_t i = 0; i < valid; ++i) window.set(i, static_cast<double>(i));
  return window;
}

Batch load(fb::Sampling sampling, const TrainState& state, bool evaluate = false) {
  Batch batch;
  fb::LoadBatchT attrs;
  attrs.sampling = sampling;
  attrs.evaluate = evaluate;
  run("load_batch", attrs, {counting_window(state.window_tokens), state_tensor(state)},
      {batch.tokens, batch.targets});
  for (int64_t i = 0; i < batch.tokens.elements(); ++i) {
    REQUIRE(batch.tokens.get(i) >= 0);
    REQUIRE(batch.targets.get(i) == batch.tokens.get(i) + 1);  // the next token, within the valid ones
    if (i % kSeqLen > 0) REQUIRE(batch.tokens.get(i) == batch.tokens.get(i - 1) + 1);
  }
  return batch;
}

TEST_CASE("random batches start anywhere that leaves room for the last target") {
  TrainState state;
  state.window_tokens = 31;  // starts 0 .. 20
  std::set<double> starts;
  for (state.micro_batch = 0; state.micro_batch < 200; ++state.micro_batch) {
    const Batch batch = load(fb::Sampling::RandomOffset, state);
    for (int64_t b = 0; b < kBatch; ++b) starts.insert(batch.tokens.get(b * kSeqLen));
  }
  CHECK(starts.size() == 21);
  state.window_tokens = kSeqLen + 1;
  CHECK(load(fb::Sampling::RandomOffset, state).tokens.get(0) == 0);
}

TEST_CASE("an epoch visits every sequence once, across batch borders, in another order each time") {
  TrainState state;
  state.window_tokens = 7 * kSeqLen + 3;  // 7 whole sequences with targets
  std::vector<double> starts;
  for (state.micro_batch = 0; state.micro_batch < 14; ++state.micro_batch) {
    const Batch batch = load(fb::Sampling::Epoch, state);
    for (int64_t b = 0; b < kBatch; ++b) starts.push_back(batch.tokens.get(b * kSeqLen));
  }
  std::set<std::vector<double>> orders;
  for (size_t epoch = 0; epoch < 6; ++epoch) {
    const std::vector<double> order(starts.begin() + static_cast<int64_t>(7 * epoch),
                                    starts.begin() + static_cast<int64_t>(7 * epoch + 7));
    CHECK(std::set<double>(order.begin(), order.end()) == std::set<double>{0, 10, 20, 30, 40, 50, 60});
    orders.insert(order);
  }
  CHECK(orders.size() > 3);
}

TEST_CASE("sequential batches follow their own counter, in training and in evaluation, and wrap around") {
  for (const bool evaluate : {false, true}) {
    TrainState state;
    state.window_tokens = 4 * kSeqLen + 1;
    (evaluate ? state.micro_batch : state.eval_batch) = 99;
    int64_t& counter = evaluate ? state.eval_batch : state.micro_batch;
    std::vector<double> starts;
    for (counter = 0; counter < 2; ++counter) {
      const Batch batch = load(fb::Sampling::Sequential, state, evaluate);
      for (int64_t b = 0; b < kBatch; ++b) starts.push_back(batch.tokens.get(b * kSeqLen));
    }
    CHECK(starts == std::vector<double>{0, 10, 20, 30, 0, 10});
  }
}

TEST_CASE("select_token takes the row of the last token of each sequence") {
  Random random;
  for (fb::DType dtype : kFloatTypes) {
    const Tensor x = random.normal(dtype, {3, 7, 5});
    Tensor y(dtype, {3, 1, 5});
    TrainState state;
    for (int64_t last : {0, 4, 6}) {
      state.last_token = last;
      run("select_token", fb::SelectTokenT{}, {x, state_tensor(state)}, {y});
      for (int64_t i = 0; i < 15; ++i) CHECK(y.get(i) == x.get((i / 5 * 7 + last) * 5 + i % 5));
    }
  }
}

}  // namespace
}  // namespace moec::test
