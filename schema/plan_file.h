// Plans as the bytes of a file. The file carries a checksum of itself, so that any damage shows.
#pragma once

#include <xxhash.h>

#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "plan_generated.h"

namespace moec {

namespace detail {

/// Offset of the checksum field; 0 in a file without one.
inline size_t checksum_offset(std::span<const uint8_t> bytes) {
  const auto* table = flatbuffers::GetRoot<flatbuffers::Table>(bytes.data());
  const uint8_t* field = table->GetAddressOf(fb::Plan::VT_CHECKSUM);
  return field == nullptr ? 0 : static_cast<size_t>(field - bytes.data());
}

/// XXH64 of the bytes with the eight at `offset` taken as zero.
inline uint64_t checksum_of(std::span<const uint8_t> bytes, size_t offset) {
  std::vector<uint8_t> cleared(bytes.begin(), bytes.end());
  std::memset(cleared.data() + offset, 0, sizeof(uint64_t));
  return XXH64(cleared.data(), cleared.size(), 0);
}

}  // namespace detail

/// The plan as the bytes of a plan file, checksum set.
inline std::vector<uint8_t> serialize_plan(const fb::PlanT& plan) {
  fb::PlanT sealed(plan);
  sealed.checksum = 1;  // a field with its default value would not be stored
  flatbuffers::FlatBufferBuilder builder;
  fb::FinishPlanBuffer(builder, fb::Plan::Pack(builder, &sealed));
  std::vector<uint8_t> bytes(builder.GetBufferPointer(), builder.GetBufferPointer() + builder.GetSize());
  const size_t offset = detail::checksum_offset(bytes);
  const uint64_t checksum = detail::checksum_of(bytes, offset);
  std::memcpy(bytes.data() + offset, &checksum, sizeof(checksum));
  return bytes;
}

/// Whether the checksum is that of the bytes, which have passed the FlatBuffers verifier.
inline bool plan_checksum_holds(std::span<const uint8_t> bytes) {
  const size_t offset = detail::checksum_offset(bytes);
  return offset != 0 && fb::GetPlan(bytes.data())->checksum() == detail::checksum_of(bytes, offset);
}

}  // namespace moec
