#include <doctest/doctest.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <bit>
#include <map>

#include "runtime/file_io.h"
#include "runtime/safetensors.h"
#include "scratch_dir.h"

namespace moec::runtime {
namespace {

using test::contains;

/// Makes files end at `bytes`, as on a full disk.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    old_handler_ = signal(SIGXFSZ, SIG_IGN);
    REQUIRE(getrlimit(RLIMIT_FSIZE, &old_) == 0);
    const rlimit limit{bytes, old_.rlim_max};
    REQUIRE(setrlimit(RLIMIT_FSIZE, &limit) == 0);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &old_);
    signal(SIGXFSZ, old_handler_);
  }

 private:
  rlimit old_{};
  void (*old_handler_)(int);
};

TEST_CASE("a file is replaced whole or not at all") {
  const test::ScratchDir dir;
  const std::string path = dir / "f";
  REQUIRE(write_file(path, "old").ok());
  {
    const FileSizeLimit limit(100);
    const Status status = write_file(path, std::string(1000, 'x'));
    REQUIRE_FALSE(status.ok());
    CHECK(status.error().kind == ErrorKind::kFailure);
    CHECK(contains(status.error().message, path));
  }
  CHECK(test::slurp(path) == "old");
  CHECK(dir.count() == 1);
  {
    auto file = AtomicFile::create(path);
    REQUIRE(file.ok());
    REQUIRE(file->write(std::as_bytes(std::span("abandoned"))).ok());
  }
  CHECK(test::slurp(path) == "old");
  CHECK(dir.count() == 1);
  REQUIRE(write_file(path, "new").ok());
  CHECK(test::slurp(path) == "new");
}

TEST_CASE("new files have the permissions that the umask leaves") {
  const test::ScratchDir dir;
  for (const mode_t mask : {mode_t{0}, mode_t{027}, mode_t{077}}) {
    const mode_t before = ::umask(mask);
    const auto has_mode = [&](const std::string& path) {
      struct stat info {};
      return ::stat(path.c_str(), &info) == 0 && (info.st_mode & 0777) == (0666 & ~mask);
    };
    const std::string file = dir / fmt::format("file-{}", mask), log = dir / fmt::format("log-{}", mask);
    CHECK(write_file(file, "x").ok());
    CHECK(has_mode(file));
    CHECK(LineFile::append_to(log).ok());
    CHECK(has_mode(log));
    const auto lock = FileLock::try_lock(dir / "lock");
    CHECK(has_mode(dir / "lock"));
    ::umask(before);
  }
}

TEST_CASE("places that cannot be written or read are errors") {
  const test::ScratchDir dir;
  const std::string file = dir.file("file", "x");
  CHECK_FALSE(write_file(file + "/below", "x").ok());
  CHECK_FALSE(write_file(dir.path() + "/no/such/dir", "x").ok());
  CHECK_FALSE(write_file(dir.path(), "x").ok());  // a directory is in the way
  CHECK_FALSE(make_directories(file + "/below").ok());
  CHECK_FALSE(LineFile::append_to(dir.path()).ok());
  CHECK_FALSE(read_file(dir.path()).ok());
  CHECK(read_file(dir / "missing").error().kind == ErrorKind::kInput);
  CHECK(dir.count() == 1);
  CHECK(make_directories(dir / "a/b/c").ok());
  CHECK(make_directories(dir / "a/b/c").ok());
}

TEST_CASE("a log holds whole lines only") {
  const test::ScratchDir dir;
  auto log = LineFile::append_to(dir / "log");
  REQUIRE(log.ok());
  REQUIRE(log->write_line("one").ok());
  {
    const FileSizeLimit limit(10);
    CHECK_FALSE(log->write_line("a line that does not fit").ok());
  }
  REQUIRE(log->write_line("two").ok());
  CHECK(test::slurp(dir / "log") == "one\ntwo\n");
  auto full = LineFile::append_to("/dev/full");
  REQUIRE(full.ok());
  CHECK(contains(full->write_line("x").error().message, "/dev/full"));
}

TEST_CASE("directories that were made for nothing go away again") {
  const test::ScratchDir dir;
  const std::string file = dir.file("file", "x");
  for (const std::string path : {"a/b/c", "a/b/c/", "./a//b", "a/../a/b"}) {
    CAPTURE(path);
    {
      const auto directory = TentativeDirectory::make(dir / path);
      REQUIRE(directory.ok());
      CHECK(file_exists(dir / path));
    }
    CHECK(dir.count() == 1);
  }
  CHECK_FALSE(TentativeDirectory::make(file + "/below").ok());
  {
    const auto directory = TentativeDirectory::make(dir / "a/b/c");
    dir.file("a/kept", "x");
  }
  CHECK(file_exists(dir / "a/kept"));
  CHECK_FALSE(file_exists(dir / "a/b"));
  { const auto directory = TentativeDirectory::make(dir / "a"); }
  CHECK(file_exists(dir / "a"));
}

TEST_CASE("a lock keeps others out, and its file goes with it") {
  const test::ScratchDir dir;
  const std::string path = dir / "lock";
  const auto held = [&] {
    auto lock = FileLock::try_lock(path);
    REQUIRE(lock.ok());
    return std::move(*lock);
  };
  for (int i = 0; i < 2; ++i) {
    const auto lock = held();
    CHECK(lock);
    CHECK_FALSE(held());
    CHECK(file_exists(path));
  }
  CHECK(dir.count() == 0);
  CHECK(FileLock::try_lock(dir / "no/lock").error().kind == ErrorKind::kInput);
}

