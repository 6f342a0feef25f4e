#include "programs.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace moec::planner {
namespace {

class Builder {
 public:
  /// Adds a step that writes values of these sizes; returns the first of them.
  int step(std::vector<int> reads, const std::vector<uint64_t>& outputs, std::vector<int> overwrites = {},
           uint64_t workspace = 0) {
    const int first = static_cast<int>(problem.sizes.size());
    Step step{.reads = std::move(reads), .writes = {}, .shares = {}, .workspace = workspace};
    for (uint64_t size : outputs) {
      step.writes.push_back(static_cast<int>(problem.sizes.size()));
      problem.sizes.push_back(size);
    }
    for (int input : overwrites) step.shares.push_back({.output = first, .input = input, .required = false});
    problem.steps.push_back(std::move(step));
    return first;
  }

  Problem problem;
};

struct SavedLayer {
  int x, norm1, qkv, attention, residual, norm2, router, index, rows, up, act, down;
};

}  // namespace

Problem transformer(const TransformerShape& shape) {
  const uint64_t hidden = shape.tokens * shape.dim * shape.element, rows = hidden * shape.top_k;
  const uint64_t wide = shape.tokens * shape.top_k * shape.ffn * shape.element;
  const uint64_t per_token = shape.tokens * 4, routed = per_token * shape.top_k;
  const uint64_t qkv = hidden * 7 / 6, partials = 64 * shape.dim * 8;
  const uint64_t logits = shape.tokens * shape.vocab * shape.element;
  Builder b;
  std::vector<SavedLayer> saved;
  int x = b.step({}, {hidden});
  for (int l = 0; l < shape.layers; ++l) {
    SavedLayer s{};
    s.x = x;
    s.norm1 = b.step({x}, {hidden, per_token}, {x});
    const int projected = b.step({s.norm1}, {qkv});
    s.qkv = b.step({projected}, {qkv}, {projected});
    s.attention = b.step({s.qkv}, {hidden, per_token});
    const int out = b.step({s.attention}, {hidden});
    s.residual = b.step({x, out}, {hidden}, {x, out});
    s.norm2 = b.step({s.residual}, {hidden, per_token}, {s.residual});
    const int scores = b.step({s.norm2}, {per_token * 16});
    s.router = b.step({scores}, {routed, routed, per_token * 16});
    s.index = b.step({s.router + 1}, {68, routed, routed}, {}, 4096);
    s.rows = b.step({s.norm2, s.index + 1, s.index + 2}, {rows});
    s.up = b.step({s.rows, s.index}, {2 * wide});
    s.act = b.step({s.up}, {wide});
    s.down = b.step({s.act, s.index}, {rows});
    const int combined = b.step({s.down, s.router, s.index + 1, s.index + 2}, {hidden});
    x = b.step({s.residual, combined}, {hidden}, {s.residual, combined});
    saved.push_back(s);
  }
  const int top = b.step({x}, {logits});
  const int lse = b.step({top}, {4, per_token}, {}, per_token * 4);
  const int dlogits = b.step({top, lse + 1}, {logits}, {top}, per_token * 4);
  int dx = b.step({dlogits}, {hidden});
  b.step({dlogits, x}, {});
  for (auto s = saved.rbegin(); s != saved.rend(); ++s) {
    const int ddown = b.step({dx, s->down, s->router, s->index + 1, s->index + 2}, {rows, routed}, {s->down});
    const int dact = b.step({ddown, s->index}, {wide});
    b.step({ddown, s->act, s->index}, {});
    const int dup = b.step({dact, s->up}, {2 * wide}, {s->up});
    const int drows = b.step({dup, s->index}, {rows});
    b.step({dup, s->rows, s->index}, {});
    const int dnorm2 = b.step({drows, s->index + 2}, {hidden});
    const int dscores =
        b.step({ddown + 1, s->router, s->router + 1, s->router + 2}, {per_token * 16}, {s->router + 2});
    const int drouted = b.step({dscores}, {hidden});
    const int dsum = b.step({dnorm2, drouted}, {hidden}, {dnorm2, drouted});
    const int dresidual = b.step({dsum, s->residual, s->norm2 + 1}, {hidden}, {dsum}, partials);
    const int dmid = b.step({dx, dresidual}, {hidden}, {dx, dresidual});
    const int dattention = b.step({dmid}, {hidden});
    b.step({dmid, s->attention}, {});
    const int dqkv = b.step({dattention, s->qkv, s->attention, s->attention + 1}, {qkv}, {}, per_token * 24);
    const int dprojected = b.step({dqkv}, {qkv}, {dqkv});
    const int dnorm1 = b.step({dprojected}, {hidden});
    b.step({dprojected, s->norm1}, {});
    const int dinner = b.step({dnorm1, s->x, s->norm1 + 1}, {hidden}, {dnorm1}, partials);
    dx = b.step({dmid, dinner}, {hidden}, {dmid, dinner});
  }
  return std::move(b.problem);
}

Problem random_problem(std::mt19937& random, int steps) {
  Builder b;
  for (int s = 0; s < steps; ++s) {
    const int values = static_cast<int>(b.problem.sizes.size());
    // Mostly young values are read, as in real programs.
    const int youngest = random() % 4 == 0 ? values : std::min(values, 12);
    std::vector<int> reads, overwrites;
    for (size_t k = values ? random() % 4 : 0; k > 0; --k)
      reads.push_back(values - 1 - static_cast<int>(random() % static_cast<unsigned>(youngest)));
    std::vector<uint64_t> outputs;
    for (size_t k = random() % 3; k > 0; --k)
      outputs.push_back(random() % 8 == 0 ? 0 : random() % (random() % 2 ? 1'000u : 1'000'000u));
    if (!outputs.empty() && !reads.empty() && random() % 2) {
      overwrites = reads;
      if (random() % 2) outputs[0] = b.problem.sizes[reads[0]];
    }
    b.step(reads, outputs, overwrites, random() % 4 ? 0 : random() % 100'000);
  }
  const size_t values = b.problem.sizes.size();
  for (size_t v = 0; v < values; ++v)
    if (random() % 16 == 0) b.problem.live_out.push_back(static_cast<int>(v));
  return std::move(b.problem);
}

}  // namespace moec::planner
