#include "compiler/frontend.h"

#include <flatbuffers/idl.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "compiler/error.h"
#include "schema/version.h"
#include "schema_text.h"

namespace moec {
namespace {

bool is_control(char c) { return std::iscntrl(static_cast<unsigned char>(c)) != 0; }

/// The parser's message is "<file>:<line>: <column>: error: <what>", possibly with further lines.
std::string one_line(std::string message) {
  std::ranges::replace_if(message, is_control, ' ');
  while (!message.empty() && message.back() == ' ') message.pop_back();
  return message;
}

/// The schema with its include resolved: ops first, then the model without its include line.
std::string model_schema() {
  std::string model = schema_text::model;
  const std::string include = "include \"ops.fbs\";";
  model.erase(model.find(include), include.size());
  return std::string(schema_text::ops) + model;
}

/// Messages, logs and reports show names as they are.
void check_names(const fb::ModelT& model, const std::string& file) {
  const auto check = [&](const std::string& name) {
    if (std::ranges::any_of(name, is_control))
      compile_error("{}: the name '{}' has control characters", file, one_line(name));
  };
  const auto check_own = [&](const std::string& name, const std::string& whose) {
    if (name.empty()) compile_error("{}: the name of {} is empty", file, whose);
    check(name);
  };
  check_own(model.name, "the model");
  for (size_t b = 0; b < model.blocks.size(); ++b) {
    const fb::BlockT& block = *model.blocks[b];
    check_own(block.name, fmt::format("block {}", b + 1));
    for (const auto& carry : block.carry) {
      check(carry->from);
      check(carry->to);
    }
    for (size_t n = 0; n < block.nodes.size(); ++n) {
      const fb::NodeT& node = *block.nodes[n];
      check_own(node.name, fmt::format("node {} of block '{}'", n + 1, block.name));
      std::ranges::for_each(node.inputs, check);
      if (const fb::LinearT* linear = node.op.AsLinear()) check(linear->tied_to);
    }
  }
}

}  // namespace

fb::ModelT parse_model(const std::string& json, const std::string& name) {
  flatbuffers::IDLOptions options;
  options.strict_json = false;
  flatbuffers::Parser parser(options);
  if (!parser.Parse(model_schema().c_str())) compile_error("model schema: {}", one_line(parser.error_));
  if (json.find('\0') != std::string::npos) compile_error("{}: not a text file", name);
  if (!parser.ParseJson(json.c_str(), name.c_str())) compile_error("{}", one_line(parser.error_));

  const auto& builder = parser.builder_;
  flatbuffers::Verifier verifier(builder.GetBufferPointer(), builder.GetSize());
  if (!fb::VerifyModelBuffer(verifier)) compile_error("{}: a required field is missing", name);
  fb::ModelT model;
  fb::GetModel(builder.GetBufferPointer())->UnPackTo(&model);
  if (model.version == 0 || model.version > kModelVersion)
    compile_error("{}: model version {}, but this build reads versions 1 to {}", name, model.version,
                  kModelVersion);
  check_names(model, name);
  if (!model.recipe) model.recipe = std::make_unique<fb::RecipeT>();
  if (!model.recipe->adamw) model.recipe->adamw = std::make_unique<fb::AdamWT>();
  if (!model.recipe->schedule) model.recipe->schedule = std::make_unique<fb::ScheduleT>();
  return model;
}

fb::ModelT read_model(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) compile_error("{}: no such file", path);
  if (!std::filesystem::is_regular_file(path, error)) compile_error("{}: not a regular file", path);
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file) compile_error("{}: cannot be read", path);
  return parse_model(text.str(), path);
}

}  // namespace moec
