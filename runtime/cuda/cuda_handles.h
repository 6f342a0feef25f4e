// Owners of CUDA objects. Releasing ignores errors: after a device fault every call returns that fault.
#pragma once

#include <cublasLt.h>
#include <cublas_v2.h>
#include <cuda_runtime_api.h>

#include <memory>
#include <type_traits>

namespace moec::runtime {

template <auto release>
struct CudaRelease {
  template <class T>
  void operator()(T* handle) const {
    static_cast<void>(release(handle));
  }
};

template <class Handle, auto release>
using CudaOwner = std::unique_ptr<std::remove_pointer_t<Handle>, CudaRelease<release>>;

using CudaStream = CudaOwner<cudaStream_t, cudaStreamDestroy>;
using CudaEvent = CudaOwner<cudaEvent_t, cudaEventDestroy>;
using CudaGraph = CudaOwner<cudaGraph_t, cudaGraphDestroy>;
using CudaGraphExec = CudaOwner<cudaGraphExec_t, cudaGraphExecDestroy>;
using CublasHandle = CudaOwner<cublasHandle_t, cublasDestroy>;
using CublasLtHandle = CudaOwner<cublasLtHandle_t, cublasLtDestroy>;
/// Memory of the device, and page-locked memory of the host that the device can write.
template <class T>
using DeviceMemory = std::unique_ptr<T, CudaRelease<cudaFree>>;
template <class T>
using PinnedMemory = std::unique_ptr<T, CudaRelease<cudaFreeHost>>;

}  // namespace moec::runtime
