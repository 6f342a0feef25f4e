// Running steps again instead of keeping what they wrote: the trade of time for memory.
#pragma once

#include <cstdint>
#include <vector>

#include "planner/planner.h"

namespace moec::planner {

/// A program with a forward and a backward pass. Values of the forward pass that the backward pass reads are
/// kept in between, unless the steps that made them are run again.
struct RecomputeProblem {
  Problem memory;
  std::vector<double> seconds;   // per step
  std::vector<bool> repeatable;  // per step: run again in the backward pass, it writes the same
  int turn = 0;                  // the first step of the backward pass
};

/// The program with repeats. Original values keep their numbers; those after them are written by repeats.
struct RepeatingProgram {
  Problem problem;
  std::vector<int> step;     // per step: the original step that it runs; its values stand in the same order
  std::vector<bool> repeat;  // per step: whether that step has run before
  double extra_seconds = 0;  // of all repeats
};

/// The program in which the backward pass does not keep what the `dropped` steps wrote (per original step):
/// the first step that needs it runs them again, inputs first, and what they write is kept from there.
RepeatingProgram repeat_dropped(const RecomputeProblem& problem, const std::vector<bool>& dropped);

/// One way to run the program.
struct Alternative {
  std::vector<bool> dropped;
  uint64_t live_bytes = 0;  // the most bytes live at one step
  double extra_seconds = 0;
};

/// Ways to run the program, the fastest first, each slower than the one before and with less memory; the
/// first one drops nothing. Found by a greedy search: at the step where most bytes are live, drop what frees
/// most bytes per second of repeats, together with those inputs that are not there any more, as long as the
/// peak falls. The work is bounded by a count, so that the result does not depend on the machine.
std::vector<Alternative> recompute_alternatives(const RecomputeProblem& problem);

}  // namespace moec::planner
