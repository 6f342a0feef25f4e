// What the matrix kernels ask of the hardware: asynchronous copies to shared memory, and products of the
// fragments that a warp holds in registers. Blocks are one-dimensional.
//
// Fragments of a[16,16] and b[16,8] are 4 and 2 registers of two bf16; sums d[16,8] are 4 floats. With group
// = lane / 4 and pair = 2 * (lane % 4), d[0], d[1] are at row group, columns pair and pair + 1; d[2], d[3]
// eight rows below (PTX ISA, mma.m16n8k16). Fragments of a[16,8] and b[8,8] in TF32 hold one element per
// register at the places of those pairs (mma.m16n8k8).
#pragma once

#include <cstdint>

#include "kernels/cuda/types.cuh"

namespace moec::cuda {

__device__ inline unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

/// Starts to copy 16 bytes to shared memory, or to clear them unless `valid`; both addresses are multiples
/// of 16.
__device__ inline void copy16_async(void* to, const void* from, bool valid) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
#else
  *static_cast<uint4*>(to) = valid ? *static_cast<const uint4*>(from) : uint4{};
#endif
}

/// Ends a group of copies of this thread.
__device__ inline void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/// Waits until at most the kPending latest groups of copies of this thread are under way.
template <int kPending>
__device__ inline void wait_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

/// Reads four 8x8 matrices of bf16; the lanes 8i to 8i+7 give the addresses of the rows of matrix i. A lane
/// gets of each matrix the elements (group, pair) and (group, pair + 1); of its transpose if kTransposed.
template <bool kTransposed>
__device__ inline void load_matrices(uint32_t (&to)[4], const bf16* row) {
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
  }
}

/// Reads four 8x4 matrices of floats in the same way: a lane gets the element (lane / 4, lane % 4) of each.
__device__ inline void load_matrices(float (&to)[4], const float* row) {
  uint32_t bits[4];
  load_matrices<false>(bits, reinterpret_cast<const bf16*>(row));
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = __uint_as_float(bits[i]);
}

#if __CUDA_ARCH__ >= 800
/// d += a b on the tensor cores.
__device__ inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#else
/// The product of two pairs of bf16, summed, in f32.
__device__ inline float dot_pairs(uint32_t a, uint32_t b) {
  const auto low = [](uint32_t pair) { return __uint_as_float(pair << 16); };
  const auto high = [](uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); };
  return low(a) * low(b) + high(a) * high(b);
}

/// d + a b where tensor cores know no bf16: lanes exchange their registers. Not inlined, as it is long.
static __device__ __noinline__ float4 exchange_multiply(float4 d, uint4 a, uint32_t b0, uint32_t b1) {
  constexpr unsigned kAll = 0xffffffffu;
  const int lane = static_cast<int>(threadIdx.x) % 32, group = lane / 4, pair = 2 * (lane % 4);
#pragma unroll 1
  for (int owner = 0; owner < 4; ++owner) {  // lane of a quad that holds depths 2 owner and 2 owner + 8
    const int row = group * 4 + owner, col = pair * 4 + owner;
    const uint32_t upper_near = __shfl_sync(kAll, a.x, row), lower_near = __shfl_sync(kAll, a.y, row);
    const uint32_t upper_far = __shfl_sync(kAll, a.z, row), lower_far = __shfl_sync(kAll, a.w, row);
    const uint32_t left_near = __shfl_sync(kAll, b0, col), right_near = __shfl_sync(kAll, b0, col + 4);
    const uint32_t left_far = __shfl_sync(kAll, b1, col), right_far = __shfl_sync(kAll, b1, col + 4);
    d.x += dot_pairs(upper_near, left_near) + dot_pairs(upper_far, left_far);
    d.y += dot_pairs(upper_near, right_near) + dot_pairs(upper_far, right_far);
    d.z += dot_pairs(lower_near, left_near) + dot_pairs(lower_far, left_far);
    d.w += dot_pairs(lower_near, right_near) + dot_pairs(lower_far, right_far);
  }
  return d;
}

/// d += a b.
__device__ inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const float4 sum = exchange_multiply({d[0], d[1], d[2], d[3]}, {a[0], a[1], a[2], a[3]}, b0, b1);
  d[0] = sum.x;
  d[1] = sum.y;
  d[2] = sum.z;
  d[3] = sum.w;
}
#endif

/// Two floats as a pair of bf16, the first in the low half.
__device__ inline uint32_t pack_bf16(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  return static_cast<uint32_t>(__bfloat16_as_ushort(pair.x)) |
         static_cast<uint32_t>(__bfloat16_as_ushort(pair.y)) << 16;
}

/// Fragment of a[16,16] from element (row, depth) on of a tile [rows][stride] in shared memory, or, if
/// kDepthMajor, of a tile [depths][stride].
template <bool kDepthMajor>
__device__ inline void load_a(uint32_t (&a)[4], const bf16* tile, int stride, int row, int depth) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if constexpr (kDepthMajor) {
    load_matrices<true>(a, tile + (depth + lane / 16 * 8 + lane % 8) * stride + row + lane / 8 % 2 * 8);
  } else {
    load_matrices<false>(a, tile + (row + lane % 16) * stride + depth + lane / 16 * 8);
  }
}

/// Fragments of b[16,16], two of b[16,8] next to each other: registers 0 and 1, 2 and 3. The tile is
/// [cols][stride], or, if kDepthMajor, [depths][stride].
template <bool kDepthMajor>
__device__ inline void load_b(uint32_t (&b)[4], const bf16* tile, int stride, int col, int depth) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if constexpr (kDepthMajor) {
    load_matrices<true>(b, tile + (depth + lane / 8 % 2 * 8 + lane % 8) * stride + col + lane / 16 * 8);
  } else {
    load_matrices<false>(b, tile + (col + lane / 16 * 8 + lane % 8) * stride + depth + lane / 8 % 2 * 8);
  }
}

/// Fragment of a[16,8] from element (row, depth) on of a tile of floats, laid out as for load_a above.
template <bool kDepthMajor>
__device__ inline void load_a(float (&a)[4], const float* tile, int stride, int row, int depth) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if constexpr (kDepthMajor) {
    const float* from = tile + (depth + lane % 4) * stride + row + lane / 4;
    a[0] = from[0];
    a[1] = from[8];
    a[2] = from[4 * stride];
    a[3] = from[4 * stride + 8];
  } else {
    load_matrices(a, tile + (row + lane % 16) * stride + depth + lane / 16 * 4);
  }
}

/// Fragments of b[8,16], two of b[8,8] next to each other, of a tile of floats laid out as for load_b above.
template <bool kDepthMajor>
__device__ inline void load_b(float (&b)[4], const float* tile, int stride, int col, int depth) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if constexpr (kDepthMajor) {
    const float* from = tile + (depth + lane % 4) * stride + col + lane / 4;
    b[0] = from[0];
    b[1] = from[4 * stride];
    b[2] = from[8];
    b[3] = from[4 * stride + 8];
  } else {
    load_matrices(b, tile + (col + lane / 16 * 8 + lane % 8) * stride + depth + lane / 8 % 2 * 4);
  }
}

/// The nearest TF32 number, of those equally near the larger one, in the bits of a float. Overflows to
/// infinity. (The hardware's conversion has a fraction of the throughput.)
__device__ inline uint32_t round_tf32(float value) { return (__float_as_uint(value) + 0x1000u) & ~0x1fffu; }

/// d += a b for fragments in TF32, of floats of which the hardware ignores the lower 13 bits (sm_80 and
/// later).
__device__ inline void multiply_add_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace moec::cuda
