// What becomes of the sums of a grouped product. A warp has 16 x kN of them (wgmma.cuh says who has
// what) and 4096 bytes of shared memory, through which results go out: panels of 16 rows of 128 bytes, laid
// out as TMA expects them.
#pragma once

#include "kernels/cuda/hopper/wgmma.cuh"
#include "kernels/cuda/math.cuh"

namespace moec::cuda::hopper {

constexpr int kPanelRows = 16;
constexpr int kPanelBytes = kPanelRows * kRunBytes;

__device__ inline int lane_id() { return static_cast<int>(threadIdx.x) % 32; }

/// Two values as bf16, the first in the lower half.
__device__ inline uint32_t pack(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ inline float2 unpack(uint32_t pair) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000)};
}

/// The warp's next panel, free to be written: two take turns.
__device__ inline unsigned char* open_panel(unsigned char* staging, int panel) {
  if (lane_id() == 0) wait_stores_read<1>();
  __syncwarp();
  return staging + panel % 2 * kPanelBytes;
}

/// Writes 16 x 16 sums as bf16 to columns 16 * `place` of a panel.
__device__ inline void write_panel(unsigned char* panel, int place, const float* sums) {
  const int row = lane_id() % 16, chunk = 2 * place + lane_id() / 16;
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                   shared_address(panel) + static_cast<uint32_t>(row * kRunBytes + (chunk ^ row % 8) * 16)),
               "r"(pack(sums[0], sums[1])), "r"(pack(sums[2], sums[3])), "r"(pack(sums[4], sums[5])),
               "r"(pack(sums[6], sums[7]))
               : "memory");
}

/// Result rows as bf16, c[rows, cols]; those behind `row_end` stay as they are.
struct StoreRows {
  CUtensorMap map;  // box: 64 columns x 16 rows
  bf16* data;

  __device__ bool skips(int) const { return false; }

  template <int kSums>
  __device__ void store(const float (&sums)[kSums], int, int row, int row_end, int col, int cols,
                        unsigned char* staging) const {
#pragma unroll
    for (int panel = 0; panel < kSums / 32; ++panel) {
      unsigned char* out = open_panel(staging, panel);
#pragma unroll
      for (int i = 0; i < 4; ++i) write_panel(out, i, sums + panel * 32 + i * 8);
      send(out, row, row_end, col + panel * 64, cols);
    }
  }

  __device__ void send(const unsigned char* panel, int row, int row_end, int col, int cols) const {
    if (row + kPanelRows <= row_end) {
      fence_shared_for_async();
      __syncwarp();
      if (lane_id() == 0) store_box(map, panel, col, row, 0);
    } else {
      __syncwarp();
      for (int i = lane_id(); i < (row_end - row) * 8; i += 32) {
        const int r = i / 8, c = i % 8;
        if (col + c * 8 < cols)
          *reinterpret_cast<uint4*>(data + static_cast<int64_t>(row + r) * cols + col + c * 8) =
              *reinterpret_cast<const uint4*>(panel + r * kRunBytes + (c ^ r % 8) * 16);
      }
    }
    if (lane_id() == 0) commit_stores();
  }
};

/// h = sums as bf16, with gate and up in turns, and y[rows, cols / 2] = silu(gate) * up.
struct StoreSwiglu {
  StoreRows h;
  bf16* y;

  __device__ bool skips(int) const { return false; }

  template <int kSums>
  __device__ void store(const float (&sums)[kSums], int expert, int row, int row_end, int col, int cols,
                        unsigned char* staging) const {
    h.store(sums, expert, row, row_end, col, cols, staging);
    // A lane has y of one column out of four; four lanes exchange theirs, so that each has four neighbours.
    const int place = lane_id() % 4, first = row + lane_id() / 4;
#pragma unroll
    for (int group = 0; group < kSums; group += 16) {
      const int at = (col + group * 2) / 2 + 4 * place;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float v[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float2 pair =
              unpack(pack(sums[group + 4 * i + 2 * half], sums[group + 4 * i + 2 * half + 1]));
          v[i] = pair.x * sigmoid<bf16>(pair.x) * pair.y;
        }
        const uint32_t low = pack(v[0], v[1]), high = pack(v[2], v[3]);
        const uint32_t mine = place < 2 ? low : high;
        const uint32_t other = __shfl_xor_sync(~0u, place < 2 ? high : low, 2);
        // x: of lanes 0 or 1, y: of lanes 2 or 3, each a pair of columns 4 apart.
        const uint32_t x = place < 2 ? mine : other, z = place < 2 ? other : mine;
        const bool odd = place % 2;
        const uint32_t keep = __byte_perm(x, z, odd ? 0x7632 : 0x5410);
        const uint32_t got = __shfl_xor_sync(~0u, __byte_perm(x, z, odd ? 0x5410 : 0x7632), 1);
        const uint32_t even_lane = odd ? got : keep, odd_lane = odd ? keep : got;
        const uint2 out{__byte_perm(even_lane, odd_lane, 0x5410), __byte_perm(even_lane, odd_lane, 0x7632)};
        const int r = first + 8 * half;
        if (r < row_end && at < cols / 2)
          *reinterpret_cast<uint2*>(y + static_cast<int64_t>(r) * (cols / 2) + at) = out;
      }
    }
  }
};

