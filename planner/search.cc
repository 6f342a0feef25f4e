#include "planner/search.h"

#include <algorithm>
#include <array>
#include <bit>
#include <functional>
#include <limits>
#include <numeric>
#include <optional>
#include <random>
#include <tuple>
#include <utility>

#include "planner/sections.h"

namespace moec::planner {
namespace {

constexpr uint64_t kNone = std::numeric_limits<uint64_t>::max();

/// Which of several open choices comes first.
enum class Urgency { kLeastSlack, kFewestOptions };

/// What sets one descent apart from another.
struct Strategy {
  Urgency urgency = Urgency::kLeastSlack;
  std::vector<int> rank;  // per block; lower ones are tried first
};

/// How often each section failed; older failures count less with every restart.
class Failures {
 public:
  explicit Failures(size_t sections) : weights_(sections, kUnit) {}

  void add(uint32_t section) { weights_[section] += kUnit; }
  void fade() {
    for (uint64_t& weight : weights_) weight = kUnit + (weight - kUnit) / 2;
  }
  uint64_t weight(uint32_t section) const { return weights_[section]; }

 private:
  static constexpr uint64_t kUnit = 64;
  std::vector<uint64_t> weights_;
};

/// What can come next over a section of a valley: a block that starts at the valley's floor, or none of
/// these.
struct Choice {
  uint32_t section = 0;
  uint32_t blocks = 0;      // that can start at the floor here
  uint64_t raised = kNone;  // the lowest floor without any of them; kNone where that is over the capacity

  uint32_t options() const { return blocks + (raised != kNone); }
};

/// The choices of a region after its floors were raised.
class Choices {
 public:
  Choices(const Sections& sections, uint64_t capacity)
      : sections_(sections), capacity_(capacity), facts_(sections.size()) {}

  /// The choice for which `cost`(choice, slack of its section) is least, weighted by the failures there.
  template <class Cost>
  Choice most_urgent(const Region& region, const Failures& failures, Cost cost) {
    collect(region);
    Choice best;
    uint64_t best_cost = 0, best_weight = 0;
    const auto consider = [&](const Choice& choice, uint64_t slack) {
      const uint64_t weight = failures.weight(choice.section);
      const uint64_t choice_cost = choice.options() == 1 ? 0 : cost(choice, slack);
      if (best.blocks > 0 && choice_cost * best_weight >= best_cost * weight) return;
      best = choice, best_cost = choice_cost, best_weight = weight;
    };
    for (uint32_t first = region.first, last = first; first <= region.last; first = ++last) {
      while (last < region.last && floor(last + 1) == floor(first)) ++last;
      const uint64_t wall = std::min(first > region.first ? floor(first - 1) : kNone,
                                     last < region.last ? floor(last + 1) : kNone);
      if (wall > floor(first)) visit_valley(first, last, wall, consider);
    }
    return best;
  }

  /// The blocks of a choice.
  std::vector<WaitingBlock> blocks(const Region& region, const Choice& choice) const {
    std::vector<WaitingBlock> blocks;
    for (const WaitingBlock& block : region.waiting)
      if (block.first <= choice.section && choice.section <= block.last && starts(block))
        blocks.push_back(block);
    return blocks;
  }

 private:
  /// Of a section.
  struct Facts {
    uint32_t level = 0;  // the first section of the level stretch around it
    // Blocks that lie inside one level stretch, so that they can start at its floor.
    uint32_t beginning = 0, ending = 0;
    uint64_t least_beginning = kNone, least_ending = kNone, least_to_the_right = kNone;  // bytes
  };

  uint64_t floor(uint32_t section) const { return sections_[section].floor; }

  bool starts(const WaitingBlock& block) const {
    return block.lowest == floor(block.first) && facts_[block.first].level == facts_[block.last].level;
  }

  void collect(const Region& region) {
    for (uint32_t s = region.first; s <= region.last; ++s) {
      const bool level = s > region.first && floor(s) == floor(s - 1);
      facts_[s] = {.level = level ? facts_[s - 1].level : s};
    }
    for (const WaitingBlock& block : region.waiting) {
      if (!starts(block)) continue;
      Facts &first = facts_[block.first], &last = facts_[block.last];
      ++first.beginning, ++last.ending;
      first.least_beginning = std::min(first.least_beginning, block.size);
      last.least_ending = std::min(last.least_ending, block.size);
    }
    for (uint32_t s = region.last; s-- > region.first;) {
      const Facts& right = facts_[s + 1];
      if (right.level == facts_[s].level)
        facts_[s].least_to_the_right = std::min(right.least_to_the_right, right.least_beginning);
    }
  }

