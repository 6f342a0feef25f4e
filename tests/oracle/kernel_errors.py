"""Errors of the GPU's kernels next to PyTorch's, in the same precision on the same GPU, against fp64.

    MOEC_VALUES=DIR test_cuda --no-skip -tc="kernel values"
    kernel_errors.py DIR

An error is the Euclidean norm of the difference to fp64, relative to that of the fp64 result. Fails where an output errs
more than twice, or a gradient more than three times, as much as PyTorch; where PyTorch errs less than the fp64 result
rounded once, which happens when it computes in a higher precision, that rounding counts.
"""

import math
import pathlib
import sys

import torch
import torch.nn.functional as F

from tensor_file import read_tensors

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
OUTPUT_BAR, GRADIENT_BAR = 2, 3


def attention(heads, kv_heads, head_dim):
    def run(x):
        batch, seq, _ = x.shape
        q, k, v = (
            part.reshape(batch, seq, -1, head_dim).transpose(1, 2)
            for part in x.split([heads * head_dim, kv_heads * head_dim, kv_heads * head_dim], -1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return y.transpose(1, 2).reshape(batch, seq, -1)

    return run


def grouped_linear(x, experts, weight):
    counts = torch.bincount(experts.flatten(), minlength=len(weight))
    if x.dtype == torch.bfloat16:
        return torch._grouped_mm(x, weight.transpose(-2, -1), offs=counts.cumsum(0).to(torch.int32))
    return torch.cat([rows @ w.T for rows, w in zip(x.split(counts.tolist()), weight)])


def rms_norm(x, weight):
    return F.rms_norm(x, weight.shape, weight, EPS_RMS)


def layer_norm(x, weight, bias):
    return F.layer_norm(x, weight.shape, weight, bias, EPS_LAYER)


# The default epsilons of the spec, which stores f32.
EPS_RMS = torch.tensor(1e-6, dtype=torch.float32).item()
EPS_LAYER = torch.tensor(1e-5, dtype=torch.float32).item()

# By what the file's name begins with; called with inputs and parameters by the last part of their names.
PEERS = {
    "rmsnorm": rms_norm,
    "layernorm": layer_norm,
    "add_rmsnorm": lambda a, b, weight: (a + b) * rms_norm(a + b, weight),
    "add_layernorm": lambda a, b, weight, bias: (a + b) * layer_norm(a + b, weight, bias),
    "softmax": lambda x: x.softmax(-1),
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "swiglu": lambda x: F.silu(x[..., ::2]) * x[..., 1::2],
    "cross_entropy": lambda x, targets: F.cross_entropy(x, targets, ignore_index=-1),
    "embedding": lambda tokens, weight: F.embedding(tokens, weight),
    "attention-12-1-64": attention(12, 1, 64),
    "attention-4-4-128": attention(4, 4, 128),
    "linear": F.linear,
    "grouped_linear": grouped_linear,
}
INTEGERS = {"targets", "tokens", "experts"}


def run_peer(peer, tensors, dtype):
    """Output and gradients of PyTorch, by name."""
    operands = {}
    for name, tensor in tensors.items():
        if name.startswith("in."):
            integer = name[3:] in INTEGERS
            operands[name[3:]] = tensor.to("cuda", torch.int64 if integer else dtype).requires_grad_(not integer)
    y = peer(**{name.rsplit(".")[-1]: operand for name, operand in operands.items()})
    seed = next(tensor for name, tensor in tensors.items() if name.startswith("seed:"))
    y.backward(seed.to("cuda", y.dtype).reshape(y.shape))
    return {"out": y.detach()} | {f"grad.{name}": t.grad for name, t in operands.items() if t.requires_grad}


def relative_error(x, exact):
    error = (x.double().flatten() - exact.flatten()).norm() / exact.norm()
    return math.inf if error.isnan() else error.item()


def main():
    print(f"{'case':20} {'type':5} {'result':18} {'error':>10} {'PyTorch':>10} {'ratio':>8}")
    results, failures, worst = 0, 0, 0.0
    for path in sorted(pathlib.Path(sys.argv[1]).glob("*.safetensors")):
        case, dtype = path.name.split(".")[:2]
        peer = PEERS.get(case, PEERS.get(case.split("-")[0]))
        tensors = read_tensors(path)
        exact, theirs = run_peer(peer, tensors, torch.float64), run_peer(peer, tensors, DTYPES[dtype])
        ours = {name: tensor.cuda() for name, tensor in tensors.items() if name.startswith(("out.", "grad."))}
        for name, reference in exact.items():
            [mine] = [t for key, t in ours.items() if key == name or (name == "out" and key.startswith("out."))]
            error, peer_error = relative_error(mine, reference), relative_error(theirs[name], reference)
            rounding = relative_error(reference.to(DTYPES[dtype]), reference)
            ratio = error / max(peer_error, rounding, sys.float_info.min)
            share = ratio / (OUTPUT_BAR if name == "out" else GRADIENT_BAR)
            results, failures, worst = results + 1, failures + (share > 1), max(worst, share)
            verdict = "  FAILED" if share > 1 else ""
            print(f"{case:20} {dtype:5} {name:18} {error:10.2e} {peer_error:10.2e} {ratio:8.2f}{verdict}")
    if results == 0:
        sys.exit(f"{sys.argv[1]}: no values there")
    print(f"note: {results} results, {failures} above the bar, the worst at {worst:.0%} of it")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
