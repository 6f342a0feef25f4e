"""Trains the character-level GPT of schema/examples/char-gpt.json in PyTorch and prints its validation loss.

The text is read as Unicode characters with universal newlines. The first 90% of them train; the validation loss is the
mean over the whole rest, in consecutive windows of 64 (a shorter last one is left out). Needs torch.

    torch_char_gpt.py TEXT [--iterations 1000 --seeds 1337 1338 1339 --threads 2 --compile]
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
import reading  # noqa: E402, F401: tells of libraries that are missing

import torch
import torch.nn.functional as F
from torch import nn

BATCH, BLOCK, DIM, HEADS, LAYERS, DROPOUT = 16, 64, 128, 4, 4, 0.1


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn_norm, self.ffn_norm = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM, bias=False), nn.Linear(DIM, DIM)
        self.up, self.down = nn.Linear(DIM, 4 * DIM), nn.Linear(4 * DIM, DIM)

    def forward(self, x):
        q, k, v = self.qkv(self.attn_norm(x)).unflatten(-1, (3, HEADS, DIM // HEADS)).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + F.dropout(self.proj(h), DROPOUT, self.training)
        h = self.down(F.gelu(self.up(self.ffn_norm(x))))
        return x + F.dropout(h, DROPOUT, self.training)


class CharGpt(nn.Module):
    def __init__(self, vocab_size):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab_size, DIM), nn.Embedding(BLOCK, DIM)
        self.blocks = nn.Sequential(*[Block() for _ in range(LAYERS)])
        self.final_norm, self.logits = nn.LayerNorm(DIM), nn.Linear(DIM, vocab_size)
        self.apply(self.init_weights)

    @staticmethod
    def init_weights(module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, tokens, targets):
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        x = self.blocks(F.dropout(x, DROPOUT, self.training))
        return F.cross_entropy(self.logits(self.final_norm(x)).flatten(0, 1), targets.flatten())


def random_batch(data, batch=BATCH, block=BLOCK):
    """Sequences at random offsets: tokens and targets [batch, block]."""
    index = torch.randint(len(data) - block, (batch, 1)) + torch.arange(block)
    return data[index], data[index + 1]


def make_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)


@torch.no_grad()
def validation_loss(model, data):
    windows = (len(data) - 1) // BLOCK
    tokens = data[: windows * BLOCK].view(windows, BLOCK)
    targets = data[1 : windows * BLOCK + 1].view(windows, BLOCK)
    model.eval()
    total = sum(model(x, y).item() * len(x) for x, y in zip(tokens.split(64), targets.split(64)))
    model.train()
    return total / windows


def train(train_data, validation_data, vocab_size, seed, iterations, compiled):
    torch.manual_seed(seed)
    model = CharGpt(vocab_size)
    optimizer = make_optimizer(model)
    run = torch.compile(model) if compiled else model
    begin = time.perf_counter()
    for iteration in range(iterations):
        loss = run(*random_batch(train_data))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if iteration % 100 == 0:
            print(f"seed {seed} | iteration {iteration} | loss {loss.item():.4f}", flush=True)
    seconds = time.perf_counter() - begin
    print(f"seed {seed} | {iterations} iterations in {seconds:.2f} s | "
          f"validation loss {validation_loss(model, validation_data):.4f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1337, 1338, 1339])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    if not args.text.is_file():
        parser.error(f"{args.text}: no such file")
    torch.set_num_threads(args.threads)
    text = args.text.read_text(encoding="utf-8")
    characters = sorted(set(text))
    data = torch.tensor([characters.index(c) for c in text])
    split = len(data) * 9 // 10
    print(f"{len(data)} characters, {len(characters)} distinct; {split} train, {len(data) - split} validate")
    for seed in args.seeds:
        train(data[:split], data[split:], len(characters), seed, args.iterations, args.compile)


if __name__ == "__main__":
    main()
