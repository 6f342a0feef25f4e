// Making values again instead of keeping them: the trade of time for memory.
#pragma once

#include <cstdint>
#include <vector>

#include "planner/planner.h"

namespace moec::planner {

/// A step of the backward pass that can make a value of the forward pass again beside its own results, so
/// that nothing behind it needs the value to be kept.
struct Remake {
  int step = 0;
  int value = 0, again = 0;  // `again` holds the same as `value`, and no other step knows it
  Step instead;              // the step as it is when it writes `again`, too
  double seconds = 0;        // by which that takes longer
};

/// A program with a forward and a backward pass. Values of the forward pass that the backward pass reads are
/// kept in between, unless the steps that made them are run again, or a step of the backward pass remakes
/// them.
struct RecomputeProblem {
  Problem memory;
  std::vector<double> seconds;   // per step
  std::vector<bool> repeatable;  // per step: run again in the backward pass, it writes the same
  int turn = 0;                  // the first step of the backward pass
  std::vector<Remake> remakes;   // at most one of a step and one of what a step writes
};

/// What is not kept.
struct Choice {
  std::vector<bool> dropped;  // per step: what it wrote, for the backward pass
  std::vector<bool> remade;   // per remake: its value, for the steps behind
};

/// The program with repeats. Original values keep their numbers; those after them are written by repeats.
struct RepeatingProgram {
  Problem problem;
  std::vector<int> step;     // per step: the original step that it runs; its values stand in the same order
  std::vector<bool> repeat;  // per step: whether that step has run before
  std::vector<bool> remake;  // per step: whether it is what a remake has instead
  double extra_seconds = 0;  // of all repeats and remakes
};

/// The program in which the backward pass does not keep what the dropped steps wrote: the first step that
/// needs it runs them again, inputs first, and what they write is kept from there.
RepeatingProgram repeat_dropped(const RecomputeProblem& problem, const Choice& choice);

/// One way to run the program.
struct Alternative {
  Choice choice;
  uint64_t live_bytes = 0;  // the most bytes live at one step
  double extra_seconds = 0;
};

/// Ways to run the program, the fastest first, each slower than the one before and with less memory; the
/// first one keeps everything. Found by a greedy search: at the step where most bytes are live, drop or
/// remake what frees most bytes per second, together with those inputs that are not there any more, as long
/// as the peak falls. The work is bounded by a count, so that the result does not depend on the machine.
std::vector<Alternative> recompute_alternatives(const RecomputeProblem& problem);

}  // namespace moec::planner
