#include "tests/tools/process.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <thread>

namespace moec::test {
namespace {

std::string tool_path(const std::string& tool) {
  return (std::filesystem::read_symlink("/proc/self/exe").parent_path() / tool).string();
}

/// In the child: output to files, no terminal, then the tool.
[[noreturn]] void become(const std::vector<std::string>& command, const std::string& out,
                         const std::string& err) {
  std::vector<char*> argv;
  for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  std::signal(SIGHUP, SIG_DFL);  // nohup leaves it ignored
  const int in = ::open("/dev/null", O_RDONLY);
  const int out_fd = ::open(out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  const int err_fd = ::open(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  if (::dup2(in, 0) >= 0 && ::dup2(out_fd, 1) >= 0 && ::dup2(err_fd, 2) >= 0) ::execv(argv[0], argv.data());
  ::_exit(126);
}

/// Waits until the file holds the text, or the process has ended.
void wait_for_output(pid_t child, const std::string& path, const std::string& text) {
  siginfo_t ended{};
  while (read(path).find(text) == std::string::npos) {
    ended.si_pid = 0;
    ::waitid(P_PID, static_cast<id_t>(child), &ended, WEXITED | WNOHANG | WNOWAIT);
    if (ended.si_pid != 0) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

}  // namespace

Outcome run(const std::string& tool, const std::vector<std::string>& arguments,
            const std::optional<Interruption>& interruption) {
  const Scratch scratch;
  const std::string out = scratch.path("out"), err = scratch.path("err");
  std::vector<std::string> command = {tool_path(tool)};
  command.insert(command.end(), arguments.begin(), arguments.end());
  const pid_t child = ::fork();
  if (child < 0) throw std::runtime_error("fork failed");
  if (child == 0) become(command, out, err);
  if (interruption) {
    wait_for_output(child, out, interruption->output);
    ::kill(child, interruption->signal);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  const int code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  return {code, read(out), read(err)};
}

Scratch::Scratch() {
  std::string pattern = (std::filesystem::temp_directory_path() / "moec-tools-XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
  dir_ = pattern;
}

Scratch::~Scratch() {
  std::error_code ignored;
  std::filesystem::remove_all(dir_, ignored);
}

FileSizeLimit::FileSizeLimit(rlim_t bytes) {
  if (::getrlimit(RLIMIT_FSIZE, &before_) != 0) throw std::runtime_error("getrlimit failed");
  const rlimit limit = {.rlim_cur = bytes, .rlim_max = before_.rlim_max};
  if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) throw std::runtime_error("setrlimit failed");
}

FileSizeLimit::~FileSizeLimit() { ::setrlimit(RLIMIT_FSIZE, &before_); }

std::string read(const std::string& path) {
  std::ostringstream content;
  content << std::ifstream(path, std::ios::binary).rdbuf();
  return content.str();
}

void write(const std::string& path, const std::string& content) {
  std::ofstream(path, std::ios::binary) << content;
}

std::string sample_text(size_t size) {
  const std::string line = "the quick brown fox jumps over the lazy dog; ";
  std::string text;
  while (text.size() < size) text += line;
  return text.substr(0, size);
}

std::string example(const std::string& name) {
  return std::string(MOEC_SOURCE_DIR) + "/schema/examples/" + name + ".json";
}

}  // namespace moec::test
