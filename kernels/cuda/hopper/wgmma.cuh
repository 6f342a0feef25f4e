// Products of a warpgroup on Hopper's tensor cores (wgmma): bf16 factors in shared memory, f32 sums in
// registers.
//
// A factor lies in atoms of 8 runs of 128 bytes, whose 16-byte chunks are permuted (chunk c of run r is at c
// ^ r % 8), as TMA writes boxes of 64 elements with CU_TENSOR_MAP_SWIZZLE_128B. A run goes along depth, or
// along rows.
#pragma once

#include "kernels/cuda/hopper/instructions.cuh"

namespace moec::cuda::hopper {

/// Bytes of a run, of an atom, and of a box of 64 runs.
constexpr int kRunBytes = 128;
constexpr int kAtomBytes = 8 * kRunBytes;
constexpr int kBoxBytes = 64 * kRunBytes;

/// Where something is in the block's shared memory. The upper bits of an address, which in a cluster tell the
/// block's rank, would spoil a descriptor.
__device__ inline uint32_t shared_place(const void* pointer) { return shared_address(pointer) & 0x3ffff; }

/// Descriptor of a factor from `place` on, a multiple of kAtomBytes (plus whole depths, see kDepthBytes).
/// Runs along rows: the next 64 rows are kBoxBytes further. The upper half is a constant.
__device__ inline uint64_t factor_descriptor(uint32_t place) {
  constexpr uint64_t kSwizzle128 = 1;
  return kSwizzle128 << 62 | uint64_t{kAtomBytes / 16} << 32 | (uint32_t{kBoxBytes / 16} << 16) + place / 16;
}

/// What 16 depths add to a place, and to a descriptor.
template <bool kRunsAlongRows>
constexpr uint32_t kDepthBytes = kRunsAlongRows ? 16 * kRunBytes : 16 * 2;
template <bool kRunsAlongRows>
constexpr uint64_t kDepthStep = kDepthBytes<kRunsAlongRows> / 16;

/// Orders accesses of registers before the products that follow.
__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Waits for all but the last kPending committed groups.
template <int kPending>
__device__ inline void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

/// Keeps accesses to registers of products on their side of this place.
template <int kN>
__device__ __forceinline__ void pin(float (&registers)[kN]) {
#pragma unroll
  for (int i = 0; i < kN; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}
template <int kN>
__device__ __forceinline__ void pin(uint32_t (&registers)[kN]) {
#pragma unroll
  for (int i = 0; i < kN; ++i) asm volatile("" : "+r"(registers[i])::"memory");
}

/// wait_products() for groups whose sums these are.
template <int kPending, int kN, int... kMore>
__device__ __forceinline__ void wait_products(float (&sums)[kN], float (&... more)[kMore]) {
  wait_products<kPending>();
  pin(sums);
  (pin(more), ...);
}

#define MOEC_SUMS8(i)                                                                         \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define MOEC_SUMS32(i) MOEC_SUMS8(i), MOEC_SUMS8(i + 8), MOEC_SUMS8(i + 16), MOEC_SUMS8(i + 24)

/// d = a b (+ d if `add`) for 64 rows, 16 depths and as many columns as d says: element (i, j) of the result
/// is in thread 32 * (i / 16) + i % 8 * 4 + j % 8 / 2, at j / 8 * 4 + i % 16 / 8 * 2 + j % 2.
template <bool kRunsAlongRowsA, bool kRunsAlongRowsB>
__device__ inline void multiply(float (&d)[64], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, add, 1, 1, %67, %68;\n}\n"
      : MOEC_SUMS32(0), MOEC_SUMS32(32)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(static_cast<int>(kRunsAlongRowsA)),
        "n"(static_cast<int>(kRunsAlongRowsB)));
}
template <bool kRunsAlongRowsA, bool kRunsAlongRowsB>
__device__ inline void multiply(float (&d)[96], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %98, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95}, "
      "%96, %97, add, 1, 1, %99, %100;\n}\n"
      : MOEC_SUMS32(0), MOEC_SUMS32(32), MOEC_SUMS32(64)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(static_cast<int>(kRunsAlongRowsA)),
        "n"(static_cast<int>(kRunsAlongRowsB)));
}
template <bool kRunsAlongRowsA, bool kRunsAlongRowsB>
__device__ inline void multiply(float (&d)[128], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
      "%128, %129, add, 1, 1, %131, %132;\n}\n"
      : MOEC_SUMS32(0), MOEC_SUMS32(32), MOEC_SUMS32(64), MOEC_SUMS32(96)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(static_cast<int>(kRunsAlongRowsA)),
        "n"(static_cast<int>(kRunsAlongRowsB)));
}

#undef MOEC_SUMS8
#undef MOEC_SUMS32

}  // namespace moec::cuda::hopper
