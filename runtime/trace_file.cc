#include "runtime/trace_file.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "runtime/file_io.h"
#include "runtime/guard.h"

namespace moec::runtime {
namespace {

using nlohmann::json;

enum Track { kReplayTrack = 1, kInstructionTrack = 2 };

json name_of_track(Track track, const std::string& name) {
  return {{"ph", "M"}, {"pid", 1}, {"tid", track}, {"name", "thread_name"}, {"args", {{"name", name}}}};
}

/// A complete event; the format counts in microseconds.
json event(Track track, const TimeSpan& time, double shift, const std::string& name) {
  return {{"ph", "X"},    {"pid", 1},
          {"tid", track}, {"ts", 1e6 * (time.begin + shift)},
          {"name", name}, {"dur", 1e6 * (time.end - time.begin)}};
}

json instruction_event(const InstructionSpan& span, double shift, const fb::PlanT& plan,
                       const Ceilings& ceilings) {
  const fb::ProgramT& program = *plan.programs[span.program];
  const fb::InstructionT& instruction = *program.instructions[span.instruction];
  json result = event(kInstructionTrack, span.time, shift, instruction.label);
  json args = {{"program", fb::EnumNameProgramKind(program.kind)},
               {"instruction", span.instruction},
               {"kernel", instruction.kernel},
               {"flops", instruction.flops},
               {"bytes", instruction.bytes}};
  const double seconds = span.time.end - span.time.begin;
  if (seconds > 0 && (ceilings.flops > 0 || ceilings.bytes > 0)) {
    const auto share = [&](uint64_t work, double ceiling) {
      return ceiling > 0 ? static_cast<double>(work) / seconds / ceiling : 0;
    };
    args["% of ceiling"] =
        100 * std::max(share(instruction.flops, ceilings.flops), share(instruction.bytes, ceilings.bytes));
  }
  result["cat"] = instruction.kernel;
  result["args"] = std::move(args);
  return result;
}

}  // namespace

Status write_trace_file(const std::string& path, const fb::PlanT& plan, const StepTrace& trace,
                        const Ceilings& ceilings) {
  return guarded("writing " + path, [&]() -> Status {
    constexpr double kBetween = 1e-3;  // seconds, from one recording to the next
    json events = json::array();
    double end = 0;
    if (!trace.replays.replays.empty())
      events.push_back(name_of_track(kReplayTrack, "replays (" + trace.replays.method + ")"));
    for (const TimeSpan& replay : trace.replays.replays) {
      events.push_back(event(kReplayTrack, replay, 0, "replay"));
      end = std::max(end, replay.end);
    }
    events.push_back(name_of_track(kInstructionTrack, "instructions (" + trace.instructions.method + ")"));
    for (const InstructionSpan& span : trace.instructions.instructions)
      events.push_back(instruction_event(span, end + kBetween, plan, ceilings));
    return write_file(path, json{{"displayTimeUnit", "ns"}, {"traceEvents", std::move(events)}}.dump());
  });
}

}  // namespace moec::runtime
