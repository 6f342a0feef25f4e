#include "tools/place_csv.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <string_view>

namespace moec::tools {
namespace {

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (size_t end = text.find(separator); end != text.npos; end = text.find(separator)) {
    parts.push_back(text.substr(0, end));
    text.remove_prefix(end + 1);
  }
  parts.push_back(text);
  return parts;
}

std::optional<int64_t> parse_number(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0) return std::nullopt;
  return value;
}

/// A row's times before they are counted.
struct Interval {
  int64_t lower = 0, upper = 0;
};

class Parser {
 public:
  explicit Parser(const std::string& path) : path_(path) {}

  Result<PlacementProblem> parse(std::string_view text) {
    if (constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf"; text.starts_with(kByteOrderMark))
      text.remove_prefix(kByteOrderMark.size());
    for (std::string_view line : split(text, '\n')) {
      ++line_;
      if (line.ends_with('\r')) line.remove_suffix(1);
      if (line.empty()) continue;
      const std::vector<std::string_view> fields = split(line, ',');
      MOEC_RETURN_IF_ERROR(columns_.empty() ? add_header(fields) : add_buffer(fields));
      problem_.rows.push_back(row(fields));
    }
    if (columns_.empty())
      return input_error(fmt::format("{}: no header with the columns {}", path_, kNeeded));
    count_times();
    return std::move(problem_);
  }

 private:
  enum Column { kId, kLower, kUpper, kSize, kOffset };
  static constexpr std::array<std::string_view, 5> kNames = {"id", "lower", "upper", "size", "offset"};
  static constexpr std::string_view kNeeded = "id, lower, upper and size";

  Error fault(const std::string& what) const {
    return input_error(fmt::format("{}:{}: {}", path_, line_, what));
  }

  Status add_header(const std::vector<std::string_view>& fields) {
    for (const std::string_view field : fields) {
      const auto name = std::ranges::find(kNames, field);
      if (name == kNames.end())
        return fault(fmt::format("unknown column '{}'; known are {}, and offset", field, kNeeded));
      const auto column = static_cast<Column>(name - kNames.begin());
      if (std::ranges::find(columns_, column) != columns_.end())
        return fault(fmt::format("two columns '{}'", field));
      columns_.push_back(column);
    }
    for (const Column column : {kId, kLower, kUpper, kSize})
      if (std::ranges::find(columns_, column) == columns_.end())
        return fault(fmt::format("the column '{}' is missing", kNames[column]));
    return {};
  }

  Status add_buffer(const std::vector<std::string_view>& fields) {
    if (fields.size() != columns_.size())
      return fault(fmt::format("{} fields, but {} columns", fields.size(), columns_.size()));
    std::array<int64_t, kNames.size()> values{};
    for (size_t i = 0; i < fields.size(); ++i) {
      if (columns_[i] == kId && !ids_.insert(fields[i]).second)
        return fault(fmt::format("a second buffer '{}'", fields[i]));
      if (columns_[i] == kId || columns_[i] == kOffset) continue;
      const std::optional<int64_t> value = parse_number(fields[i]);
      if (!value) return fault(fmt::format("{} '{}' is not a whole number", kNames[columns_[i]], fields[i]));
      values[columns_[i]] = *value;
    }
    if (values[kLower] >= values[kUpper])
      return fault(fmt::format("lower {} is not below upper {}", values[kLower], values[kUpper]));
    intervals_.push_back({values[kLower], values[kUpper]});
    problem_.buffers.push_back({.size = static_cast<uint64_t>(values[kSize]), .first = 0, .last = 0});
    return {};
  }

  std::string row(const std::vector<std::string_view>& fields) const {
    std::string row;
    for (size_t i = 0; i < fields.size(); ++i) {
      if (columns_[i] == kOffset) continue;
      if (!row.empty()) row += ',';
      row += fields[i];
    }
    return row;
  }

  /// Lifetimes in steps: the different times of the file, counted.
  void count_times() {
    std::vector<int64_t> times;
    for (const Interval& interval : intervals_) times.insert(times.end(), {interval.lower, interval.upper});
    std::ranges::sort(times);
    times.erase(std::ranges::unique(times).begin(), times.end());
    const auto step = [&](int64_t time) {
      return static_cast<uint32_t>(std::ranges::lower_bound(times, time) - times.begin());
    };
    for (size_t i = 0; i < intervals_.size(); ++i) {
      problem_.buffers[i].first = step(intervals_[i].lower);
      problem_.buffers[i].last = step(intervals_[i].upper) - 1;
    }
  }

  const std::string& path_;
  size_t line_ = 0;
  std::vector<Column> columns_;
  std::vector<Interval> intervals_;
  std::set<std::string_view> ids_;
  PlacementProblem problem_;
};

}  // namespace

Result<PlacementProblem> parse_placement_csv(const std::string& text, const std::string& path) {
  return Parser(path).parse(text);
}

std::string placement_csv(const PlacementProblem& problem, const std::vector<uint64_t>& offsets) {
  std::string text = problem.rows[0] + ",offset\n";
  for (size_t i = 0; i < offsets.size(); ++i) text += fmt::format("{},{}\n", problem.rows[i + 1], offsets[i]);
  return text;
}

}  // namespace moec::tools
