// Traces for people: https://ui.perfetto.dev or chrome://tracing opens them.
#pragma once

#include <string>

#include "plan_generated.h"
#include "runtime/ceilings.h"
#include "runtime/status.h"
#include "runtime/step_tracer.h"

namespace moec::runtime {

/// Writes the trace in the JSON array format of Chrome's trace events: one track of replays, one of
/// instructions, each with its label, kernel, FLOPs, bytes, and its per cent of the ceiling that it is
/// nearest to, where ceilings are known. The recordings follow each other on the time axis.
Status write_trace_file(const std::string& path, const fb::PlanT& plan, const StepTrace& trace,
                        const Ceilings& ceilings);

}  // namespace moec::runtime
