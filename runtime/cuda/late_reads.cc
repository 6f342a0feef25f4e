#include "runtime/cuda/late_reads.h"

#include <utility>

#include "runtime/cuda/cuda_check.h"

namespace moec::runtime {
namespace {

class CudaLateRead final : public LateRead {
 public:
  CudaLateRead(std::shared_ptr<LateReads::Slot> slot, std::shared_ptr<LateReads::Slot> before, size_t bytes,
               const CheckCall& check)
      : slot_(std::move(slot)), before_(std::move(before)), bytes_(bytes), check_(check) {}

  Result<bool> ready() override {
    const cudaError_t error = cudaEventQuery(slot_->copied.get());
    if (error == cudaErrorNotReady) {
      static_cast<void>(cudaGetLastError());
      return false;
    }
    MOEC_RETURN_IF_ERROR(check_(error, "reading from the device"));
    return true;
  }

  std::span<const std::byte> bytes() const override { return {slot_->bytes, bytes_}; }

  Result<double> seconds() override {
    if (before_ == nullptr) return 0.0;
    float milliseconds = 0;
    MOEC_RETURN_IF_ERROR(
        check_(cudaEventElapsedTime(&milliseconds, before_->reached.get(), slot_->reached.get()),
               "cudaEventElapsedTime"));
    return static_cast<double>(milliseconds) * 1e-3;
  }

 private:
  std::shared_ptr<LateReads::Slot> slot_;
  std::shared_ptr<LateReads::Slot> before_;
  size_t bytes_;
  const CheckCall& check_;
};

}  // namespace

Status LateReads::open(CheckCall check) {
  check_ = std::move(check);
  cudaStream_t stream = nullptr;
  MOEC_RETURN_IF_CUDA_ERROR(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  stream_.reset(stream);
  // The slot before the oldest read that is held is still needed for its time.
  constexpr size_t kSlots = Device::kMostLateReads + 1;
  void* bytes = nullptr;
  MOEC_RETURN_IF_CUDA_ERROR(cudaMallocHost(&bytes, kSlots * Device::kMostLateBytes));
  bytes_.reset(static_cast<std::byte*>(bytes));
  for (size_t i = 0; i < kSlots; ++i) {
    auto slot = std::make_shared<Slot>();
    slot->bytes = bytes_.get() + i * Device::kMostLateBytes;
    cudaEvent_t event = nullptr;
    MOEC_RETURN_IF_CUDA_ERROR(cudaEventCreate(&event));
    slot->reached.reset(event);
    MOEC_RETURN_IF_CUDA_ERROR(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    slot->copied.reset(event);
    slots_.push_back(std::move(slot));
  }
  return {};
}

Result<std::unique_ptr<LateRead>> LateReads::read(const void* from, size_t bytes, cudaStream_t runs) {
  if (slots_[next_].use_count() > 1) return failure("too many late reads are held at a time");
  std::shared_ptr<Slot> slot = slots_[next_];
  next_ = (next_ + 1) % slots_.size();
  const auto checked = [&](cudaError_t error) { return check_(error, "reading from the device"); };
  MOEC_RETURN_IF_ERROR(checked(cudaEventRecord(slot->reached.get(), runs)));
  MOEC_RETURN_IF_ERROR(checked(cudaStreamWaitEvent(stream_.get(), slot->reached.get())));
  MOEC_RETURN_IF_ERROR(
      checked(cudaMemcpyAsync(slot->bytes, from, bytes, cudaMemcpyDeviceToHost, stream_.get())));
  MOEC_RETURN_IF_ERROR(checked(cudaEventRecord(slot->copied.get(), stream_.get())));
  std::shared_ptr<Slot> before = std::exchange(last_, slot);
  return std::unique_ptr<LateRead>(
      std::make_unique<CudaLateRead>(std::move(slot), std::move(before), bytes, check_));
}

}  // namespace moec::runtime
