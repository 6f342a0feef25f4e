// The independent checker of plans. It shares no code with the planner: it walks the programs of a plan file
// and re-derives from the bytes alone which tensor every address holds.
#pragma once

#include <string>
#include <vector>

#include "plan_generated.h"

namespace moec::planner {

/// Checks a plan that has passed the FlatBuffers verifier: ids in range, sizes without overflow, tensors
/// inside buffers, buffers inside arenas, the host's tensors of the types and shapes it reads and writes,
/// kernels known with the operands they declare, parameters written by Init, a sound recipe, and, by walking
/// each program, that every read finds the very tensor version it names unharmed, that outputs overlap inputs
/// only where the catalog allows it, and that stated lifetimes and the lower bound are true. Returns one line
/// per fault found (program, instruction, tensor); empty when the plan is sound.
std::vector<std::string> validate(const fb::Plan& plan);

}  // namespace moec::planner
