#include "kernels/operand_shapes.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <iterator>
#include <limits>
#include <optional>
#include <stdexcept>
#include <vector>

#include "kernels/catalog.h"

namespace moec {
namespace {

/// Sums and products of sizes end here instead of wrapping.
constexpr int64_t kLargest = std::numeric_limits<int64_t>::max();

int64_t plus(int64_t a, int64_t b) {
  int64_t sum = 0;
  return __builtin_add_overflow(a, b, &sum) ? kLargest : sum;
}

int64_t times(int64_t a, int64_t b) {
  int64_t product = 0;
  return __builtin_mul_overflow(a, b, &product) ? kLargest : product;
}

struct Heads {
  int64_t heads = 0, kv_heads = 0, head_dim = 0;

  /// Columns of packed queries, keys and values.
  int64_t qkv_dim() const { return times(plus(heads, 2 * kv_heads), head_dim); }
};

Heads heads_of(const fb::OpUnion& op) {
  const auto read = [](const auto& attrs) { return Heads{attrs.heads, attrs.kv_heads, attrs.head_dim}; };
  if (const fb::AttentionT* attention = op.AsAttention()) return read(*attention);
  if (const fb::RopeT* rope = op.AsRope()) return read(*rope);
  return {};
}

bool has_bias(const fb::OpUnion& op) {
  if (const fb::LinearT* linear = op.AsLinear()) return linear->bias;
  if (const fb::GroupedLinearT* linear = op.AsGroupedLinear()) return linear->bias;
  return op.AsLayerNorm()->bias;
}

float dropout_of(const fb::OpUnion& op) {
  if (const fb::FusedLinearT* linear = op.AsFusedLinear()) return linear->dropout_p;
  if (const fb::FusedNormT* norm = op.AsFusedNorm()) return norm->dropout_p;
  return op.AsDropout()->p;
}

/// A size that rows name by a word; of what attributes have or have not, 1 or 0.
struct Word {
  std::string_view name;
  int64_t (*value)(const fb::OpUnion& op, const PlanSizes& plan);
};

constexpr Word kWords[] = {
    {"heads", [](const fb::OpUnion& op, const PlanSizes&) { return heads_of(op).heads; }},
    {"kv_heads", [](const fb::OpUnion& op, const PlanSizes&) { return heads_of(op).kv_heads; }},
    {"head_dim", [](const fb::OpUnion& op, const PlanSizes&) { return heads_of(op).head_dim; }},
    {"qkv_dim", [](const fb::OpUnion& op, const PlanSizes&) { return heads_of(op).qkv_dim(); }},
    {"top_k", [](const fb::OpUnion& op, const PlanSizes&) -> int64_t { return op.AsRouter()->top_k; }},
    {"experts",
     [](const fb::OpUnion& op, const PlanSizes&) -> int64_t { return op.AsExpertIndex()->experts; }},
    {"biased", [](const fb::OpUnion& op, const PlanSizes&) -> int64_t { return has_bias(op); }},
    {"dropout", [](const fb::OpUnion& op, const PlanSizes&) -> int64_t { return dropout_of(op) > 0; }},
    {"batch_size", [](const fb::OpUnion&, const PlanSizes& plan) { return plan.batch_size; }},
    {"seq_len", [](const fb::OpUnion&, const PlanSizes& plan) { return plan.seq_len; }},
    {"vocab_size", [](const fb::OpUnion&, const PlanSizes& plan) { return plan.vocab_size; }},
};

/// The word of this name, nullptr where there is none.
const Word* find_word(std::string_view name) {
  const auto* word = std::ranges::find(kWords, name, &Word::name);
  return word == std::end(kWords) ? nullptr : word;
}

/// A number, a letter or a word. The letter of "..", the product of leading dimensions, is '.'.
struct Factor {
  std::string text;
  int64_t number = 0;
  char letter = 0;
  const Word* word = nullptr;
};

/// A product, divided and rounded up.
struct Term {
  std::vector<Factor> factors;
  int64_t divisor = 1;
};

/// A sum of terms.
struct Size {
  std::vector<Term> terms;

