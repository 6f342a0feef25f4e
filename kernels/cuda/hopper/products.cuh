// What attention needs beyond instructions.cuh and wgmma.cuh: products whose first factor lies in registers,
// narrow products, boxes of rank 4, blocks that count who has arrived.
#pragma once

#include "kernels/cuda/hopper/wgmma.cuh"

namespace moec::cuda::hopper {

/// As sync_threads(), without waiting for the others.
__device__ inline void arrive_threads(int number, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

/// Number of blocks that have arrived at `count` so far. What they, and threads that they had met at a
/// barrier, wrote to global memory before is there to be read.
__device__ inline uint32_t count_arrivals(const uint32_t* count) {
  uint32_t arrived;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(arrived) : "l"(count) : "memory");
  return arrived;
}
/// The same, and arrives.
__device__ inline uint32_t arrive_at_count(uint32_t* count) {
  uint32_t arrived;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;" : "=r"(arrived) : "l"(count) : "memory");
  return arrived;
}

/// Starts to load the box at (x, y, z, w), innermost first, of a tensor of rank 4.
__device__ inline void load_box(const CUtensorMap& map, Barrier& barrier, void* to, int x, int y, int z,
                                int w) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(&barrier)), "r"(x), "r"(y), "r"(z), "r"(w)
      : "memory");
}

/// Starts to load `bytes`, a multiple of 16, between 16-byte boundaries.
__device__ inline void load_bytes(const void* from, uint32_t bytes, Barrier& barrier, void* to) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(&barrier))
      : "memory");
}

#define MOEC_SUMS8(i)                                                                         \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define MOEC_SUMS16(i) MOEC_SUMS8(i), MOEC_SUMS8(i + 8)

template <bool kRunsAlongRowsA, bool kRunsAlongRowsB>
__device__ inline void multiply(float (&d)[32], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
      "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "%32, %33, add, 1, 1, %35, %36;\n}\n"
      : MOEC_SUMS16(0), MOEC_SUMS16(16)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(static_cast<int>(kRunsAlongRowsA)),
        "n"(static_cast<int>(kRunsAlongRowsB)));
}

/// The same with a in registers: of the rows that the thread has in d, the depths t % 4 * 2 + {0, 1} (first
/// row, then second row), and these plus 8, in pairs of bf16.
template <bool kRunsAlongRowsB>
__device__ inline void multiply(float (&d)[32], const uint32_t* a, uint64_t b, bool add) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
      "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, add, 1, 1, %38;\n}\n"
      : MOEC_SUMS16(0), MOEC_SUMS16(16)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)),
        "n"(static_cast<int>(kRunsAlongRowsB)));
}
template <bool kRunsAlongRowsB>
__device__ inline void multiply(float (&d)[64], const uint32_t* a, uint64_t b, bool add) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "
      "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "
      "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, "
      "%59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, add, 1, 1, %70;\n}\n"
      : MOEC_SUMS16(0), MOEC_SUMS16(16), MOEC_SUMS16(32), MOEC_SUMS16(48)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)),
        "n"(static_cast<int>(kRunsAlongRowsB)));
}

#undef MOEC_SUMS16
#undef MOEC_SUMS8

}  // namespace moec::cuda::hopper
