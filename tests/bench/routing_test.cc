// Forced routing: the loads that it promises, and training under it.
#include "bench/routing.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "tests/support/make_device.h"
#include "tests/support/must.h"
#include "tests/support/training.h"

namespace moec::test {
namespace {

using bench::Routing;
using runtime::Session;

constexpr uint32_t kExperts = 8;

Session routed_session(Routing routing, fb::DType dtype) {
  fb::ModelT model = example_model("moe-tiny");
  set_experts(model, kExperts);
  model.recipe->dtype = dtype;
  model.recipe->adamw->weight_decay = 0;
  Session session = must(training_session(model, runtime::make_cpu_device()));
  must(bench::force_routing(session, routing));
  return session;
}

/// Values of one expert in a parameter [E, ...].
std::vector<float> weights_of_expert(Session& session, const std::string& parameter, size_t expert) {
  const runtime::HostTensor value = must(session.read_parameter(parameter));
  const auto all = value.as<float>();
  const size_t size = all.size() / kExperts;
  const auto own = all.subspan(expert * size, size);
  return {own.begin(), own.end()};
}

}  // namespace

TEST_CASE("forced routing gives the busiest expert the load it promises, before and after training") {
  struct Promise {
    Routing routing;
    double busiest;  // top-2 of 8: a mean of T / 4 rows
  };
  for (const auto& [routing, busiest] :
       {Promise{Routing::kBalanced, 1}, Promise{Routing::kSkewed, 2}, Promise{Routing::kDegenerate, 4}})
    for (const fb::DType dtype : {fb::DType::F32, fb::DType::BF16}) {
      CAPTURE(bench::kRoutingNames[static_cast<size_t>(routing)]);
      Session session = routed_session(routing, dtype);
      for (int64_t step = 0; step < 8; ++step) {
        must(session.train_step());
        CHECK(std::isfinite(must(session.read_metrics(step)).grad_norm));
      }
      const std::vector<double> layers = must(bench::busiest_experts(session));
      CHECK(layers.size() == 2);
      for (const double load : layers) CHECK(load == doctest::Approx(busiest).epsilon(0.15));
    }
}

TEST_CASE("degenerate routing trains the chosen experts and leaves the others as they are") {
  Session session = routed_session(Routing::kDegenerate, fb::DType::F32);
  for (const std::string parameter : {"block.0.gate_up.weight", "block.1.down.weight"}) {
    CAPTURE(parameter);
    std::vector<std::vector<float>> before;
    for (size_t e = 0; e < kExperts; ++e) before.push_back(weights_of_expert(session, parameter, e));
    must(session.train_step());
    for (size_t e = 0; e < kExperts; ++e)
      CHECK((weights_of_expert(session, parameter, e) == before[e]) == (e >= 2));
  }
}

TEST_CASE("routing of a model without experts is not forced") {
  Session session = must(training_session(example_model("char-gpt"), runtime::make_cpu_device()));
  CHECK_FALSE(bench::force_routing(session, Routing::kBalanced).ok());
}

}  // namespace moec::test
