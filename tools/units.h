// Numbers for people.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace moec::tools {

/// "6,882,678,528".
std::string with_commas(uint64_t value);
/// "12 B", "1.50 KiB", "12.8 GiB": three digits in powers of 1024.
std::string bytes_text(uint64_t bytes);
/// The reverse of bytes_text: "139GiB", "1.5 MiB", "4096", and powers of 1000: "5MB"; nothing for other
/// texts.
std::optional<uint64_t> parse_bytes(const std::string& text);
/// "1.23 GFLOP", in powers of 1000; `unit` is FLOP or FLOP/s, for example.
std::string si_text(double value, const std::string& unit);
/// "120 ms", "1.20 s", "45.2 s", "3 min 05 s", "2 h 03 min".
std::string duration_text(double seconds);
/// "12.3 us", "4.56 ms", "1.20 s": three digits.
std::string short_time_text(double seconds);
/// "12.3%" of a whole, "-" of nothing.
std::string share_text(double part, double whole);

}  // namespace moec::tools
