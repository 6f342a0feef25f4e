#include <dlfcn.h>

#include <type_traits>

#include "kernels/cuda/cudnn/backend.h"

namespace moec::cuda::cudnn {

bool Library::load() {
  void* library = ::dlopen("libcudnn.so.9", RTLD_NOW);
  if (library == nullptr) return false;
  bool complete = true;
  const auto find = [&](const char* name, auto& function) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(::dlsym(library, name));
    complete = complete && function != nullptr;
  };
  find("cudnnGetVersion", cudnnGetVersion);
  find("cudnnCreate", cudnnCreate);
  find("cudnnDestroy", cudnnDestroy);
  find("cudnnSetStream", cudnnSetStream);
  find("cudnnBackendCreateDescriptor", cudnnBackendCreateDescriptor);
  find("cudnnBackendDestroyDescriptor", cudnnBackendDestroyDescriptor);
  find("cudnnBackendSetAttribute", cudnnBackendSetAttribute);
  find("cudnnBackendGetAttribute", cudnnBackendGetAttribute);
  find("cudnnBackendFinalize", cudnnBackendFinalize);
  find("cudnnBackendExecute", cudnnBackendExecute);
  return complete;
}

}  // namespace moec::cuda::cudnn
