// How data that is longer than a plan's token window passes through it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

namespace moec::runtime {

/// Cuts data into chunks that fill a window of `window` tokens. Chunk starts are a multiple of seq_len apart,
/// so that non-overlapping sequences (whose last target is the next one's first token) tile the data; the
/// last chunk is moved back to end with the data. Data that fits is one chunk. Data and window hold more than
/// seq_len tokens.
class WindowChunks {
 public:
  WindowChunks(std::span<const int32_t> data, int64_t window, int64_t seq_len)
      : data_(data),
        size_(std::min(static_cast<int64_t>(data.size()), window)),
        seq_len_(seq_len),
        stride_(sequences() * seq_len) {}

  int64_t count() const {
    const int64_t beyond = static_cast<int64_t>(data_.size()) - size_;
    return 1 + (beyond + stride_ - 1) / stride_;
  }

  /// Tokens of chunk `index` (0 <= index < count()).
  std::span<const int32_t> chunk(int64_t index) const {
    const int64_t start = std::min(index * stride_, static_cast<int64_t>(data_.size()) - size_);
    return data_.subspan(static_cast<size_t>(start), static_cast<size_t>(size_));
  }

  /// Non-overlapping sequences of one chunk.
  int64_t sequences() const { return (size_ - 1) / seq_len_; }

  /// Steps of `sequences_per_step` sequences that one chunk lasts, at least one.
  int64_t steps_per_chunk(int64_t sequences_per_step) const {
    return std::max<int64_t>(1, sequences() / sequences_per_step);
  }

 private:
  std::span<const int32_t> data_;
  int64_t size_;
  int64_t seq_len_;
  int64_t stride_;
};

}  // namespace moec::runtime
