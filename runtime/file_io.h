// Files: whole reads, memory maps, and writes that either happen completely or not at all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/status.h"

namespace moec::runtime {

/// The whole file. A missing or unreadable file, or a directory, is an input error.
Result<std::string> read_file(const std::string& path);

/// Replaces the file with `content`, atomically: see AtomicFile.
Status write_file(const std::string& path, std::string_view content);

/// Makes the directory and its parents; an existing directory is fine.
Status make_directories(const std::string& path);

bool file_exists(const std::string& path);

/// Directories that are made for something that may not come: at the end those that were not there before go
/// away again, as far as they are empty.
class TentativeDirectory {
 public:
  /// The directory and its parents; an existing directory is fine.
  static Result<TentativeDirectory> make(const std::string& path);
  TentativeDirectory(TentativeDirectory&& other) noexcept;
  TentativeDirectory& operator=(TentativeDirectory&&) = delete;
  ~TentativeDirectory();

 private:
  TentativeDirectory() = default;

  std::vector<std::string> made_;  // each before its parent
};

/// A file that appears under its name only when it is complete. Data goes to a temporary file in the same
/// directory, which commit() flushes to disk and renames. Without a commit, or after any failure, the
/// temporary file is removed and what was at `path` before is untouched.
class AtomicFile {
 public:
  static Result<AtomicFile> create(const std::string& path);
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&&) = delete;
  ~AtomicFile();

  /// Appends.
  Status write(std::span<const std::byte> bytes);
  Status commit();

 private:
  AtomicFile(std::string path, std::string temporary, int fd)
      : path_(std::move(path)), temporary_(std::move(temporary)), fd_(fd) {}

  std::string path_;
  std::string temporary_;
  int fd_ = -1;  // -1 once committed
};

/// A log that grows by whole lines. A write that fails part way is cut off again.
class LineFile {
 public:
  static Result<LineFile> append_to(const std::string& path);
  LineFile(LineFile&& other) noexcept;
  LineFile& operator=(LineFile&&) = delete;
  ~LineFile();

  /// Writes `line` and a line feed.
  Status write_line(std::string_view line);

 private:
  LineFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}

  std::string path_;
  int fd_ = -1;
};

/// Holds a file against other holders, until the object or the process ends. The object takes the file with
/// it.
class FileLock {
 public:
  /// Makes the file where there is none; nothing when it is held elsewhere. A file system without locks keeps
  /// nobody out.
  static Result<std::optional<FileLock>> try_lock(const std::string& path);
  FileLock(FileLock&& other) noexcept;
  FileLock& operator=(FileLock&&) = delete;
  ~FileLock();

 private:
  FileLock(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}

  std::string path_;
  int fd_ = -1;
};

/// A read-only memory map of a whole file; the bytes stay valid as long as the object.
class MappedFile {
 public:
  static Result<MappedFile> open(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {static_cast<const std::byte*>(data_), size_}; }

 private:
  MappedFile(void* data, size_t size) : data_(data), size_(size) {}

  void* data_ = nullptr;  // nullptr for an empty file
  size_t size_ = 0;
};

}  // namespace moec::runtime