  /// Considers the choice of each section. A floor is raised to the top of a block beside it or to the wall,
  /// the lower one of the valley's neighbours.
  template <class Consider>
  void visit_valley(uint32_t first, uint32_t last, uint64_t wall, Consider consider) {
    uint32_t blocks = 0;
    uint64_t least_to_the_left = kNone;
    for (uint32_t s = first; s <= last; ++s) {
      const Facts& facts = facts_[s];
      blocks += facts.beginning;
      const uint64_t beside = std::min(least_to_the_left, facts.least_to_the_right);
      const uint64_t raised = std::min(wall, beside == kNone ? kNone : floor(s) + beside);
      const uint64_t slack = capacity_ - floor(s) - sections_[s].load;
      const bool allowed = raised != kNone && raised - floor(s) <= slack;
      consider({.section = s, .blocks = blocks, .raised = allowed ? raised : kNone}, slack);
      blocks -= facts.ending;
      least_to_the_left = std::min(least_to_the_left, facts.least_ending);
    }
  }

  const Sections& sections_;
  uint64_t capacity_;
  std::vector<Facts> facts_;
};

/// Depth-first search with one strategy, cut off at a number of nodes.
class Descent {
 public:
  Descent(Sections& sections, uint64_t capacity, const Strategy& strategy, Failures& failures, Budget& budget,
          uint64_t most_nodes)
      : sections_(sections),
        capacity_(capacity),
        strategy_(strategy),
        failures_(failures),
        budget_(budget),
        most_nodes_(most_nodes),
        choices_(sections, capacity),
        offsets_(strategy.rank.size(), 0) {}

  /// Places what waits in the region. Where that does not succeed, the sections are as before.
  Verdict fill(Region region) {
    const size_t mark = sections_.mark();
    const Verdict verdict = descend(region);
    if (verdict != Verdict::kPlaced) sections_.undo(mark);
    return verdict;
  }

  uint64_t nodes() const { return nodes_; }
  std::vector<uint64_t> take_offsets() { return std::move(offsets_); }

 private:
  Verdict descend(Region region) {
    while (!region.waiting.empty()) {
      if (++nodes_ > most_nodes_ || budget_.spent()) return Verdict::kBudgetSpent;
      uint64_t work = 0;
      const std::optional<uint32_t> overfull = sections_.raise_floors(region, capacity_, work);
      budget_.spend(work);
      if (overfull) {
        failures_.add(*overfull);
        return Verdict::kImpossible;
      }
      const std::vector<Region> parts = sections_.split(region);
      if (parts.size() > 1) return fill_each(parts);
      region = parts[0];
      const Choice choice = most_urgent(region);
      const std::vector<WaitingBlock> blocks = ranked_blocks(region, choice);
      if (choice.options() == 1) {
        place(region, blocks[0]);
        continue;
      }
      const Verdict verdict = try_each(region, blocks);
      if (verdict != Verdict::kImpossible || choice.raised == kNone) return verdict;
      sections_.raise(choice.section, choice.raised);
      focus_ = choice.section;
    }
    return Verdict::kPlaced;
  }

  /// Independent regions: one that cannot be filled fails them all.
  Verdict fill_each(const std::vector<Region>& parts) {
    for (const Region& part : parts)
      if (const Verdict verdict = fill(part); verdict != Verdict::kPlaced) return verdict;
    return Verdict::kPlaced;
  }

  Verdict try_each(const Region& region, const std::vector<WaitingBlock>& blocks) {
    for (const WaitingBlock& block : blocks) {
      const size_t mark = sections_.mark();
      Region rest = region;
      place(rest, block);
      const Verdict verdict = descend(rest);
      if (verdict != Verdict::kImpossible) return verdict;
      sections_.undo(mark);
    }
    return Verdict::kImpossible;
  }

  void place(Region& region, const WaitingBlock& block) {
    sections_.place(region, block.index, block.lowest);
    offsets_[block.index] = block.lowest;
  }

