#include "families.h"

namespace moec::planner {
namespace {

uint32_t below(std::mt19937& random, size_t bound) { return static_cast<uint32_t>(random() % bound); }

}  // namespace

std::vector<Lifetime> random_intervals(std::mt19937& random, size_t count) {
  std::vector<Lifetime> buffers;
  for (size_t i = 0; i < count; ++i) {
    const uint32_t first = below(random, 2 * count), length = below(random, random() % 4 ? 6 : count);
    buffers.push_back({.size = 1 + random() % 100'000, .first = first, .last = first + length});
  }
  return buffers;
}

std::vector<Lifetime> forward_and_backward(std::mt19937& random, size_t count) {
  std::vector<Lifetime> buffers;
  const auto steps = static_cast<uint32_t>(count);
  for (uint32_t step = 0; step < steps / 2; ++step) {
    const uint32_t undone = steps - 1 - step;
    const uint64_t hidden = 256 * (1 + random() % 8);
    buffers.push_back({.size = hidden, .first = step, .last = undone});
    const uint32_t scratch = random() % 2 ? step : undone;
    buffers.push_back(
        {.size = 256 * (1 + random() % 64), .first = scratch, .last = scratch + below(random, 3)});
  }
  return buffers;
}

std::vector<Lifetime> few_huge_many_small(std::mt19937& random, size_t count) {
  std::vector<Lifetime> buffers;
  for (size_t i = 0; i < count; ++i) {
    const bool huge = i % 10 == 0;
    const uint32_t first = below(random, count), length = below(random, huge ? 4 : count / 2 + 1);
    const uint64_t size = huge ? 1'000'000 + random() % 9'000'000 : 1 + random() % 50'000;
    buffers.push_back({.size = size, .first = first, .last = first + length});
  }
  return buffers;
}

std::vector<Lifetime> cut_rectangle(std::mt19937& random, size_t count) {
  std::vector<Lifetime> pieces = {{.size = 1'000'000, .first = 0, .last = static_cast<uint32_t>(count)}};
  while (pieces.size() < count) {
    Lifetime& piece = pieces[below(random, pieces.size())];
    Lifetime rest = piece;
    if (random() % 2 && piece.first < piece.last) {
      piece.last = piece.first + below(random, piece.last - piece.first);
      rest.first = piece.last + 1;
    } else if (piece.size > 1) {
      piece.size = 1 + random() % (piece.size - 1);
      rest.size -= piece.size;
    } else {
      continue;
    }
    pieces.push_back(rest);
  }
  return pieces;
}

}  // namespace moec::planner
