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

import shared  # noqa: F401: tells of libraries that are missing

import torch
import torch.nn.functional as F

from tensor_file import read_tensors

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
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


def wide(x):
    """In the type that the compiler keeps sums and routing in."""
    return x if x.dtype == torch.float64 else x.float()


def rope(heads, head_dim, style):
    def run(x):
        *rest, width = x.shape
        pairs = head_dim // 2
        angles = torch.outer(
            torch.arange(rest[-1], dtype=torch.float64), 10000.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
        )
        cos, sin = (f(angles).to(x)[:, None] for f in (torch.cos, torch.sin))
        turned, values = x.split([heads * head_dim, width - heads * head_dim], -1)
        if style == "half":
            a, b = turned.reshape(*rest, heads, 2, pairs).unbind(-2)
        else:
            a, b = turned.reshape(*rest, heads, pairs, 2).unbind(-1)
        turned = torch.stack((a * cos - b * sin, a * sin + b * cos), -2 if style == "half" else -1)
        return torch.cat((turned.reshape(*rest, -1), values), -1)

    return run


def order(experts):
    """Assignments (token, choice) in the order of the experts' rows."""
    return experts.flatten().argsort(stable=True)


def dispatch(x, experts):
    return x[order(experts) // experts.shape[-1]]


def combine(rows, weights, experts):
    return (rows[order(experts).argsort()].reshape(*experts.shape, -1) * weights[..., None]).sum(-2).to(rows.dtype)


def moe(x, logits, weight):
    weights, experts = logits.softmax(-1).topk(2)
    rows = grouped_linear(dispatch(x, experts), experts, weight)
    return combine(rows, weights / weights.sum(-1, keepdim=True), experts)


def grouped_swiglu(x, experts, gate_up_weight, y_weight):
    h = grouped_linear(x, experts, gate_up_weight)
    return grouped_linear((F.silu(h[..., ::2]) * h[..., 1::2]).contiguous(), experts, y_weight)


def aux_loss(x, weight):
    probs = F.linear(wide(x), wide(weight)).softmax(-1)
    counts = torch.bincount(probs.topk(2).indices.flatten(), minlength=probs.shape[-1])
    return 0.5 * probs.shape[-1] * (counts.to(probs) / counts.sum() * probs.mean(0)).sum()


def rms_norm(x, weight):
    return F.rms_norm(x, weight.shape, weight, EPS_RMS)


def layer_norm(x, weight, bias):
    return F.layer_norm(x, weight.shape, weight, bias, EPS_LAYER)


# What a spec stores as f32.
EPS_RMS = torch.tensor(1e-6, dtype=torch.float32).item()
EPS_LAYER = torch.tensor(1e-5, dtype=torch.float32).item()
SCALE = torch.tensor(0.37, dtype=torch.float32).item()

# By what the file's name begins with; called with inputs and parameters by the last part of their names, of parameters
# with the same one by the last two ("up_weight").
PEERS = {
    "rmsnorm": rms_norm,
    "layernorm": layer_norm,
    "add_rmsnorm": lambda a, b, weight: (a + b) * rms_norm(a + b, weight),
    "add_layernorm": lambda a, b, weight, bias: (a + b) * layer_norm(a + b, weight, bias),
    "softmax": lambda x: x.softmax(-1),
    "silu": lambda x: F.silu(x),
    "gelu": lambda x: F.gelu(x),
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "swiglu": lambda x: F.silu(x[..., ::2]) * x[..., 1::2],
    "cross_entropy": lambda x, targets: F.cross_entropy(x, targets, ignore_index=-1),
    "embedding": lambda tokens, weight: F.embedding(tokens, weight),
    "attention-12-1-64": attention(12, 1, 64),
    "attention-4-4-128": attention(4, 4, 128),
    "attention-6-6-32": attention(6, 6, 32),
    "attention-4-2-16": attention(4, 2, 16),
    "rope": rope(12, 64, "interleaved"),
    "rope_half": rope(12, 64, "half"),
    "position_embedding": lambda x, weight: x + weight[: x.shape[1]],
    "scale": lambda x: x * SCALE,
    "add": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "linear": lambda x, weight, bias=None: F.linear(x, weight, bias),
    "linear_full": lambda x, weight: F.linear(wide(x), wide(weight)),
    "mlp": lambda x, up_weight, up_bias, y_weight, y_bias: F.linear(
        F.gelu(F.linear(x, up_weight, up_bias)), y_weight, y_bias
    ),
    "linear_cross_entropy": lambda x, weight, targets: F.cross_entropy(F.linear(x, weight), targets, ignore_index=-1),
    "grouped_linear": grouped_linear,
    "grouped_swiglu": grouped_swiglu,
    "dispatch": dispatch,
    "combine": combine,
    "moe": moe,
    "aux_loss": aux_loss,
    "router_z_loss": lambda x, weight: 0.5 * F.linear(wide(x), wide(weight)).logsumexp(-1).square().mean(),
}
INTEGERS = {"targets", "tokens", "experts"}
WIDE = {"logits", "weights"}  # f32 in a model of 16 bits, too


def run_peer(peer, tensors, dtype):
    """Output and gradients of PyTorch, by name."""
    operands = {}
    for name, tensor in tensors.items():
        if name.startswith("in."):
            integer = name[3:] in INTEGERS
            operand = tensor.to("cuda", torch.int64 if integer else dtype)
            operands[name[3:]] = (wide(operand) if name[3:] in WIDE else operand).requires_grad_(not integer)
    last = [name.split(".")[-1] for name in operands]
    names = [n.split(".")[-1] if last.count(n.split(".")[-1]) == 1 else "_".join(n.split(".")[-2:]) for n in operands]
    y = peer(**dict(zip(names, operands.values())))
    seed = next(tensor for name, tensor in tensors.items() if name.startswith("seed:"))
    y.backward(seed.to("cuda", y.dtype).reshape(y.shape))
    return {"out": y.detach()} | {f"grad.{name}": t.grad for name, t in operands.items() if t.requires_grad}


def relative_error(x, exact):
    error = (x.double().flatten() - exact.flatten()).norm() / exact.norm()
    return math.inf if error.isnan() else error.item()


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    results = []
    for path in sorted(pathlib.Path(sys.argv[1]).glob("*.safetensors")):
        case, dtype = path.name.split(".")[:2]
        peer = PEERS.get(case, PEERS.get(case.split("-")[0]))
        if peer is None:
            sys.exit(f"{path}: {case} has no peer in PyTorch")
        tensors = read_tensors(path)
        exact, theirs = run_peer(peer, tensors, torch.float64), run_peer(peer, tensors, DTYPES[dtype])
        ours = {name: tensor.cuda() for name, tensor in tensors.items() if name.startswith(("out.", "grad."))}
        for name, reference in exact.items():
            [mine] = [t for key, t in ours.items() if key == name or (name == "out" and key.startswith("out."))]
            error, peer_error = relative_error(mine, reference), relative_error(theirs[name], reference)
            rounding = relative_error(reference.to(DTYPES[dtype]), reference)
            if reference.numel() == 1:  # may be next to a number of the type by luck
                rounding = torch.finfo(DTYPES[dtype]).eps / 2
            ratio = error / max(peer_error, rounding, sys.float_info.min)
            share = ratio / (OUTPUT_BAR if name == "out" else GRADIENT_BAR)
            results.append((share, case, dtype, name, error, peer_error, ratio))
    if not results:
        sys.exit(f"{sys.argv[1]}: no values there")
    print(f"{'case':20} {'type':5} {'result':22} {'error':>10} {'PyTorch':>10} {'ratio':>8}")
    for share, case, dtype, name, error, peer_error, ratio in sorted(results, reverse=True):
        verdict = "  FAILED" if share > 1 else ""
        print(f"{case:20} {dtype:5} {name:22} {error:10.2e} {peer_error:10.2e} {ratio:8.2f}{verdict}")
    failures = sum(share > 1 for share, *_ in results)
    print(f"note: {len(results)} results, {failures} above the bar, the worst at {max(results)[0]:.0%} of it")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
