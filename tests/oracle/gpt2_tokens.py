"""GPT-2's byte-pair encoding in plain Python, from the vocabulary in a GGUF file; text files to token shards of llm.c.

    gpt2_tokens.py VOCABULARY.gguf TEXT SHARD.bin
"""

import functools
import itertools
import re
import struct
import sys
import unicodedata
from pathlib import Path

from shared import reading

END_OF_TEXT = 50256
SHARD_MAGIC, SHARD_VERSION = 20240520, 1  # of 16-bit tokens


def read_metadata(path):
    """The metadata of a GGUF file (version 2 or 3)."""
    scalars = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
    with open(path, "rb") as file:

        def scalar(code):
            return struct.unpack("<" + code, file.read(struct.calcsize("<" + code)))[0]

        def string():
            return file.read(scalar("Q")).decode()

        def value(kind):
            if kind == 8:
                return string()
            if kind == 9:
                element, count = scalar("I"), scalar("Q")
                return [value(element) for _ in range(count)]
            return scalar(scalars[kind])

        if file.read(4) != b"GGUF" or scalar("I") not in (2, 3):
            sys.exit(f"{path}: not a GGUF file of version 2 or 3")
        scalar("Q")  # tensors
        return {string(): value(scalar("I")) for _ in range(scalar("Q"))}


def byte_characters():
    """The printable character that stands for each byte in the vocabulary."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def characters_of(category):
    """All characters of a Unicode category, as the inside of a character class: ranges, which match fast."""
    codes = [c for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)).startswith(category)]
    runs = itertools.groupby(enumerate(codes), lambda numbered: numbered[1] - numbered[0])
    ranges = ([code for _, code in run] for _, run in runs)
    return "".join(rf"\U{run[0]:08x}-\U{run[-1]:08x}" for run in ranges)


class Gpt2Tokenizer:
    def __init__(self, path):
        with reading(path):
            metadata = read_metadata(path)
            self.ids = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
            self.ranks = {tuple(pair.split(" ")): i for i, pair in enumerate(metadata["tokenizer.ggml.merges"])}
        self.bytes = byte_characters()
        letters, numbers = characters_of("L"), characters_of("N")
        self.words = re.compile(
            rf"'(?:s|t|re|ve|m|ll|d)| ?[{letters}]+| ?[{numbers}]+| ?[^\s{letters}{numbers}]+|\s+(?!\S)|\s+"
        )
        self.encode_word = functools.cache(self.encode_word)

    def encode_word(self, word):
        parts = [self.bytes[byte] for byte in word.encode()]
        while len(parts) > 1:
            pairs = list(zip(parts, parts[1:]))
            best = min(pairs, key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            merged, i = [], 0
            while i < len(parts):
                step = 2 if tuple(parts[i : i + 2]) == best else 1
                merged.append("".join(parts[i : i + step]))
                i += step
            parts = merged
        return [self.ids[part] for part in parts]

    def encode(self, text):
        return [token for word in self.words.findall(text) for token in self.encode_word(word)]

    def encode_document(self, text):
        """As llm.c prepares TinyShakespeare: an end-of-text token before each section, which an empty line ends."""
        sections = text.split("\n\n")
        ended = [section + "\n\n" for section in sections[:-1]] + sections[-1:]
        return [token for section in ended for token in (END_OF_TEXT, *self.encode(section))]


def write_shard(path, tokens):
    header = struct.pack("<256i", SHARD_MAGIC, SHARD_VERSION, len(tokens), *[0] * 253)
    Path(path).write_bytes(header + struct.pack(f"<{len(tokens)}H", *tokens))


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    vocabulary, text, shard = map(Path, sys.argv[1:])
    tokenizer = Gpt2Tokenizer(vocabulary)
    with reading(text):
        document = text.read_text(encoding="utf-8")
    tokens = tokenizer.encode_document(document)
    with reading(shard):
        write_shard(shard, tokens)
    print(f"{shard}: {len(tokens):,} tokens")


if __name__ == "__main__":
    main()
