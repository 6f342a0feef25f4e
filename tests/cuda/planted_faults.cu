// One fault per tool of compute-sanitizer, to show that each tool finds what it is run for:
//   planted_faults memcheck|racecheck|initcheck|synccheck
#include <cstdio>
#include <cstring>

namespace {

constexpr int kThreads = 64;

__global__ void write_behind_the_end(float* x) { x[kThreads + threadIdx.x] = 1; }

__global__ void read_without_a_barrier(float* x) {
  __shared__ float shared[kThreads];
  shared[threadIdx.x] = x[threadIdx.x];
  x[threadIdx.x] = shared[kThreads - 1 - threadIdx.x];
}

__global__ void sum_what_nobody_wrote(const float* unwritten, float* x) {
  x[threadIdx.x] = unwritten[threadIdx.x] + 1;
}

__global__ void meet_by_half(float* x) {
  if (threadIdx.x < kThreads / 2) {
    x[threadIdx.x] = 1;
    __syncwarp(0xffff0000u);  // a mask without the threads that are here
  }
  __syncthreads();
}

}  // namespace

int main(int argc, char** argv) {
  const char* tool = argc == 2 ? argv[1] : "";
  float *x = nullptr, *unwritten = nullptr;
  if (cudaMalloc(&x, kThreads * sizeof(float)) != cudaSuccess) return 2;
  if (cudaMalloc(&unwritten, kThreads * sizeof(float)) != cudaSuccess) return 2;
  if (cudaMemset(x, 0, kThreads * sizeof(float)) != cudaSuccess) return 2;
  if (std::strcmp(tool, "memcheck") == 0) {
    write_behind_the_end<<<1, kThreads>>>(x);
  } else if (std::strcmp(tool, "racecheck") == 0) {
    read_without_a_barrier<<<1, kThreads>>>(x);
  } else if (std::strcmp(tool, "initcheck") == 0) {
    sum_what_nobody_wrote<<<1, kThreads>>>(unwritten, x);
  } else if (std::strcmp(tool, "synccheck") == 0) {
    meet_by_half<<<1, kThreads>>>(x);
  } else {
    std::fputs("usage: planted_faults memcheck|racecheck|initcheck|synccheck\n", stderr);
    return 2;
  }
  return cudaDeviceSynchronize() == cudaSuccess ? 0 : 1;
}
