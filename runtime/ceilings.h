// What a machine can do at best.
#pragma once

namespace moec::runtime {

/// The best that was measured, per second.
struct Ceilings {
  double flops = 0;
  double bytes = 0;
};

}  // namespace moec::runtime