  /// The letter that this size is; 0 where it is something else.
  char letter() const {
    const bool lone = terms.size() == 1 && terms[0].divisor == 1 && terms[0].factors.size() == 1;
    return lone ? terms[0].factors[0].letter : '\0';
  }
};

struct Shape {
  std::string text;    // "[..,o]"; empty for any shape
  bool leads = false;  // the first size is that of all dimensions in front of the others
  std::vector<Size> sizes;
};

enum class Relation : uint8_t { at_most, divides, together, implies };

struct Condition {
  std::string text;
  Relation relation = Relation::at_most;
  std::string left_name, right_name;  // what is there together: operands, or what a word says of attributes
  Size left, right;                   // for the relations of sizes

  bool is_of_sizes() const { return relation == Relation::at_most || relation == Relation::divides; }
};

}  // namespace

struct ShapeRule::Row {
  std::vector<Shape> inputs, outputs;  // as the kernel declares them
  std::vector<Condition> conditions;
};

namespace {

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  while (true) {
    const size_t end = text.find(separator);
    parts.push_back(text.substr(0, end));
    if (end == text.npos) return parts;
    text.remove_prefix(end + 1);
  }
}

/// Reads the row of one kernel.
class RowParser {
 public:
  explicit RowParser(const KernelInfo& kernel)
      : kernel_(kernel), inputs_(kernel.inputs.size()), outputs_(kernel.outputs.size()) {}

  ShapeRule::Row parse(std::string_view text) {
    const size_t semicolon = text.find(';');
    parse_operands(text.substr(0, semicolon));
    if (semicolon != text.npos) parse_conditions(text.substr(semicolon + 1));
    complete_inputs();
    ShapeRule::Row row{.inputs = complete(inputs_, kernel_.inputs),
                       .outputs = complete(outputs_, kernel_.outputs),
                       .conditions = std::move(conditions_)};
    check_letters(row);
    return row;
  }

 private:
  [[noreturn]] void fail(std::string_view what, std::string_view where) const {
    throw std::logic_error("operand_shapes.def: the row of " + std::string(kernel_.key) + " " +
                           std::string(what) + " '" + std::string(where) + "'");
  }

  void parse_operands(std::string_view text) {
    bool outputs = false;
    for (const std::string_view word : split(text, ' ')) {
      if (word.empty()) continue;
      if (word == "->") {
        outputs = true;
        continue;
      }
      const size_t bracket = std::min(word.find('['), word.size());
      const std::string_view name = word.substr(0, bracket);
      const int index = outputs ? kernel_.output_index(name) : kernel_.input_index(name);
      if (index < 0) fail("has no such operand as", name);
      (outputs ? outputs_ : inputs_)[static_cast<size_t>(index)] = parse_shape(word.substr(bracket));
    }
  }

  /// Gives "x_prev" the shape of the output x.
  void complete_inputs() {
    constexpr std::string_view kPrevious = "_prev";
    for (size_t i = 0; i < inputs_.size(); ++i) {
      const std::string_view name = kernel_.inputs[i].name;
      if (inputs_[i] || !name.ends_with(kPrevious)) continue;
      const int output = kernel_.output_index(name.substr(0, name.size() - kPrevious.size()));
      if (output >= 0) inputs_[i] = outputs_[static_cast<size_t>(output)];
    }
  }

  std::vector<Shape> complete(const std::vector<std::optional<Shape>>& shapes,
                              const std::vector<Operand>& operands) const {
    std::vector<Shape> all;
    for (size_t i = 0; i < shapes.size(); ++i) {
      if (!shapes[i]) fail("says nothing about", operands[i].name);
      all.push_back(*shapes[i]);
    }
    return all;
  }

  /// Every letter is a size of an operand that is always there, so that each call tells all of them.
  void check_letters(const ShapeRule::Row& row) const {
    std::string told;
    const auto tell = [&](const std::vector<Shape>& shapes, const std::vector<Operand>& operands) {
      for (size_t i = 0; i < shapes.size(); ++i)
        for (const Size& size : shapes[i].sizes)
          if (!operands[i].optional && !operands[i].variadic && size.letter() != 0) told += size.letter();
    };
    tell(row.inputs, kernel_.inputs);
    tell(row.outputs, kernel_.outputs);
    for (const char letter : letters_)
      if (told.find(letter) == told.npos) fail("leaves open the size", std::string(1, letter));
  }

