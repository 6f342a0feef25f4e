// The safetensors format: 8 bytes with the little-endian length of a JSON header, the header
// {"name": {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {...}}, then the data without
// holes. https://github.com/huggingface/safetensors
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/file_io.h"
#include "runtime/host_tensor.h"
#include "runtime/status.h"

namespace moec::runtime {

/// Gives the elements of the tensor with this index; called once per tensor, in order.
using TensorSource = std::function<Result<HostTensor>(size_t index)>;

/// Writes the file atomically, holding one tensor in host memory at a time. Data starts at a multiple of 8
/// bytes and the widest types come first, so that every tensor is aligned to its elements; `source` is
/// therefore asked in that order.
Status write_safetensors(const std::string& path, std::span<const TensorInfo> tensors,
                         const TensorSource& source, const std::map<std::string, std::string>& metadata = {});

/// A file that is mapped, not read; views are valid as long as the object.
class Safetensors {
 public:
  struct Entry {
    TensorInfo info;
    std::span<const std::byte> data;
  };

  /// Checks the header, and that types, shapes and offsets agree and the tensors tile the data exactly.
  static Result<Safetensors> open(const std::string& path);

  const std::string& path() const { return path_; }
  const std::map<std::string, Entry, std::less<>>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  /// A copy of the tensor, which must have this type and shape.
  Result<HostTensor> read(const TensorInfo& expected) const;

 private:
  Safetensors(std::string path, MappedFile file) : path_(std::move(path)), file_(std::move(file)) {}
  Status parse_header();

  std::string path_;
  MappedFile file_;
  std::map<std::string, Entry, std::less<>> tensors_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace moec::runtime
