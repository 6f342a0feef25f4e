#include "runtime/file_io.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "runtime/guard.h"

namespace moec::runtime {
namespace {

constexpr mode_t kFileMode = 0666;  // of new files, less what the umask takes

std::string reason() { return std::strerror(errno); }

/// A descriptor that closes itself.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

/// Opens a regular file for reading and returns its size through `size`. Does not wait for a pipe's writer.
Result<int> open_for_reading(const std::string& path, size_t& size) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return input_error(fmt::format("{}: cannot open: {}", path, reason()));
  struct stat info {};
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd);
    return input_error(fmt::format("{}: not a regular file", path));
  }
  size = static_cast<size_t>(info.st_size);
  return fd;
}

/// Writes all of `bytes`, going on after short writes and signals; errno says why it failed.
bool write_all(int fd, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
  return true;
}

/// Makes a rename in the directory of `path` durable.
bool sync_directory_of(const std::string& path) {
  const std::filesystem::path parent = std::filesystem::path(path).parent_path();
  const Descriptor directory(
      ::open(parent.empty() ? "." : parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  return directory.get() >= 0 && ::fsync(directory.get()) == 0;
}

}  // namespace

Result<std::string> read_file(const std::string& path) {
  return guarded("reading " + path, [&]() -> Result<std::string> {
    size_t size = 0;
    MOEC_ASSIGN_OR_RETURN(const int fd, open_for_reading(path, size));
    const Descriptor file(fd);
    std::string content;
    try {
      content.resize(size);
    } catch (const std::bad_alloc&) {
      return failure(fmt::format("{}: no host memory for its {} bytes", path, size));
    }
    size_t done = 0;
    while (done < size) {
      const ssize_t got = ::read(file.get(), content.data() + done, size - done);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return input_error(fmt::format("{}: cannot read: {}", path, reason()));
      if (got == 0)
        return input_error(fmt::format("{}: shrank from {} to {} bytes while being read", path, size, done));
      done += static_cast<size_t>(got);
    }
    return content;
  });
}

namespace {

/// An input error where another path would do, a failure where the machine is at fault (a full disk, say).
Error place_error(int code, std::string message) {
  const bool place = code == ENOENT || code == ENOTDIR || code == EISDIR || code == EACCES || code == EPERM ||
                     code == EROFS || code == EEXIST || code == ENAMETOOLONG;
  return place ? input_error(std::move(message)) : failure(std::move(message));
}

}  // namespace

Status write_file(const std::string& path, std::string_view content) {
  MOEC_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(path));
  MOEC_RETURN_IF_ERROR(file.write(std::as_bytes(std::span(content))));
  return file.commit();
}

Status make_directories(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error)
    return place_error(error.value(),
                       fmt::format("{}: cannot make the directory: {}", path, error.message()));
  return {};
}

bool file_exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

Result<TentativeDirectory> TentativeDirectory::make(const std::string& path) {
  return guarded("making " + path, [&]() -> Result<TentativeDirectory> {
    TentativeDirectory directory;
    for (std::filesystem::path missing = path; !missing.empty() && !file_exists(missing);
         missing = missing.parent_path())
      directory.made_.push_back(missing);
    MOEC_RETURN_IF_ERROR(make_directories(path));
    return directory;
  });
}

TentativeDirectory::TentativeDirectory(TentativeDirectory&& other) noexcept
    : made_(std::exchange(other.made_, {})) {}

TentativeDirectory::~TentativeDirectory() {
  for (const std::string& path : made_) ::rmdir(path.c_str());  // fails on one that holds something
}

Result<AtomicFile> AtomicFile::create(const std::string& path) {
  return guarded("writing " + path, [&]() -> Result<AtomicFile> {
    std::error_code error;
    if (std::filesystem::exists(path, error) && !std::filesystem::is_regular_file(path, error))
      return input_error(fmt::format("{}: not a regular file: it cannot be replaced", path));
    // Not mkostemp, whose files do not have the permissions that the umask leaves.
    for (int i = 0;; ++i) {
      std::string temporary = fmt::format("{}.{}-{}", path, ::getpid(), i);
      const int fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, kFileMode);
      if (fd >= 0) return AtomicFile(path, std::move(temporary), fd);
      if (errno != EEXIST)
        return place_error(errno, fmt::format("{}: cannot write here: {}", path, reason()));
    }
  });
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_(std::move(other.temporary_)),
      fd_(std::exchange(other.fd_, -1)) {}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(temporary_.c_str());
}

Status AtomicFile::write(std::span<const std::byte> bytes) {
  if (write_all(fd_, bytes)) return {};
  return failure(fmt::format("{}: cannot write {} bytes: {}", path_, bytes.size(), reason()));
}

Status AtomicFile::commit() {
  if (::fsync(fd_) != 0 || ::rename(temporary_.c_str(), path_.c_str()) != 0)
    return failure(fmt::format("{}: cannot finish writing: {}", path_, reason()));
  ::close(std::exchange(fd_, -1));
  if (!sync_directory_of(path_))
    return failure(fmt::format("{}: cannot sync its directory: {}", path_, reason()));
  return {};
}

Result<LineFile> LineFile::append_to(const std::string& path) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, kFileMode);
  if (fd < 0) return failure(fmt::format("{}: cannot append: {}", path, reason()));
  return LineFile(path, fd);
}

LineFile::LineFile(LineFile&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)) {}

LineFile::~LineFile() {
  if (fd_ >= 0) ::close(fd_);
}

Status LineFile::write_line(std::string_view line) {
  return guarded("writing " + path_, [&]() -> Status {
    const off_t end = ::lseek(fd_, 0, SEEK_END);
    const std::string text = std::string(line) + '\n';
    if (write_all(fd_, std::as_bytes(std::span(text)))) return {};
    const std::string why = reason();
    // The log keeps only whole lines; if even this fails, the reader skips the torn line.
    const bool cut = end >= 0 && ::ftruncate(fd_, end) == 0;
    return failure(
        fmt::format("{}: cannot append{}: {}", path_, cut ? "" : " and its last line is torn", why));
  });
}

Result<std::optional<FileLock>> FileLock::try_lock(const std::string& path) {
  // Writable, which NFS asks of a lock that excludes others.
  Descriptor file(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, kFileMode));
  if (file.get() < 0) return place_error(errno, fmt::format("{}: cannot write here: {}", path, reason()));
  if (::flock(file.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) return std::optional<FileLock>();
  // Between the two lines above a holder may have left, and have taken this file with it.
  struct stat held {
  }, named{};
  const bool gone = ::fstat(file.get(), &held) != 0 || ::stat(path.c_str(), &named) != 0 ||
                    held.st_dev != named.st_dev || held.st_ino != named.st_ino;
  if (gone) return std::optional<FileLock>();
  return std::optional<FileLock>(FileLock(path, file.release()));
}

FileLock::FileLock(FileLock&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)) {}

FileLock::~FileLock() {
  if (fd_ < 0) return;
  ::unlink(path_.c_str());  // while it is held: later it may be another's
  ::close(fd_);
}

Result<MappedFile> MappedFile::open(const std::string& path) {
  size_t size = 0;
  MOEC_ASSIGN_OR_RETURN(const int fd, open_for_reading(path, size));
  const Descriptor file(fd);
  if (size == 0) return MappedFile(nullptr, 0);
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (data == MAP_FAILED) return failure(fmt::format("{}: cannot map {} bytes: {}", path, size, reason()));
  return MappedFile(data, size);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

}  // namespace moec::runtime