  Shape parse_shape(std::string_view text) {
    Shape shape{.text = std::string(text), .leads = text.starts_with("[..")};
    if (text.size() <= 2) return shape;
    for (const std::string_view size : split(text.substr(1, text.size() - 2), ','))
      shape.sizes.push_back(parse_size(size));
    return shape;
  }

  Size parse_size(std::string_view text) {
    Size size;
    for (const std::string_view part : split(text, '+')) {
      const std::vector<std::string_view> quotient = split(part, '/');
      Term& term = size.terms.emplace_back();
      for (const std::string_view factor : split(quotient[0], '*'))
        term.factors.push_back(parse_factor(factor));
      if (quotient.size() > 1) term.divisor = parse_number(quotient[1]);
    }
    return size;
  }

  Factor parse_factor(std::string_view text) {
    Factor factor{.text = std::string(text)};
    if (const Word* word = find_word(text))
      factor.word = word;
    else if (text == ".." || (text.size() == 1 && text[0] >= 'a' && text[0] <= 'z'))
      letters_ += factor.letter = text[0];
    else
      factor.number = parse_number(text);
    return factor;
  }

  int64_t parse_number(std::string_view text) const {
    int64_t number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error != std::errc() || end != text.data() + text.size() || number < 1)
      fail("has no such size as", text);
    return number;
  }

  void parse_conditions(std::string_view text) {
    constexpr std::pair<std::string_view, Relation> kRelations[] = {{"<=", Relation::at_most},
                                                                    {"|", Relation::divides},
                                                                    {"=>", Relation::implies},
                                                                    {"=", Relation::together}};
    for (const std::string_view word : split(text, ' ')) {
      if (word.empty()) continue;
      const auto relation = std::ranges::find_if(
          kRelations, [&](const auto& known) { return word.find(known.first) != word.npos; });
      if (relation == std::end(kRelations)) fail("has no such condition as", word);
      const size_t sign = word.find(relation->first);
      add_condition(word, relation->second, word.substr(0, sign), word.substr(sign + relation->first.size()));
    }
  }

  void add_condition(std::string_view text, Relation relation, std::string_view left,
                     std::string_view right) {
    Condition condition{.text = std::string(text), .relation = relation};
    if (condition.is_of_sizes()) {
      condition.left = parse_size(left);
      condition.right = parse_size(right);
    } else {
      for (const std::string_view name : {left, right})
        if (kernel_.input_index(name) < 0 && kernel_.output_index(name) < 0 && !find_word(name))
          fail("has no such operand as", name);
      condition.left_name = left;
      condition.right_name = right;
    }
    conditions_.push_back(std::move(condition));
  }

  const KernelInfo& kernel_;
  std::vector<std::optional<Shape>> inputs_, outputs_;
  std::vector<Condition> conditions_;
  std::string letters_;  // that the row has
};

std::string shape_text(const TensorView& view) {
  std::string text = "[";
  for (int i = 0; i < view.rank; ++i) text.append(i == 0 ? "" : ",").append(std::to_string(view.dim(i)));
  return text + "]";
}

/// One call against a row.
class RowMatcher {
 public:
  RowMatcher(const KernelInfo& kernel, const ShapeRule::Row& row, const KernelCall& call,
             const PlanSizes& plan)
      : kernel_(kernel), row_(row), call_(call), plan_(plan) {
    letters_.fill(kUnknown);
  }

  std::string misfit() {
    // What is a letter alone first, as the other sizes are made of these.
    for (const bool lone : {true, false}) {
      std::string found = operand_misfit(call_.inputs, row_.inputs, kernel_.inputs, lone);
      if (found.empty()) found = operand_misfit(call_.outputs, row_.outputs, kernel_.outputs, lone);
      if (!found.empty()) return found;
    }
    for (const Condition& condition : row_.conditions)
      if (std::string found = condition_misfit(condition); !found.empty()) return found;
    return "";
  }

 private:
  static constexpr int64_t kUnknown = -1;

  std::string operand_misfit(const std::vector<TensorView>& views, const std::vector<Shape>& shapes,
                             const std::vector<Operand>& operands, bool lone) {
    for (size_t i = 0; i < views.size(); ++i) {
      const size_t declared = std::min(i, shapes.size() - 1);
      const Shape& shape = shapes[declared];
      if (!views[i].present() || shape.text.empty() || fits(views[i], shape, lone)) continue;
      return "'" + operands[declared].name + "' is " + shape_text(views[i]) + ", expected " + shape.text +
             known_sizes(" with ", shape.sizes);
    }
    return "";
  }

