// Marks functions that the CPU and the CUDA kernels share word for word.
#pragma once

#if defined(__CUDACC__)
#define MOEC_HOST_DEVICE __host__ __device__
#else
#define MOEC_HOST_DEVICE
#endif
