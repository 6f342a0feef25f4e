#include "tools/terminal.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdlib>

namespace moec::tools {
namespace {

constexpr std::string_view kReplacement = "\uFFFD";

/// Bytes of the UTF-8 sequence that `lead` starts, 0 when it starts none.
size_t sequence_length(unsigned char lead) {
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead < 0xE0) return 2;
  if (lead >= 0xE0 && lead < 0xF0) return 3;
  return lead >= 0xF0 && lead < 0xF5 ? 4 : 0;
}

bool is_continuation(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

/// Whether a complete sequence is a character to show: no control character (C0, DEL, C1), no surrogate,
/// no overlong form, nothing beyond U+10FFFF.
bool is_printable(std::string_view sequence) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(sequence[i]); };
  if (sequence.size() == 1) return (byte(0) >= 0x20 && byte(0) != 0x7F) || byte(0) == '\n' || byte(0) == '\t';
  switch (byte(0)) {
    case 0xC2:
      return byte(1) >= 0xA0;
    case 0xE0:
      return byte(1) >= 0xA0;
    case 0xED:
      return byte(1) < 0xA0;
    case 0xF0:
      return byte(1) >= 0x90;
    case 0xF4:
      return byte(1) < 0x90;
    default:
      return true;
  }
}

}  // namespace

bool is_terminal(std::FILE* stream) {
  const char* term = std::getenv("TERM");
  return ::isatty(::fileno(stream)) != 0 && (term == nullptr || std::string_view(term) != "dumb");
}

size_t terminal_width(std::FILE* stream) {
  winsize size{};
  return ::ioctl(::fileno(stream), TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

Paint::Paint(std::FILE* stream) {
  const char* no_color = std::getenv("NO_COLOR");
  enabled_ = is_terminal(stream) && (no_color == nullptr || *no_color == '\0');
}

std::string Paint::wrap(std::string_view code, std::string_view text) const {
  return enabled_ ? fmt::format("\x1b[{}m{}\x1b[0m", code, text) : std::string(text);
}

std::string TextFilter::feed(std::string_view piece) {
  std::string shown;
  for (const char c : piece) {
    if (!pending_.empty() && !is_continuation(c)) shown += finish();
    pending_ += c;
    const size_t length = sequence_length(static_cast<unsigned char>(pending_[0]));
    if (length > pending_.size()) continue;
    shown += length > 0 && is_printable(pending_) ? std::string_view(pending_) : kReplacement;
    pending_.clear();
  }
  return shown;
}

std::string TextFilter::finish() {
  std::string rest(pending_.empty() ? std::string_view() : kReplacement);
  pending_.clear();
  return rest;
}

std::string printable(std::string_view text) {
  TextFilter filter;
  std::string shown = filter.feed(text);
  return shown + filter.finish();
}

void LiveOutput::line(std::string_view text) {
  clear();
  print(text);
  print("\n");
  std::fflush(stream_);
}

void LiveOutput::status(std::string_view text) {
  if (!live_) return;
  clear();
  print(text.substr(0, terminal_width(stream_) - 1));
  std::fflush(stream_);
  shown_ = true;
}

/// A stream that cannot be written keeps its error flag, which the tool reports at its end.
void LiveOutput::print(std::string_view text) { std::fwrite(text.data(), 1, text.size(), stream_); }

void LiveOutput::clear() {
  if (shown_) print("\r\x1b[K");
  shown_ = false;
}

}  // namespace moec::tools
