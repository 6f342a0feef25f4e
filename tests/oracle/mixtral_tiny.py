"""Mixtral as transformers computes it: GQA, rotate-half RoPE, top-2 of 4 experts.

transformers balances all layers together; here its own loss function is called layer by layer, which is moec's
auxiliary loss in the per-token form.
"""

import shared  # noqa: F401: tells of libraries that are missing

import torch
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

import hugging_face
import moe
from oracle import Spec, check_routing, f32, make_golden

SPEC = Spec("mixtral-tiny")
VOCAB, DIM = SPEC["tokens_embedding"]["vocab_size"], SPEC["tokens_embedding"]["dim"]
EXPERTS, TOP_K, HIDDEN = SPEC["gate"]["out_features"], SPEC["router"]["top_k"], SPEC["gate_up"]["out_features"] // 2
HEADS, KV_HEADS, HEAD_DIM = (SPEC["attention"][key] for key in ("heads", "kv_heads", "head_dim"))

MODEL = hugging_face.build(
    MixtralForCausalLM,
    MixtralConfig(
        vocab_size=VOCAB,
        hidden_size=DIM,
        intermediate_size=HIDDEN,
        num_hidden_layers=SPEC.layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        num_local_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        rms_norm_eps=f32(SPEC["final_norm"]["eps"]),
        rope_parameters={"rope_type": "default", "rope_theta": SPEC["rope"]["base"]},
        experts_implementation="eager",
    ),
)


def transformers_state(p):
    state = {
        "model.embed_tokens.weight": p["embedding.tokens_embedding.weight"],
        "model.norm.weight": p["head.final_norm.weight"],
        "lm_head.weight": p["head.logits.weight"],
    }
    for i in range(SPEC.layers):
        block, layer = f"block.{i}", f"model.layers.{i}"
        state |= hugging_face.attention_state(p, block, layer, HEADS, KV_HEADS, HEAD_DIM)
        state[f"{layer}.mlp.gate.weight"] = p[f"{block}.gate.weight"]
        gate, up = hugging_face.deinterleave(p[f"{block}.gate_up.weight"])
        state[f"{layer}.mlp.experts.gate_up_proj"] = torch.cat((gate, up), dim=1)
        state[f"{layer}.mlp.experts.down_proj"] = p[f"{block}.down.weight"]
    return state


def forward(p, tokens):
    output = hugging_face.run(MODEL, transformers_state(p), tokens, output_router_logits=True)
    losses = []
    for router_logits in output.router_logits:
        check_routing(router_logits.softmax(-1), TOP_K)
        with hugging_face.DoubleForFloat():
            balance = load_balancing_loss_func((router_logits,), EXPERTS, TOP_K)
        losses.append(f32(SPEC["aux_loss"]["coefficient"]) * balance)
    return output.logits, losses


if __name__ == "__main__":
    make_golden(SPEC.name, VOCAB, moe.draw_parameters(SPEC, seed=7), forward, seed=1)
