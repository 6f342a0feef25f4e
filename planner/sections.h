// A placement in progress, by time: how high each section is filled and which blocks still wait for a place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "planner/planner.h"

namespace moec::planner {

/// Steps between which no block starts, so that the same blocks wait or are placed at all of them.
struct Section {
  uint64_t floor = 0;  // no waiting block can start below
  uint64_t load = 0;   // bytes of the waiting blocks
};

/// A block without a place; `first` and `last` are sections.
struct WaitingBlock {
  uint64_t size = 0;
  uint32_t first = 0, last = 0;
  int index = 0;        // in the vector that Sections was made of
  uint64_t lowest = 0;  // the highest of its floors, as of the last Sections::raise_floors
};

/// Sections [first, last] and the blocks that wait there; none of these reaches outside.
struct Region {
  uint32_t first = 0, last = 0;
  std::span<WaitingBlock> waiting;
};

/// Blocks are placed from the bottom upwards: a block's bytes, and what lies below them, are settled for all
/// its sections. Every change can be undone. Regions that do not overlap share nothing.
class Sections {
 public:
  /// Blocks whose steps are sections. Those of 0 bytes do not wait.
  explicit Sections(const std::vector<Lifetime>& blocks);

  Region whole() { return {0, static_cast<uint32_t>(floors_.size()) - 1, waiting_}; }
  size_t size() const { return floors_.size(); }
  Section operator[](uint32_t section) const { return {floors_[section], loads_[section]}; }

  /// Fills gaps that no waiting block can use: raises each floor to the lowest offset that any block waiting
  /// there can have, until nothing changes. Returns a section whose waiting blocks end above `capacity`, if
  /// there is one. Adds the comparisons made to `work`.
  std::optional<uint32_t> raise_floors(const Region& region, uint64_t capacity, uint64_t& work);

  /// Places a waiting block and takes it out of the region.
  void place(Region& region, int index, uint64_t offset);

  void raise(uint32_t section, uint64_t floor) { change(section, {floor, loads_[section]}); }

  /// The smallest regions that together hold all waiting blocks of this one, in the order of time.
  std::vector<Region> split(const Region& region);

  /// The state to which undo() returns, except for the order of a region's waiting blocks.
  size_t mark() const { return changes_.size(); }
  void undo(size_t mark);

 private:
  struct Change {
    uint32_t section = 0;
    Section before;
  };

  void change(uint32_t section, Section now) {
    changes_.push_back({section, (*this)[section]});
    floors_[section] = now.floor;
    loads_[section] = now.load;
  }

  std::vector<uint64_t> floors_, loads_;  // per section
  std::vector<WaitingBlock> waiting_;
  std::vector<Change> changes_;
  std::vector<uint64_t> lowest_;  // scratch of raise_floors, per section
  std::vector<int> crossing_;     // scratch of split, per section
};

}  // namespace moec::planner
