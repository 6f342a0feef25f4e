#include "runtime/dataset.h"

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "runtime/window.h"
#include "scratch_dir.h"

namespace moec::runtime {
namespace {

using test::contains;

template <class T>
std::string shard(int32_t magic, int32_t version, int32_t count, const std::vector<T>& tokens) {
  std::vector<int32_t> header(256);
  header[0] = magic;
  header[1] = version;
  header[2] = count;
  std::string bytes(reinterpret_cast<const char*>(header.data()), header.size() * sizeof(int32_t));
  return bytes.append(reinterpret_cast<const char*>(tokens.data()), tokens.size() * sizeof(T));
}

DatasetOptions options(std::vector<std::string> files, int64_t vocab_size, int64_t seq_len) {
  DatasetOptions result;
  result.files = std::move(files);
  result.vocab_size = vocab_size;
  result.seq_len = seq_len;
  return result;
}

std::string rejection(const DatasetOptions& bad) {
  const auto data = load_dataset(bad);
  REQUIRE_FALSE(data.ok());
  CHECK(data.error().kind == ErrorKind::kInput);
  return data.error().message;
}

TEST_CASE("text is bytes where the vocabulary has room, else characters, and the last tenth is held out") {
  const test::ScratchDir dir;
  const std::string a = dir.file("a.txt", "hello world "), b = dir.file("b.txt", "h\xC3\xA9llo you");
  const auto bytes = load_dataset(options({a, b}, 256, 1));
  REQUIRE(bytes.ok());
  CHECK(bytes->tokenizer->vocab_size() == 256);
  CHECK(bytes->train.size() == 20);
  CHECK(bytes->validation.size() == 2);
  CHECK(bytes->tokenizer->decode(bytes->train) + bytes->tokenizer->decode(bytes->validation) ==
        "hello world h\xC3\xA9llo you");

  DatasetOptions separate = options({a}, 20, 4);
  separate.validation_files = {b};
  const auto characters = load_dataset(separate);
  REQUIRE(characters.ok());
  CHECK(characters->tokenizer->vocab_size() == 11);  // " dehloruwy" and é, from both files
  CHECK(characters->train[0] == 3);                  // 'h'
  CHECK(characters->train.size() == 12);
  CHECK(characters->validation.size() == 9);
  CHECK(characters->tokenizer->decode(characters->validation) == "h\xC3\xA9llo you");

  DatasetOptions again = options({a}, 20, 4);
  again.tokenizer = characters->tokenizer;
  again.validation_fraction = 0;
  const auto continued = load_dataset(again);
  REQUIRE(continued.ok());
  CHECK(continued->train == characters->train);
  CHECK(continued->validation.empty());
}

TEST_CASE("token shards of both formats are read and concatenated") {
  const test::ScratchDir dir;
  const std::string narrow = dir.file("a.bin", shard<uint16_t>(20240520, 1, 3, {1, 2, 50256}));
  const std::string wide = dir.file("b.bin", shard<uint32_t>(20240801, 7, 2, {100000, 5}));
  DatasetOptions both = options({narrow, wide}, 128256, 2);
  both.validation_fraction = 0;
  const auto data = load_dataset(both);
  REQUIRE(data.ok());
  CHECK(data->train == std::vector<int32_t>{1, 2, 50256, 100000, 5});
  CHECK(data->tokenizer->decode(data->train) == "1 2 50256 100000 5 ");
}

TEST_CASE("bad data is refused with what is wrong and where") {
  const test::ScratchDir dir;
  const std::string text = dir.file("t.txt", "abcdefghij");
  const std::vector<uint16_t> three = {1, 2, 3};
  CHECK(contains(rejection(options({}, 256, 4)), "no data file"));
  CHECK(contains(rejection(options({dir / "missing"}, 256, 4)), "cannot open"));
  CHECK(contains(rejection(options({dir.file("empty", "")}, 256, 4)), "empty"));
  CHECK(contains(rejection(options({text}, 256, 9)),
                 "training data: 9 tokens are there, one sequence of 9 and its targets need 10"));
  CHECK(contains(rejection(options({text}, 256, 4)), "validation data: 1 tokens"));
  CHECK(contains(rejection(options({text}, 5, 4)), "10 ids, the model's vocabulary only 5"));
  CHECK(contains(rejection(options({dir.file("x.txt", "ab\xFFzz")}, 5, 4)),
                 "x.txt: the text is not UTF-8 at byte 2"));
  CHECK(contains(rejection(options({dir.file("u.txt", "ab\xC0\x80")}, 50, 2)), "not UTF-8 at byte 2"));
  CHECK(contains(rejection(options({dir.file("m.bin", shard<uint16_t>(7, 1, 3, three))}, 256, 2)),
                 "magic is 7"));
  CHECK(contains(rejection(options({dir.file("v.bin", shard<uint16_t>(20240520, 2, 3, three))}, 256, 2)),
                 "version 2"));
  CHECK(contains(
      rejection(options({dir.file("h.bin", shard<uint16_t>(20240520, 1, 3, three).substr(0, 99))}, 256, 2)),
      "truncated"));
  CHECK(contains(rejection(options({dir.file("s.bin", shard<uint16_t>(20240520, 1, 4, three))}, 256, 2)),
                 "truncated: 1030 bytes, 4 tokens need 1032"));
  CHECK(contains(rejection(options({dir.file("l.bin", shard<uint16_t>(20240520, 1, 2, three))}, 256, 2)),
                 "too long"));
  CHECK(contains(rejection(options({dir.file("n.bin", shard<uint16_t>(20240520, 1, -1, three))}, 256, 2)),
                 "-1 tokens"));
  CHECK(contains(rejection(options({dir.file("o.bin", shard<uint16_t>(20240520, 1, 3, three))}, 3, 2)),
                 "token 3 at position 2"));
  CHECK(contains(rejection(options({text, dir / "o.bin"}, 256, 2)), "cannot be mixed"));
  DatasetOptions nan = options({text}, 256, 2);
  nan.validation_fraction = 1;
  CHECK(contains(rejection(nan), "fraction"));
}

TEST_CASE("tokenizers survive JSON, and invert themselves") {
  const std::string text = "a\xE2\x82\xAC\xF0\x9F\x98\x80z";
  const auto characters = make_character_tokenizer(text);
  REQUIRE(characters.ok());
  for (const auto& [tokenizer, sample] :
       std::vector<std::pair<TokenizerPtr, std::string>>{{make_byte_tokenizer(), std::string("\0\xFF x", 4)},
                                                         {*characters, text},
                                                         {make_id_tokenizer(12), "3 11 0 "}}) {
    const auto parsed = parse_tokenizer(nlohmann::json::parse(tokenizer->to_json().dump()));
    REQUIRE(parsed.ok());
    const auto ids = (*parsed)->encode(sample);
    REQUIRE(ids.ok());
    CHECK(*ids == *tokenizer->encode(sample));
    CHECK((*parsed)->decode(*ids) == sample);
    CHECK((*parsed)->vocab_size() == tokenizer->vocab_size());
    const int32_t unknown = 1000;
    CHECK(contains((*parsed)->decode({&unknown, 1}), "\xEF\xBF\xBD"));
  }
  CHECK(contains((*characters)->encode("ab").error().message, "U+0062, byte 1"));
  CHECK_FALSE(make_id_tokenizer(12)->encode("3 12").ok());
  CHECK_FALSE(make_id_tokenizer(12)->encode("3x").ok());
  for (const char* bad :
       {R"({})", R"({"kind":"magic"})", R"({"kind":3})", R"({"kind":"ids","vocab_size":-1})", R"(7)"})
    CHECK(parse_tokenizer(nlohmann::json::parse(bad)).error().kind == ErrorKind::kInput);
}

TEST_CASE("chunks tile data that is longer than the window") {
  std::vector<int32_t> data(1000);
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<int32_t>(i);
  for (const int64_t window : {11, 100, 101, 998, 999, 1000, 5000}) {
    CAPTURE(window);
    const WindowChunks chunks(data, window, 10);
    std::vector<bool> covered(data.size() - 1);  // by a token that has a target
    for (int64_t c = 0; c < chunks.count(); ++c) {
      const auto chunk = chunks.chunk(c);
      CHECK(static_cast<int64_t>(chunk.size()) == std::min<int64_t>(window, 1000));
      for (int64_t s = 0; s < chunks.sequences() * 10; ++s)
        covered[static_cast<size_t>(chunk[static_cast<size_t>(s)])] = true;
    }
    // The last sequence may be cut off, by less than a sequence.
    CHECK(std::count(covered.begin(), covered.end(), false) < 10);
  }
  CHECK(WindowChunks(data, 5000, 10).count() == 1);
  CHECK(WindowChunks(data, 101, 10).steps_per_chunk(3) == 3);
  CHECK(WindowChunks(data, 101, 10).steps_per_chunk(30) == 1);
}

}  // namespace
}  // namespace moec::runtime