HostTensor make_tensor(const char* name, fb::DType dtype, std::vector<uint64_t> shape,
                       const std::vector<uint8_t>& data) {
  HostTensor tensor{.info = {.name = name, .dtype = dtype, .shape = std::move(shape)}, .data = {}};
  for (const uint8_t byte : data) tensor.data.push_back(std::byte{byte});
  return tensor;
}

const std::vector<HostTensor>& sample_tensors() {
  static const std::vector<HostTensor> tensors = {
      make_tensor("bytes", fb::DType::U8, {3}, {1, 2, 3}),
      make_tensor("half", fb::DType::BF16, {1, 1}, {4, 5}),
      make_tensor("scalar", fb::DType::F64, {}, {1, 2, 3, 4, 5, 6, 7, 8}),
      make_tensor("none", fb::DType::F32, {0, 7}, {}),
      make_tensor("ints", fb::DType::I32, {2}, {1, 0, 0, 0, 2, 0, 0, 0}),
      make_tensor("rest", fb::DType::U16, {1}, {9, 9}),
  };
  return tensors;
}

Status write_samples(const std::string& path) {
  std::vector<TensorInfo> infos;
  for (const HostTensor& tensor : sample_tensors()) infos.push_back(tensor.info);
  return write_safetensors(path, infos, [](size_t i) -> Result<HostTensor> { return sample_tensors()[i]; },
                           {{"format", "pt"}});
}

/// A file with this header and so many bytes of data.
std::string raw_safetensors(std::string_view header, size_t data_bytes) {
  const uint64_t length = header.size();
  std::string bytes(reinterpret_cast<const char*>(&length), sizeof(length));
  return bytes.append(header).append(data_bytes, '\0');
}

TEST_CASE("safetensors come back as they were written, aligned to their elements") {
  const test::ScratchDir dir;
  REQUIRE(write_samples(dir / "t.safetensors").ok());
  const auto file = Safetensors::open(dir / "t.safetensors");
  REQUIRE(file.ok());
  CHECK(file->tensors().size() == sample_tensors().size());
  CHECK(file->metadata() == std::map<std::string, std::string>{{"format", "pt"}});
  for (const HostTensor& expected : sample_tensors()) {
    const auto found = file->read(expected.info);
    REQUIRE(found.ok());
    CHECK(found->data == expected.data);
    const auto address = std::bit_cast<uintptr_t>(file->tensors().at(expected.info.name).data.data());
    CHECK(address % static_cast<uintptr_t>(dtype_size(expected.info.dtype)) == 0);
  }
  TensorInfo other = sample_tensors()[0].info;
  other.shape = {1, 3};
  CHECK(contains(file->read(other).error().message, "'bytes' is U8 [3], the plan wants U8 [1,3]"));
  other.name = "nothing";
  CHECK(contains(file->read(other).error().message, "'nothing' is missing"));
}

TEST_CASE("every truncation of a safetensors file is rejected, and no damaged byte is fatal") {
  const test::ScratchDir dir;
  REQUIRE(write_samples(dir / "t").ok());
  const std::string bytes = test::slurp(dir / "t");
  for (size_t size = 0; size < bytes.size(); ++size) {
    const auto file = Safetensors::open(dir.file("cut", bytes.substr(0, size)));
    REQUIRE_FALSE(file.ok());
    CHECK(file.error().kind == ErrorKind::kInput);
  }
  for (size_t i = 0; i < bytes.size(); ++i) {
    std::string damaged = bytes;
    damaged[i] = static_cast<char>(damaged[i] ^ 0x11);
    const auto file = Safetensors::open(dir.file("damaged", damaged));
    if (!file.ok()) CHECK(file.error().kind == ErrorKind::kInput);
  }
  CHECK_FALSE(Safetensors::open(dir.file("long", bytes + "x")).ok());
}

TEST_CASE("safetensors headers that lie are rejected with the tensor's name") {
  const test::ScratchDir dir;
  const std::map<std::string, std::string> cases = {
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", "'a' has 4 bytes, not those of F32 [2]"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,80]}})", "'a' lies at bytes 0..80 of 8"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", "'a' lies"},
      {R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", "'a': its shape"},
      {R"({"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}})", "'a' has 0 bytes"},
      {R"({"a":{"dtype":"X9","shape":[2],"data_offsets":[0,8]}})", "unknown type 'X9'"},
      {R"({"a":{"dtype":"F32","shape":[2]}})", "data_offsets"},
      {R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
       "overlaps"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})", "hole before tensor 'a'"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", "4 bytes after the last tensor"},
      {R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}})",
       "'a' occurs twice"},
      {R"([1,2])", "not a JSON object"},
      {R"({"a":)", "header"},
  };
  for (const auto& [header, message] : cases) {
    CAPTURE(header);
    const auto file = Safetensors::open(dir.file("lie", raw_safetensors(header, 8)));
    REQUIRE_FALSE(file.ok());
    CHECK(contains(file.error().message, message));
  }
}

TEST_CASE("a safetensors file that cannot be finished does not appear") {
  const test::ScratchDir dir;
  const TensorInfo info = sample_tensors()[0].info;
  const auto failing = [](size_t) -> Result<HostTensor> { return failure("the device is gone"); };
  CHECK(write_safetensors(dir / "t", {&info, 1}, failing).error().message == "the device is gone");
  CHECK(dir.count() == 0);
}

}  // namespace
}  // namespace moec::runtime
