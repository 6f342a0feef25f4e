#include "tools/plan_diff.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "tools/plan_report.h"
#include "tools/plan_stats.h"
#include "tools/units.h"

namespace moec::tools {
namespace {

constexpr size_t kGroupsShown = 12;

std::string row(const std::string& name, const std::string& a, const std::string& b,
                const std::string& change = "") {
  const std::string line = fmt::format("  {:<22} {:>14} {:>14} {:>9}", name, a, b, change);
  return line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
}

/// "+12.5%", "=" where nothing changes, "new" from nothing.
std::string change_text(double a, double b) {
  if (a == b) return "=";
  if (a == 0) return "new";
  if (b == 0) return "gone";
  return fmt::format("{:+.1f}%", 100 * (b - a) / a);
}

template <class T>
std::string number_row(const std::string& name, T a, T b, std::string (*text)(T)) {
  return row(name, text(a), text(b), change_text(static_cast<double>(a), static_cast<double>(b)));
}

std::string flops_text(double flops) { return si_text(flops, "FLOP"); }
std::string traffic_text(double bytes) { return si_text(bytes, "B"); }

std::string title(const std::string& text) { return fmt::format("\n{}\n", text); }

std::string settings(const fb::PlanT& a, const fb::PlanT& b) {
  std::map<std::string, std::pair<std::string, std::string>> both;
  const auto enter = [&](const fb::PlanT& plan, auto member) {
    for (const auto& [name, text] : recipe_rows(*plan.recipe)) both[name].*member = text;
    both["model"].*member = plan.model->name;
    both["parameters"].*member = with_commas(plan.total_parameters);
    both["times are for"].*member = plan.cost_model;
    both["tuned for"].*member = plan.tuned_for;
  };
  enter(a, &std::pair<std::string, std::string>::first);
  enter(b, &std::pair<std::string, std::string>::second);
  std::string text;
  for (const auto& [name, values] : both)
    if (values.first != values.second)
      text += fmt::format("  {:<22} {} -> {}\n", name, values.first.empty() ? "none" : values.first,
                          values.second.empty() ? "none" : values.second);
  return title("Settings") + (text.empty() ? "  the same\n" : text);
}

std::string memory(const fb::PlanT& a, const fb::PlanT& b) {
  std::string text = title("Memory") + row("", "A", "B", "change");
  for (const fb::ArenaKind kind : fb::EnumValuesArenaKind())
    text += number_row(std::string(fb::EnumNameArenaKind(kind)), arena_size(a, kind), arena_size(b, kind),
                       bytes_text);
  text += number_row("all arenas", device_bytes(a), device_bytes(b), bytes_text);
  text += number_row("lower bound", a.activations_lower_bound, b.activations_lower_bound, bytes_text);
  return text + number_row("saved by order", a.saved_by_order, b.saved_by_order, bytes_text);
}

KernelCost sum(const std::vector<KernelCost>& costs) {
  KernelCost all;
  for (const KernelCost& cost : costs) {
    all.calls += cost.calls;
    all.flops += cost.flops;
    all.bytes += cost.bytes;
    all.seconds += cost.seconds;
  }
  return all;
}

std::string work(const fb::PlanT& a, const fb::PlanT& b) {
  const KernelCost cost_a = sum(step_costs(a)), cost_b = sum(step_costs(b));
  const PredictedTime time_a = predicted_time(a), time_b = predicted_time(b);
  const auto tokens_a = tokens_per_step(*a.recipe), tokens_b = tokens_per_step(*b.recipe);
  const auto rate = [](uint64_t tokens, double seconds) {
    return seconds > 0 ? static_cast<uint64_t>(static_cast<double>(tokens) / seconds) : 0;
  };
  return title("One step") + row("", "A", "B", "change") +
         number_row("tokens", tokens_a, tokens_b, with_commas) +
         number_row("kernel calls", cost_a.calls, cost_b.calls, with_commas) +
         number_row("arithmetic", cost_a.flops, cost_b.flops, flops_text) +
         number_row("memory traffic", cost_a.bytes, cost_b.bytes, traffic_text) +
         number_row("predicted time", time_a.seconds, time_b.seconds, short_time_text) +
         number_row("  of it recompute", time_a.again, time_b.again, short_time_text) +
         number_row("tokens per second", rate(tokens_a, time_a.seconds), rate(tokens_b, time_b.seconds),
                    with_commas);
}

struct CostPair {
  KernelCost a, b;
  double slower() const { return b.seconds - a.seconds; }
  bool differs() const {
    return a.calls != b.calls || a.flops != b.flops || a.bytes != b.bytes || a.seconds != b.seconds;
  }
};

/// "A -> B", or the value that both have.
template <class T>
std::string both_text(T a, T b, std::string (*text)(T)) {
  return a == b ? text(a) : text(a) + " -> " + text(b);
}

std::string signed_time_text(double seconds) {
  if (seconds == 0) return "=";
  return fmt::format("{}{}", seconds > 0 ? '+' : '-', short_time_text(std::abs(seconds)));
}

std::string kernels(const fb::PlanT& a, const fb::PlanT& b) {
  std::map<std::string, CostPair> by_kernel;
  for (const KernelCost& cost : step_costs(a)) by_kernel[cost.kernel].a = cost;
  for (const KernelCost& cost : step_costs(b)) by_kernel[cost.kernel].b = cost;
  std::vector<std::pair<std::string, CostPair>> changed;
  for (const auto& [kernel, pair] : by_kernel)
    if (pair.differs()) changed.emplace_back(kernel, pair);
  std::stable_sort(changed.begin(), changed.end(), [](const auto& x, const auto& y) {
    return std::abs(x.second.slower()) > std::abs(y.second.slower());
  });
  std::string text = title("Kernels that change, A -> B");
  if (changed.empty()) return text + "  none\n";
  text += fmt::format("  {:<32} {:>14} {:>28} {:>22} {:>20} {:>11}\n", "kernel", "calls", "arithmetic",
                      "traffic", "predicted", "change");
  for (const auto& [kernel, pair] : changed) {
    const double slower = pair.slower();
    text += fmt::format("  {:<32} {:>14} {:>28} {:>22} {:>20} {:>11}\n", kernel,
                        both_text(pair.a.calls, pair.b.calls, with_commas),
                        both_text(pair.a.flops, pair.b.flops, flops_text),
                        both_text(pair.a.bytes, pair.b.bytes, traffic_text),
                        both_text(pair.a.seconds, pair.b.seconds, short_time_text), signed_time_text(slower));
  }
  return text;
}

/// "block.*.up" for "block.7.up": one name for the same value of all repetitions of a block.
std::string without_repetition(const std::string& name) {
  const size_t dot = name.find('.');
  const size_t end = dot == std::string::npos ? dot : name.find_first_not_of("0123456789", dot + 1);
  if (end == std::string::npos || end == dot + 1 || name[end] != '.') return name;
  return name.substr(0, dot) + ".*" + name.substr(end);
}

struct Group {
  uint64_t bytes = 0;
  size_t buffers = 0;
};

/// Buffers that are live at the peak of accumulate, those of a block's repetitions together.
std::map<std::string, Group> peak_groups(const fb::PlanT& plan) {
  std::map<std::string, Group> groups;
  const int program = program_index(plan, fb::ProgramKind::Accumulate);
  if (program < 0) return groups;
  for (const fb::BufferT* buffer : program_memory(plan, static_cast<size_t>(program)).live_at_peak) {
    Group& group = groups[without_repetition(buffer->name)];
    group.bytes += buffer->size;
    ++group.buffers;
  }
  return groups;
}

std::string peak_line(const std::string& name, const fb::PlanT& plan) {
  const int index = program_index(plan, fb::ProgramKind::Accumulate);
  if (index < 0) return fmt::format("  {} has no program accumulate\n", name);
  const ProgramMemory memory = program_memory(plan, static_cast<size_t>(index));
  if (memory.live_peak == 0) return fmt::format("  {} keeps nothing in the activation arena\n", name);
  const fb::InstructionT& peak = *plan.programs[index]->instructions[memory.peak_instruction];
  return fmt::format("  {}: {} live at instruction {}, {} ({})\n", name, bytes_text(memory.live_peak),
                     memory.peak_instruction, peak.label, peak.kernel);
}

struct GroupPair {
  Group a, b;
  uint64_t distance() const { return a.bytes > b.bytes ? a.bytes - b.bytes : b.bytes - a.bytes; }
};

std::string peaks(const fb::PlanT& a, const fb::PlanT& b) {
  std::map<std::string, GroupPair> groups;
  for (const auto& [name, group] : peak_groups(a)) groups[name].a = group;
  for (const auto& [name, group] : peak_groups(b)) groups[name].b = group;
  std::vector<std::pair<std::string, GroupPair>> changed;
  for (const auto& entry : groups)
    if (entry.second.distance() > 0) changed.push_back(entry);
  std::stable_sort(changed.begin(), changed.end(),
                   [](const auto& x, const auto& y) { return x.second.distance() > y.second.distance(); });
  std::string text = title("Peak of accumulate") + peak_line("A", a) + peak_line("B", b);
  if (changed.empty()) return text + "  the same buffers are live\n";
  text += fmt::format("  {:>18} {:>18} {:>9}  {}\n", "A", "B", "change", "live there");
  const auto presence = [](const Group& group) {
    if (group.buffers == 0) return std::string("-");
    return fmt::format("{} in {:>3}", bytes_text(group.bytes), group.buffers);
  };
  const size_t shown = std::min(kGroupsShown, changed.size());
  for (size_t i = 0; i < shown; ++i) {
    const auto& [name, pair] = changed[i];
    text +=
        fmt::format("  {:>18} {:>18} {:>9}  {}\n", presence(pair.a), presence(pair.b),
                    change_text(static_cast<double>(pair.a.bytes), static_cast<double>(pair.b.bytes)), name);
  }
  if (shown < changed.size())
    text += fmt::format("  and {} more that differ by less\n", changed.size() - shown);
  return text;
}

}  // namespace

std::string difference(const fb::PlanT& a, const fb::PlanT& b) {
  return settings(a, b) + memory(a, b) + work(a, b) + kernels(a, b) + peaks(a, b);
}

}  // namespace moec::tools
