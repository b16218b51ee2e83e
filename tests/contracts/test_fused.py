"""What fused projections promise, proven by how each family's own attention behaves."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from peft import PeftModel
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

import ailora
from ailora.lora.anchored_factor import PackedFactor
from ailora.roles import Projection, Role
from ailora.weights.base_weight import BaseWeight, select_rows
from tests.attention import Model, problems, sites, without_biases
from tests.contracts.test_adapted_model import close
from tests.tiny_models import BATCH, POSITIONS

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
NO_DROPOUT = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attention_dropout": 0.0, "hidden_dropout": 0.0}


def config(model_type: str, **options: Any) -> Any:
    return tf.AutoConfig.for_model(model_type, **{**SIZES, **NO_DROPOUT, **options})


def dbrx() -> Any:
    made = tf.DbrxConfig(
        d_model=32, n_heads=4, n_layers=2, vocab_size=64, pad_token_id=0,
        attn_config={"kv_n_heads": 2, "clip_qkv": 1e3},
        ffn_config={"ffn_hidden_size": 16, "moe_num_experts": 2, "moe_top_k": 1},
    )  # fmt: skip
    made.attn_config.rope_theta = 10000.0
    return made


FUSED = {
    "gpt2": config("gpt2"),
    "gpt_bigcode, multi-query": config("gpt_bigcode"),
    "gpt_bigcode": config("gpt_bigcode", multi_query=False),
    "phi3, grouped queries": config("phi3", num_key_value_heads=2),
    "gpt_neox": config("gpt_neox"),
    "bloom": config("bloom"),
    "falcon, multi-query": config("falcon"),
    "falcon, multi-head": config("falcon", multi_query=False),
    "falcon, new": config("falcon", new_decoder_architecture=True, num_kv_heads=2),
    "persimmon": config("persimmon", qk_layernorm=False),
    "codegen": config("codegen", rotary_dim=4),
    "mpt": config("mpt"),
    "glm": config("glm", head_dim=8, num_key_value_heads=2),
    "glm4": config("glm4", head_dim=8, num_key_value_heads=2),
    "modernbert": config("modernbert"),
    "dbrx": dbrx(),
    "deberta": config(
        "deberta",
        relative_attention=True,
        pos_att_type=["c2p", "p2c"],
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    ),
}
QKV_FUSED = [name for name in FUSED if not name.startswith("glm")]


@cache
def _made(name: str) -> nn.Module:
    torch.manual_seed(3)
    config = copy.deepcopy(FUSED[name])
    config._attn_implementation = "eager"
    model = tf.AutoModel.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3) if parameter.ndim == 2 else parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def fresh(name: str) -> nn.Module:
    return copy.deepcopy(_made(name))


def run(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(**inputs()).last_hidden_state


def projection(model: nn.Module, role: Role) -> Projection:
    """The first layer's projection of a role."""
    return next(p for p in ailora.find_projections(model) if p.role is role)


def inputs() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(5, 64, (BATCH, POSITIONS), generator=torch.Generator().manual_seed(1))}


@pytest.mark.parametrize("name", QKV_FUSED)
def test_the_roles_are_what_the_attention_does(name: str) -> None:
    """Every form of a family that has several."""
    model = without_biases(fresh(name))
    (site,) = sites(Model(model, inputs(), ailora.find_projections(model)))
    assert site.query.module == site.value.module
    assert problems(site) == []


def adapt(name: str, policy: Any = "ailora", **options: Any) -> PeftModel:
    return ailora.adapt(fresh(name), policy, **{"rank": 4, "task_type": "FEATURE_EXTRACTION", **options})


