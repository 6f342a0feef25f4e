#include "tools/units.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <iterator>
#include <string_view>

namespace moec::tools {
namespace {

constexpr std::string_view kByteUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
constexpr std::string_view kDecimalByteUnits[] = {"B", "kB", "MB", "GB", "TB", "PB", "EB"};
static_assert(std::size(kByteUnits) == std::size(kDecimalByteUnits));

/// Three significant digits: 1.23, 12.3, 123.
std::string three_digits(double value) {
  return fmt::format("{:.{}f}", value, value < 9.995 ? 2 : value < 99.95 ? 1 : 0);
}

}  // namespace

std::string with_commas(uint64_t value) {
  std::string text = fmt::format("{}", value);
  for (size_t end = text.size(); end > 3; end -= 3) text.insert(end - 3, 1, ',');
  return text;
}

std::string bytes_text(uint64_t bytes) {
  if (bytes < 1024) return fmt::format("{} B", bytes);
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  for (; value >= 999.5; ++unit) value /= 1024;
  return fmt::format("{} {}", three_digits(value), kByteUnits[unit]);
}

std::optional<uint64_t> parse_bytes(const std::string& text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || !(value >= 0)) return {};
  std::string_view unit(end, static_cast<size_t>(text.data() + text.size() - end));
  unit.remove_prefix(std::min(unit.find_first_not_of(' '), unit.size()));
  if (unit.empty()) unit = kByteUnits[0];
  const auto power_of = [&](const auto& units) {
    return static_cast<int>(std::ranges::find(units, unit) - std::begin(units));
  };
  const int binary = power_of(kByteUnits), decimal = power_of(kDecimalByteUnits);
  constexpr int kUnits = static_cast<int>(std::size(kByteUnits));
  if (binary == kUnits && decimal == kUnits) return {};
  const double bytes = binary < kUnits ? std::ldexp(value, 10 * binary) : value * std::pow(1e3, decimal);
  constexpr double kMost = 1e18;
  if (bytes > kMost) return {};
  return static_cast<uint64_t>(bytes);
}

std::string si_text(double value, const std::string& unit) {
  constexpr const char* kPrefixes[] = {"", "k", "M", "G", "T", "P", "E"};
  size_t prefix = 0;
  for (; value >= 999.5 && prefix + 1 < std::size(kPrefixes); ++prefix) value /= 1000;
  return fmt::format("{} {}{}", prefix == 0 ? fmt::format("{:.0f}", value) : three_digits(value),
                     kPrefixes[prefix], unit);
}

std::string duration_text(double seconds) {
  if (seconds < 0.9995) return fmt::format("{:.0f} ms", seconds * 1e3);
  if (seconds < 99.95) return fmt::format("{:.{}f} s", seconds, seconds < 9.995 ? 2 : 1);
  const auto whole = std::llround(seconds);
  if (whole < 3600) return fmt::format("{} min {:02} s", whole / 60, whole % 60);
  return fmt::format("{} h {:02} min", whole / 3600, whole % 3600 / 60);
}

std::string short_time_text(double seconds) {
  if (seconds < 0.9995e-3) return three_digits(seconds * 1e6) + " us";
  if (seconds < 0.9995) return three_digits(seconds * 1e3) + " ms";
  return three_digits(seconds) + " s";
}

std::string share_text(double part, double whole) {
  return whole > 0 ? fmt::format("{:.1f}%", 100 * part / whole) : "-";
}

}  // namespace moec::tools
