#include "runtime/safetensors.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <set>
#include <utility>

#include "runtime/guard.h"

namespace moec::runtime {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

using nlohmann::json;

constexpr uint64_t kMaxHeader = 100'000'000;  // the limit of the reference implementation
constexpr size_t kAlignment = 8;

constexpr std::array<std::pair<std::string_view, fb::DType>, 7> kDTypes = {{{"F64", fb::DType::F64},
                                                                            {"F32", fb::DType::F32},
                                                                            {"BF16", fb::DType::BF16},
                                                                            {"F16", fb::DType::F16},
                                                                            {"I32", fb::DType::I32},
                                                                            {"U16", fb::DType::U16},
                                                                            {"U8", fb::DType::U8}}};

std::string_view dtype_name(fb::DType dtype) {
  return std::find_if(kDTypes.begin(), kDTypes.end(), [&](const auto& d) { return d.second == dtype; })
      ->first;
}

/// Bytes of a tensor, or nothing when they do not fit 64 bits.
std::optional<uint64_t> byte_size(fb::DType dtype, const std::vector<uint64_t>& shape) {
  auto size = static_cast<uint64_t>(dtype_size(dtype));
  for (const uint64_t extent : shape)
    if (__builtin_mul_overflow(size, extent, &size)) return std::nullopt;
  return size;
}

/// Parses a header; a name that occurs twice is an error, where the JSON library would keep one silently.
json parse_json(std::string_view text) {
  std::set<std::string> names;
  return json::parse(text, [&](int depth, json::parse_event_t event, json& value) {
    if (event == json::parse_event_t::key && depth == 1 && !names.insert(value.get<std::string>()).second)
      throw std::invalid_argument("'" + value.get<std::string>() + "' occurs twice");
    return true;
  });
}

/// One entry of the header; throws what the JSON library throws when a field is missing or of the wrong kind.
Result<Safetensors::Entry> parse_entry(const std::string& name, const json& fields,
                                       std::span<const std::byte> data) {
  Safetensors::Entry entry{.info = {.name = name, .dtype = {}, .shape = {}}, .data = {}};
  const auto dtype = fields.at("dtype").get<std::string>();
  const auto known =
      std::find_if(kDTypes.begin(), kDTypes.end(), [&](const auto& d) { return d.first == dtype; });
  if (known == kDTypes.end())
    return input_error(fmt::format("tensor '{}' has the unknown type '{}'", name, dtype));
  entry.info.dtype = known->second;
  for (const json& extent : fields.at("shape")) {
    if (!extent.is_number_unsigned())
      return input_error(fmt::format("tensor '{}': its shape is not a list of sizes", name));
    entry.info.shape.push_back(extent.get<uint64_t>());
  }
  const json& offsets = fields.at("data_offsets");
  if (offsets.size() != 2 || !offsets[0].is_number_unsigned() || !offsets[1].is_number_unsigned())
    return input_error(fmt::format("tensor '{}': its data_offsets are not two offsets", name));
  const auto begin = offsets[0].get<uint64_t>();
  const auto end = offsets[1].get<uint64_t>();
  if (begin > end || end > data.size())
    return input_error(fmt::format("tensor '{}' lies at bytes {}..{} of {} (truncated file?)", name, begin,
                                   end, data.size()));
  const auto size = byte_size(entry.info.dtype, entry.info.shape);
  if (size != end - begin)
    return input_error(fmt::format("tensor '{}' has {} bytes, not those of {} [{}]", name, end - begin, dtype,
                                   fmt::join(entry.info.shape, ",")));
  entry.data = data.subspan(begin, end - begin);
  return entry;
}

/// Tensors must tile the data: no overlap and no hole.
Status check_tiling(const std::map<std::string, Safetensors::Entry, std::less<>>& tensors,
                    std::span<const std::byte> data) {
  std::vector<const Safetensors::Entry*> order;
  for (const auto& [name, entry] : tensors) order.push_back(&entry);
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return std::pair(a->data.data(), a->data.size()) < std::pair(b->data.data(), b->data.size());
  });
  const std::byte* expected = data.data();
  for (const auto* entry : order) {
    if (entry->data.data() < expected)
      return input_error(fmt::format("tensor '{}' overlaps the one before it", entry->info.name));
    if (entry->data.data() > expected)
      return input_error(fmt::format("there is a hole before tensor '{}'", entry->info.name));
    expected += entry->data.size();
  }
  if (expected != data.data() + data.size())
    return input_error(fmt::format("{} bytes after the last tensor", data.data() + data.size() - expected));
  return {};
}

