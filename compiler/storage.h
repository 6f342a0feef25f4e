// Places everything that outlives a program: parameters, gradients and moments grouped in contiguous ranges
// that the optimizer walks as one, and the memory shared with the host.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "compiler/builder.h"
#include "compiler/graph.h"
#include "plan_generated.h"

namespace moec {

/// One name of persistent memory: a view of a buffer. Several names may view the same bytes.
struct StorageSlot {
  std::string name;
  TensorType type;
  Role role = Role::kActivation;
  uint32_t buffer = 0;
  uint64_t offset = 0;  // bytes from the start of the buffer
};

/// Parameters that one optimizer instruction updates; the range names are views of all of them.
struct ParameterGroup {
  bool decay = false;
  std::string param, grad, moment1, moment2;
  std::string unsummed;  // the gradients whose squares nobody has summed; empty when there are none
  std::string master;    // what makes 16-bit parameters f32 masters; empty when they are their own
  int64_t elements = 0;  // padding included
};

struct Storage {
  std::vector<fb::BufferT> buffers;  // offsets are within their arenas
  std::vector<StorageSlot> slots;
  std::vector<ParameterGroup> groups;
  std::string squares;  // sums of squares of all other gradients; empty when there are none

  const StorageSlot& slot(const std::string& name) const;
};

std::string moment1_name(const std::string& parameter);
std::string moment2_name(const std::string& parameter);
/// Of a bf16 parameter what it lacks of its f32 master, of an f16 parameter the master.
std::string remainder_name(const std::string& parameter);
std::string master_name(const std::string& parameter);

/// Refuses a parameter with the name of memory that is kept for another one.
void check_parameter_names(const std::vector<Parameter>& parameters);

/// Lays out the memory of a model that is trained with `recipe`; `window_tokens` is the size of the token
/// window, 0 for none. `logits` is the type of the prefill's result.
Storage lay_out_storage(const std::vector<Parameter>& parameters, const fb::RecipeT& recipe,
                        const Precision& precision, int64_t window_tokens, const TensorType& logits);

}  // namespace moec
