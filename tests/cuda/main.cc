// Runs the test suite "gpu" only where there is a GPU. A case marked doctest::skip() ends its process with a
// device fault and is run by another case, in a process of its own.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>

#include "runtime/cuda/cuda_device.h"

int main(int argc, char** argv) {
  doctest::Context context(argc, argv);
  if (const moec::Status status = moec::runtime::cuda_available(); !status.ok()) {
    std::printf("the tests of suite 'gpu' are skipped: %s\n", status.error().message.c_str());
    context.addFilter("test-suite-exclude", "gpu");
  }
  return context.run();
}