def train(model: nn.Module, *, steps: int = 3) -> None:
    target = torch.randn(2, POSITIONS, 32, generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        output = model(**inputs()).last_hidden_state
        ((output.to(torch.promote_types(output.dtype, torch.float32)) - target) ** 2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("form", ["anchored", "stock"])
@pytest.mark.parametrize("name", FUSED)
def test_the_start_is_exact_and_the_file_is_stock(name: str, form: str, tmp_path: Path) -> None:
    present = {p.role for p in ailora.find_projections(fresh(name))}
    roles = sorted(present - {Role.KEY}) if name.startswith("glm") else None
    policy: Any = "milora" if name.startswith("glm") else "ailora"
    model = adapt(name, policy, form=form, roles=roles, alpha=6.0)
    expected = run(fresh(name))
    assert torch.equal(run(model), expected)
    train(model)
    assert not torch.equal(run(model), expected)
    ailora.save_adapter(model, tmp_path)
    loaded = PeftModel.from_pretrained(fresh(name), tmp_path).eval()
    assert not any(isinstance(m, PackedFactor) for m in loaded.modules())
    assert close(run(loaded), run(model), 1e-5)
    with model.disable_adapter():
        assert torch.equal(run(model), expected)
    if form == "anchored":
        again = adapt(name, policy, roles=roles, alpha=6.0)
        again.load_adapter(tmp_path, "default", is_trainable=True)
        assert torch.equal(run(again), run(model))
    assert close(run(model.merge_and_unload()), run(loaded), 1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["gpt2", "phi3, grouped queries", "gpt_neox"])
def test_the_start_is_exact_in_every_dtype(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    expected = run(fresh(name).to(dtype).requires_grad_(False))
    model = ailora.adapt(fresh(name).to(dtype), rank=4, task_type="FEATURE_EXTRACTION")
    assert torch.equal(run(model), expected)
    train(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(fresh(name).to(dtype), tmp_path).eval()
    # A sum of r products in the dtype of the base, over two layers.
    assert close(run(loaded).double(), run(model).double(), 16 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", QKV_FUSED)
def test_each_role_starts_from_its_own_rows_and_trains_only_them(name: str) -> None:
    model = adapt(name)
    train(model)
    base = fresh(name)
    for planned in ailora.get_plan(model).adapters:
        p = planned.projection
        whole = BaseWeight.from_model(base, p.module).read()
        part = select_rows(whole, p)
        _, _, Vh = torch.linalg.svd(part.double(), full_matrices=False)
        band = Vh[:4] if p.role is Role.QUERY else Vh[-4:]
        layer = model.get_base_model().get_submodule(p.module)
        anchor = layer.lora_A["default"].parts[p.role.value].anchor.double()
        basis = torch.linalg.qr(anchor.T).Q
        assert torch.linalg.matrix_norm(basis @ basis.T - band.T @ band, 2) <= 1e-4
    keys = [p for p in ailora.find_projections(base) if p.role is Role.KEY]
    for p in keys:
        layer = model.get_base_model().get_submodule(p.module)
        delta = layer.get_delta_weight("default")
        delta = delta.T if type(layer.base_layer).__name__ == "Conv1D" else delta
        assert (select_rows(delta, p) == 0).all()
        assert delta.abs().max() > 0


class Separate(nn.Module):
    """GPT-2's `c_attn` as three projections."""

    def __init__(self, fused: nn.Module) -> None:
        super().__init__()
        weights, biases = fused.weight.detach().chunk(3, dim=1), fused.bias.detach().chunk(3)
        for name, weight, bias in zip("qkv", weights, biases, strict=True):
            linear = nn.Linear(*weight.shape, dtype=weight.dtype)
            linear.load_state_dict({"weight": weight.T, "bias": bias})
            self.add_module(name, linear)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.q(x), self.k(x), self.v(x)], dim=-1)


@pytest.mark.parametrize("roles", [["query", "value"], ["query", "key", "value"]])
@pytest.mark.parametrize("form", ["anchored", "residual"])
def test_a_fused_model_trains_as_one_with_separate_projections(form: str, roles: list[str]) -> None:
    """With ailora's third init too: the key starts as plain LoRA. 20 steps of AdamW with weight decay.

    In float64: AdamW divides by small numbers, which lets rounding in float32 grow to 1e-5 in the residual form.
    """
    whole = fresh("gpt2").double()
    separate = copy.deepcopy(whole)
    for block in separate.h:
        block.attn.c_attn = Separate(block.attn.c_attn)
    names = {rf"c_attn\.{role[0]}$": role for role in roles}
    options = {"rank": 4, "form": form, "roles": roles, "task_type": "FEATURE_EXTRACTION"}
    torch.manual_seed(7)
    split = ailora.adapt(separate, role_names=names, **options)
    torch.manual_seed(7)
    fused = ailora.adapt(whole, **options)
    trained = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (split, fused)]
    assert trained[0] == trained[1]
    start = run(fused)
    for model in (split, fused):
        train(model, steps=20)
    assert (run(fused) - start).abs().max() > 0.1
    assert close(run(fused), run(split), 1e-9)


@pytest.mark.parametrize("name", ["gpt2", "phi3, grouped queries", "codegen"])
def test_the_residual_form_of_a_fused_weight(name: str, tmp_path: Path) -> None:
    expected = run(fresh(name))
    model = adapt(name, form="residual")
    assert close(run(model), expected, 1e-5)
    train(model)
    ailora.save_adapter(model, tmp_path)
    loaded = PeftModel.from_pretrained(fresh(name), tmp_path).eval()
    assert close(run(loaded), run(model), 1e-5)
    assert close(run(ailora.restore_base(model)), expected, 1e-5)


def test_a_role_of_another_scaling_is_refused() -> None:
    with pytest.raises(ailora.InputError, match=r"share one scaling.*\[query\] s = 2.*\[value\] s = 1"):
        ailora.make_plan(fresh("gpt2"), alpha={"query": 16, "value": 8})


@pytest.mark.parametrize("form", ["anchored", "residual"])
def test_coupled_roles_train_all_rows_from_the_same_start(form: str, tmp_path: Path) -> None:
    model, apart = (adapt("phi3, grouped queries", couple_roles=c, form=form) for c in (True, False))
    assert close(run(model), run(fresh("phi3, grouped queries")), 0 if form == "anchored" else 1e-5)
    starts = [get_peft_model_state_dict(m) for m in (model, apart)]
    assert all(torch.equal(starts[0][key], starts[1][key]) for key in starts[1])
    trained = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (model, apart)]
    assert trained[0] == ailora.get_plan(model).trainable > trained[1] == ailora.get_plan(apart).trainable
    train(model)
    keys = projection(fresh("phi3, grouped queries"), Role.KEY)
    layer = model.get_base_model().get_submodule(keys.module)
    reached = layer.get_delta_weight("default")
    if form == "anchored":
        assert select_rows(reached, keys).abs().max() > 0
    ailora.save_adapter(model, tmp_path)
    loaded = PeftModel.from_pretrained(fresh("phi3, grouped queries"), tmp_path).eval()
    assert close(run(loaded), run(model), 1e-5)
    if form == "anchored":
        again = adapt("phi3, grouped queries", couple_roles=True)
        again.load_adapter(tmp_path, "default", is_trainable=True)
        assert torch.equal(run(again), run(model))
    else:
        assert close(run(ailora.restore_base(model)), run(fresh("phi3, grouped queries")), 1e-5)


def test_coupled_roles_continue_what_a_stock_trainer_made(tmp_path: Path) -> None:
    """A stock trainer trains all rows of `lora_B`, as the coupled form does; here the anchor stays in its place."""
    ailora.save_adapter(adapt("gpt2", couple_roles=True), tmp_path / "start")
    stock = PeftModel.from_pretrained(fresh("gpt2"), tmp_path / "start", is_trainable=True)
    for name, parameter in stock.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)
    for name, parameter in stock.named_parameters():
        if "lora_B" in name:
            halves = parameter.data.chunk(4, dim=1)
            for role in (halves[:2], halves[2:]):
                noise = 0.01 * torch.randn_like(role[0])
                for half in role:
                    half.add_(noise)
    stock.save_pretrained(tmp_path / "trained")
    model = adapt("gpt2", couple_roles=True)
    model.load_adapter(tmp_path / "trained", "default", is_trainable=True)
    assert close(run(model), run(stock.eval()), 1e-5)


def test_a_file_that_reaches_other_rows_is_refused() -> None:
    """A stock trainer trains all rows of `lora_B`; such a file is no state of the anchored form."""
    model = adapt("gpt2")
    expected = run(model)
    state = get_peft_model_state_dict(model)
    last = [key for key in state if "lora_B" in key][-1]
    state[last] = state[last].clone()
    state[last][40, 0] = 1e-3
    with pytest.raises(ailora.AnchorMismatchError, match="rows of other roles"):
        set_peft_model_state_dict(model, state)
    assert torch.equal(run(model), expected)