  /// Whether these of the sizes fit; letters seen for the first time are learnt.
  bool fits(const TensorView& view, const Shape& shape, bool lone) {
    const auto sizes = static_cast<int>(shape.sizes.size());
    const int leading = shape.leads ? view.rank - (sizes - 1) : 0;
    if (shape.leads ? leading < 0 : view.rank != sizes) return false;
    for (int i = 0; i < sizes; ++i) {
      int64_t extent = 1;
      if (shape.leads && i == 0)
        for (int d = 0; d < leading; ++d) extent = times(extent, view.dim(d));
      else
        extent = view.dim(view.rank - sizes + i);
      const Size& size = shape.sizes[static_cast<size_t>(i)];
      if (extent < 1 || ((size.letter() != 0) == lone && !is(size, extent))) return false;
    }
    return true;
  }

  bool is(const Size& size, int64_t extent) {
    if (const char letter = size.letter(); letter != 0 && letter_size(letter) == kUnknown)
      letter_size(letter) = extent;
    return value(size) == extent;
  }

  int64_t& letter_size(char letter) { return letters_[static_cast<size_t>(letter)]; }

  int64_t value(const Factor& factor) {
    if (factor.letter != 0) return letter_size(factor.letter);
    return factor.word != nullptr ? factor.word->value(*call_.op, plan_) : factor.number;
  }

  int64_t value(const Size& size) {
    int64_t sum = 0;
    for (const Term& term : size.terms) {
      int64_t product = 1;
      for (const Factor& factor : term.factors) product = times(product, value(factor));
      sum = plus(sum, product / term.divisor + (product % term.divisor != 0));
    }
    return sum;
  }

  /// "o = 64, i = 48" of the sizes known by name, behind `before`; empty where there are none.
  std::string known_sizes(std::string_view before, const std::vector<Size>& sizes) {
    std::vector<std::string> found;
    for (const Size& size : sizes)
      for (const Term& term : size.terms)
        for (const Factor& factor : term.factors) {
          if (factor.letter == 0 && factor.word == nullptr) continue;
          if (value(factor) == kUnknown) continue;
          std::string text = factor.text + " = " + std::to_string(value(factor));
          if (std::ranges::find(found, text) == found.end()) found.push_back(std::move(text));
        }
    std::string text;
    for (const std::string& name : found) text.append(text.empty() ? before : ", ").append(name);
    return text;
  }

  std::string condition_misfit(const Condition& condition) {
    if (!condition.is_of_sizes()) return presence_misfit(condition);
    const int64_t left = value(condition.left), right = value(condition.right);
    if (condition.relation == Relation::at_most ? left <= right : left > 0 && right % left == 0) return "";
    return condition.text + " does not hold" + known_sizes(": ", {condition.left, condition.right});
  }

  std::string presence_misfit(const Condition& condition) const {
    const bool left = present(condition.left_name), right = present(condition.right_name);
    if (condition.relation == Relation::implies ? !left || right : left == right) return "";
    return "of '" + condition.left_name + "' and '" + condition.right_name + "' only '" +
           (left ? condition.left_name : condition.right_name) + "' is there";
  }

  bool present(std::string_view name) const {
    if (const int input = kernel_.input_index(name); input >= 0)
      return call_.inputs[static_cast<size_t>(input)].present();
    if (const int output = kernel_.output_index(name); output >= 0)
      return call_.outputs[static_cast<size_t>(output)].present();
    return find_word(name)->value(*call_.op, plan_) != 0;
  }

  const KernelInfo& kernel_;
  const ShapeRule::Row& row_;
  const KernelCall& call_;
  const PlanSizes& plan_;
  std::array<int64_t, 128> letters_;
};

}  // namespace

ShapeRule::ShapeRule(const KernelInfo& kernel, std::string_view text)
    : row_(std::make_shared<const Row>(RowParser(kernel).parse(text))) {}

std::string ShapeRule::misfit(const KernelInfo& kernel, const KernelCall& call, const PlanSizes& plan) const {
  return empty() ? "" : RowMatcher(kernel, *row_, call, plan).misfit();
}

}  // namespace moec
