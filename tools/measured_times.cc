#include "tools/measured_times.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "runtime/file_io.h"

namespace moec::tools {

Result<std::map<std::string, double>> read_measured_times(const std::string& path) {
  MOEC_ASSIGN_OR_RETURN(const std::string text, runtime::read_file(path));
  const auto file = nlohmann::json::parse(text, nullptr, false);
  if (!file.is_object() || !file.contains("benchmarks") || !file["benchmarks"].is_array())
    return input_error(fmt::format("{}: not what moebench --benchmark_format=json writes", path));
  std::map<std::string, double> seconds;
  for (const auto& row : file["benchmarks"]) {
    const auto has = [&](const char* key, auto type) { return row.contains(key) && (row[key].*type)(); };
    if (!row.is_object() || !has("name", &nlohmann::json::is_string) ||
        !has("median_us", &nlohmann::json::is_number))
      continue;
    // "kernel/<kernel>/<model>/<shapes>", with what Google Benchmark appends.
    const std::string name = row["name"];
    const double microseconds = row["median_us"];
    const size_t kernel = name.find('/'), model = name.find('/', kernel + 1),
                 shapes = name.find('/', model + 1);
    if (!name.starts_with("kernel/") || shapes == name.npos || microseconds <= 0) continue;
    const size_t end = name.find('/', shapes + 1);
    seconds[name.substr(kernel + 1, model - kernel - 1) + name.substr(shapes, end - shapes)] =
        microseconds * 1e-6;
  }
  if (seconds.empty()) return input_error(fmt::format("{}: holds no kernel rows", path));
  return seconds;
}

}  // namespace moec::tools
