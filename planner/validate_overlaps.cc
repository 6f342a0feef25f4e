#include "planner/validate_overlaps.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <numeric>
#include <optional>

namespace moec::planner {
namespace {

using LiveBuffers = std::map<uint64_t, size_t>;  // by offset; disjoint

/// A live buffer that shares bytes with `buffer`. The live ones are disjoint, so it can only be a neighbour.
std::optional<size_t> under(const LiveBuffers& live, const std::vector<PlacedBuffer>& buffers,
                            const PlacedBuffer& buffer) {
  const auto next = live.lower_bound(buffer.offset);
  if (next != live.end() && next->first < buffer.offset + buffer.size) return next->second;
  if (next == live.begin()) return std::nullopt;
  const auto [offset, previous] = *std::prev(next);
  if (offset + buffers[previous].size > buffer.offset) return previous;
  return std::nullopt;
}

}  // namespace

Overlaps find_overlaps(const std::vector<PlacedBuffer>& buffers, uint64_t alignment) {
  std::vector<size_t> starts(buffers.size());
  std::iota(starts.begin(), starts.end(), size_t{0});
  std::vector<size_t> ends = starts;
  std::ranges::stable_sort(starts, {}, [&](size_t b) { return buffers[b].first; });
  std::ranges::stable_sort(ends, {}, [&](size_t b) { return buffers[b].last; });
  const auto rounded = [&](size_t b) { return (buffers[b].size + alignment - 1) / alignment * alignment; };
  Overlaps found;
  LiveBuffers live;
  uint64_t bytes = 0;
  auto dead = ends.begin();
  for (const size_t b : starts) {
    for (; buffers[*dead].last < buffers[b].first; ++dead) {
      bytes -= rounded(*dead);
      const auto gone = live.find(buffers[*dead].offset);
      if (gone != live.end() && gone->second == *dead) live.erase(gone);
    }
    bytes += rounded(b);
    found.most_live_bytes = std::max(found.most_live_bytes, bytes);
    if (buffers[b].size == 0) continue;
    if (const auto other = under(live, buffers, buffers[b]))
      found.pairs.emplace_back(b, *other);
    else
      live.emplace(buffers[b].offset, b);
  }
  return found;
}

}  // namespace moec::planner
