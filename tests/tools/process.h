// Runs the built tools as processes, as a shell would.
#pragma once

#include <sys/resource.h>

#include <csignal>
#include <optional>
#include <string>
#include <vector>

namespace moec::test {

struct Outcome {
  int exit_code = -1;  // 128 + N when signal N ended the process
  std::string out;
  std::string err;
};

/// A signal that the process gets as soon as its output holds a text.
struct Interruption {
  std::string output;  // sent when stdout holds this
  int signal = SIGINT;
};

/// Runs `tool` (a file beside this test program) with the arguments, without a terminal, and waits for it.
Outcome run(const std::string& tool, const std::vector<std::string>& arguments,
            const std::optional<Interruption>& interruption = {});

/// A directory that is removed at the end of the test.
class Scratch {
 public:
  Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch();

  std::string path(const std::string& name) const { return dir_ + "/" + name; }

 private:
  std::string dir_;
};

/// Tools that start meanwhile write no file that is larger.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes);
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;
  ~FileSizeLimit();

 private:
  rlimit before_{};
};

std::string read(const std::string& path);
void write(const std::string& path, const std::string& content);

/// A text of `size` bytes that a model can learn.
std::string sample_text(size_t size);

/// A spec of schema/examples.
std::string example(const std::string& name);

}  // namespace moec::test