/// Indices of the tensors, widest elements first, otherwise in the order given.
std::vector<size_t> layout_order(std::span<const TensorInfo> tensors) {
  std::vector<size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return dtype_size(tensors[a].dtype) > dtype_size(tensors[b].dtype);
  });
  return order;
}

/// The length and the header, padded with spaces.
Result<std::string> make_header(std::span<const TensorInfo> tensors, std::span<const size_t> order,
                                const std::map<std::string, std::string>& metadata) {
  json header = json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  uint64_t offset = 0;
  for (const size_t i : order) {
    const TensorInfo& info = tensors[i];
    const auto size = byte_size(info.dtype, info.shape);
    if (!size || header.contains(info.name))
      return failure(fmt::format("tensor '{}' {}", info.name, size ? "occurs twice" : "is too large"));
    header[info.name] = {
        {"dtype", dtype_name(info.dtype)}, {"shape", info.shape}, {"data_offsets", {offset, offset + *size}}};
    offset += *size;
  }
  std::string text = header.dump();
  text.resize((text.size() + kAlignment - 1) / kAlignment * kAlignment, ' ');
  const uint64_t length = text.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof(length)) + text;
}

}  // namespace

Status write_safetensors(const std::string& path, std::span<const TensorInfo> tensors,
                         const TensorSource& source, const std::map<std::string, std::string>& metadata) {
  return guarded("writing " + path, [&]() -> Status {
    const std::vector<size_t> order = layout_order(tensors);
    const auto header = make_header(tensors, order, metadata);
    if (!header.ok()) return failure(path + ": " + header.error().message);
    MOEC_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(path));
    MOEC_RETURN_IF_ERROR(file.write(std::as_bytes(std::span(*header))));
    for (const size_t i : order) {
      MOEC_ASSIGN_OR_RETURN(const HostTensor tensor, source(i));
      if (tensor.data.size() != byte_size(tensors[i].dtype, tensors[i].shape))
        return failure(
            fmt::format("{}: tensor '{}' came with {} bytes", path, tensors[i].name, tensor.data.size()));
      MOEC_RETURN_IF_ERROR(file.write(tensor.data));
    }
    return file.commit();
  });
}

Result<Safetensors> Safetensors::open(const std::string& path) {
  return guarded("reading " + path, [&]() -> Result<Safetensors> {
    MOEC_ASSIGN_OR_RETURN(MappedFile map, MappedFile::open(path));
    Safetensors file(path, std::move(map));
    if (const Status status = file.parse_header(); !status.ok())
      return input_error(path + ": not a sound safetensors file: " + status.error().message);
    return file;
  });
}

Status Safetensors::parse_header() {
  const std::span<const std::byte> bytes = file_.bytes();
  uint64_t length = 0;
  if (bytes.size() < sizeof(length))
    return input_error(fmt::format("{} bytes, too short for a header", bytes.size()));
  std::memcpy(&length, bytes.data(), sizeof(length));
  if (length > kMaxHeader || length > bytes.size() - sizeof(length))
    return input_error(fmt::format("a header of {} bytes in a file of {}", length, bytes.size()));
  const std::span<const std::byte> data = bytes.subspan(sizeof(length) + length);
  try {
    const json header = parse_json({reinterpret_cast<const char*>(bytes.data()) + sizeof(length), length});
    if (!header.is_object()) return input_error("its header is not a JSON object");
    for (const auto& [name, fields] : header.items()) {
      if (name == "__metadata__") {
        metadata_ = fields.get<std::map<std::string, std::string>>();
        continue;
      }
      MOEC_ASSIGN_OR_RETURN(Entry entry, parse_entry(name, fields, data));
      tensors_.emplace(name, std::move(entry));
    }
  } catch (const json::exception& e) {
    return input_error(fmt::format("its header: {}", e.what()));
  } catch (const std::invalid_argument& e) {
    return input_error(e.what());
  }
  return check_tiling(tensors_, data);
}

Result<HostTensor> Safetensors::read(const TensorInfo& expected) const {
  const auto found = tensors_.find(expected.name);
  if (found == tensors_.end())
    return input_error(fmt::format("{}: tensor '{}' is missing", path_, expected.name));
  const auto& [info, data] = found->second;
  if (info != expected)
    return input_error(fmt::format("{}: tensor '{}' is {} [{}], the plan wants {} [{}]", path_, info.name,
                                   dtype_name(info.dtype), fmt::join(info.shape, ","),
                                   dtype_name(expected.dtype), fmt::join(expected.shape, ",")));
  return guarded("reading " + path_, [&info = info, &data = data]() -> Result<HostTensor> {
    return HostTensor{info, {data.begin(), data.end()}};
  });
}

}  // namespace moec::runtime