  Choice most_urgent(const Region& region) {
    const Choice choice = choices_.most_urgent(region, failures_, [&](const Choice& c, uint64_t slack) {
      if (strategy_.urgency == Urgency::kLeastSlack) return 1 + slack / (capacity_ / 1024 + 1);
      const uint64_t distance = c.section > focus_ ? c.section - focus_ : focus_ - c.section;
      return 100 * uint64_t{c.options()} + distance;
    });
    focus_ = choice.section;
    return choice;
  }

  /// Those of the choice in the order in which they are tried; of blocks that are alike, one.
  std::vector<WaitingBlock> ranked_blocks(const Region& region, const Choice& choice) const {
    std::vector<WaitingBlock> blocks = choices_.blocks(region, choice);
    std::ranges::sort(blocks, {}, [&](const WaitingBlock& block) { return strategy_.rank[block.index]; });
    std::vector<WaitingBlock> different;
    for (const WaitingBlock& block : blocks) {
      const auto alike = [&](const WaitingBlock& other) {
        return std::tie(other.first, other.last, other.size) == std::tie(block.first, block.last, block.size);
      };
      if (std::ranges::none_of(different, alike)) different.push_back(block);
    }
    return different;
  }

  Sections& sections_;
  uint64_t capacity_;
  const Strategy& strategy_;
  Failures& failures_;
  Budget& budget_;
  uint64_t most_nodes_;
  uint64_t nodes_ = 0;
  Choices choices_;
  uint32_t focus_ = 0;  // the section decided last
  std::vector<uint64_t> offsets_;
};

/// The i-th term, i >= 1, of the sequence 1 1 2 1 1 2 4 1 1 2 1 1 2 4 8 ... of Luby, Sinclair and Zuckerman
/// (1993).
uint64_t luby(uint64_t i) {
  while (!std::has_single_bit(i + 1)) i -= std::bit_floor(i + 1) - 1;
  return (i + 1) / 2;
}

/// The strategy of the n-th descent: each urgency with the widest, the largest and the longest blocks first,
/// and from the second round on with these orders disturbed.
constexpr uint64_t kStrategies = 6;

Strategy make_strategy(const std::vector<Lifetime>& blocks, uint64_t n, std::minstd_rand& draw) {
  std::vector<double> priority;
  for (const Lifetime& block : blocks) {
    const double size = static_cast<double>(block.size), length = block.last - block.first + 1.0;
    const double value = std::array{size * length, size, length}[n % 3];
    priority.push_back(value * static_cast<double>(n < kStrategies ? 1000 : 800 + draw() % 401));
  }
  std::vector<int> order(blocks.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, std::greater{}, [&](int i) { return priority[i]; });
  Strategy strategy{.urgency = n / 3 % 2 == 0 ? Urgency::kLeastSlack : Urgency::kFewestOptions,
                    .rank = std::vector<int>(blocks.size())};
  for (size_t i = 0; i < order.size(); ++i) strategy.rank[order[i]] = static_cast<int>(i);
  return strategy;
}

Layout layout_of(const std::vector<Lifetime>& blocks, std::vector<uint64_t> offsets) {
  Layout layout{.offsets = std::move(offsets), .peak = 0};
  for (size_t i = 0; i < blocks.size(); ++i)
    layout.peak = std::max(layout.peak, layout.offsets[i] + blocks[i].size);
  return layout;
}

}  // namespace

SearchResult search(const std::vector<Lifetime>& blocks, uint64_t capacity, Budget& budget) {
  SearchResult result;
  Sections sections(blocks);
  for (uint32_t s = 0; s < sections.size(); ++s)
    if (sections[s].load > capacity) return {.verdict = Verdict::kImpossible, .layout = {}, .nodes = 0};
  if (blocks.size() > kMostSearchedBlocks) return result;
  Failures failures(sections.size());
  std::minstd_rand draw(1);
  const uint64_t nodes = std::max<uint64_t>(500, blocks.size());
  for (uint64_t n = 0; !budget.spent(); ++n) {
    const Strategy strategy = make_strategy(blocks, n, draw);
    Descent descent(sections, capacity, strategy, failures, budget, nodes * luby(n / kStrategies + 1));
    result.verdict = descent.fill(sections.whole());
    result.nodes += descent.nodes();
    if (result.verdict == Verdict::kPlaced) result.layout = layout_of(blocks, descent.take_offsets());
    if (result.verdict != Verdict::kBudgetSpent) break;
    failures.fade();
  }
  return result;
}

}  // namespace moec::planner