/// With dy = sums as bf16, of y = silu(gate) * up: dh, and y again if it is given. h, dh: [rows, 2 * cols].
struct StoreSwigluBwd {
  const bf16* h;
  bf16* dh;
  bf16* y;

  __device__ bool skips(int) const { return false; }

  template <int kSums>
  __device__ void store(const float (&sums)[kSums], int, int row, int row_end, int col, int cols,
                        unsigned char*) const {
    const int place = lane_id() % 4;
    const bool odd = place % 2;
    // Neighbours exchange columns, so that each has four of one row: lane i has columns of group 8 * (i % 2).
    const int64_t at = static_cast<int64_t>(row + lane_id() / 4) * cols + col + 8 * odd + 2 * (place - odd);
#pragma unroll
    for (int batch = 0; batch < kSums; batch += 32) {
      uint4 pairs[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int64_t to = at + i % 2 * 8 * int64_t{cols} + batch * 2 + i / 2 * 16;
        if (row + lane_id() / 4 + i % 2 * 8 < row_end && col + batch * 2 + i / 2 * 16 + 8 * odd < cols)
          pairs[i] = __ldcs(reinterpret_cast<const uint4*>(h + 2 * to));
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float* s = sums + batch + i / 2 * 8 + i % 2 * 2;
        const uint32_t first = pack(s[0], s[1]), second = pack(s[4], s[5]);
        const uint32_t got = __shfl_xor_sync(~0u, odd ? first : second, 1);
        const float2 d01 = unpack(odd ? got : first), d23 = unpack(odd ? second : got);
        const float d[4] = {d01.x, d01.y, d23.x, d23.y};
        uint32_t* pair = reinterpret_cast<uint32_t*>(&pairs[i]);
        float again[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float2 in = unpack(pair[j]);
          const float s1 = sigmoid<bf16>(in.x);
          again[j] = in.x * s1 * in.y;
          pair[j] = pack(d[j] * in.y * s1 * (1 + in.x * (1 - s1)), d[j] * in.x * s1);
        }
        const int64_t to = at + i % 2 * 8 * int64_t{cols} + batch * 2 + i / 2 * 16;
        if (row + lane_id() / 4 + i % 2 * 8 < row_end && col + batch * 2 + i / 2 * 16 + 8 * odd < cols) {
          *reinterpret_cast<uint4*>(dh + 2 * to) = pairs[i];
          if (y)
            *reinterpret_cast<uint2*>(y + to) = uint2{pack(again[0], again[1]), pack(again[2], again[3])};
        }
      }
    }
  }
};

/// An expert's weight gradient [experts, rows, cols], f32 or bf16: overwritten, or each element added to
/// once.
template <class T>
struct StoreGradient {
  CUtensorMap map;  // box: 128 bytes of columns x 16 rows
  bool accumulate;

  __device__ bool skips(int depth) const { return accumulate && depth == 0; }

  template <int kSums>
  __device__ void store(const float (&sums)[kSums], int expert, int row, int, int col, int cols,
                        unsigned char* staging) const {
    constexpr int kPanelCols = kRunBytes / sizeof(T), kPanelSums = kPanelCols / 2;
#pragma unroll
    for (int panel = 0; panel < kSums / kPanelSums; ++panel) {
      unsigned char* out = open_panel(staging, panel);
      const float* s = sums + panel * kPanelSums;
      if constexpr (sizeof(T) == 2) {
#pragma unroll
        for (int i = 0; i < 4; ++i) write_panel(out, i, s + i * 8);
      } else {
        const int r = lane_id() / 4, c = lane_id() % 4;
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int half = 0; half < 2; ++half)
            *reinterpret_cast<float2*>(out + (r + 8 * half) * kRunBytes + ((2 * i + c / 2) ^ r) * 16 +
                                       c % 2 * 8) = {s[4 * i + 2 * half], s[4 * i + 2 * half + 1]};
      }
      fence_shared_for_async();
      __syncwarp();
      if (lane_id() == 0) {
        accumulate ? add_box(map, out, col + panel * kPanelCols, row, expert)
                   : store_box(map, out, col + panel * kPanelCols, row, expert);
        commit_stores();
      }
    }
  }
};

}  // namespace moec::cuda::hopper
