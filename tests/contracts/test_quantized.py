"""What an adapter of a quantized model promises, whichever library quantized it."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import ailora
from ailora.roles import Role
from ailora.weights.base_weight import base_layer, select_rows
from ailora.weights.quantized import find_quantized_format
from tests.contracts.test_adapted_model import close
from tests.quantized import PACKED, QUANTIZATIONS, PackedLinear, Quantization, original, read_weight, run, saved

pytestmark = [
    pytest.mark.filterwarnings("ignore:MatMul8bitLt. inputs will be cast:UserWarning"),
    pytest.mark.filterwarnings("ignore:Merge lora module to .-bit linear may get different:UserWarning"),
    pytest.mark.filterwarnings("ignore:TorchaoLoraLinear was instantiated without:UserWarning"),
]
RANK = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("original"))


@pytest.fixture(params=QUANTIZATIONS)
def quantization(request: pytest.FixtureRequest) -> Quantization:
    return QUANTIZATIONS[request.param]


def stored(model: nn.Module) -> dict[str, Any]:
    """Every tensor of a model's base, as it is stored."""
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    return {name: copy.deepcopy(value) for name, value in state.items() if "lora_" not in name}


def same(a: Any, b: Any) -> bool:
    if hasattr(a, "dequantize") and type(a) is not Tensor:
        a, b = a.dequantize(), b.dequantize()
    # As bytes: packed bits that are stored as bfloat16 may spell NaN.
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def train(model: nn.Module, *, steps: int = 3) -> None:
    ids = torch.randint(5, 64, (2, 6), generator=torch.Generator().manual_seed(1))
    target = torch.randn(2, 6, 64, generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        ((model(input_ids=ids).logits.float() - target) ** 2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def adapt(model: nn.Module, **options: Any) -> PeftModel:
    return ailora.adapt(model, **{"rank": RANK, **options}).eval()


@pytest.mark.parametrize("quantization", [*QUANTIZATIONS.values(), PACKED], ids=lambda q: q.name)
def test_the_weight_is_read_as_the_layer_computes_with_it(quantization: Quantization, folder: Path) -> None:
    model = quantization.model(folder)
    projections = ailora.find_projections(model)
    assert {p.role for p in projections} == set(Role)
    for p in projections:
        layer = base_layer(model, p.module)
        quantized_format = find_quantized_format(layer)
        assert quantized_format is not None
        assert quantized_format.name == quantization.format_name
        weight = read_weight(layer, p.module)
        exact = original().get_submodule(p.module).weight
        assert (weight.float() - exact).norm() <= quantization.error * exact.norm()
        x = torch.randn(5, p.in_features, dtype=weight.dtype)
        expected = x @ weight.T
        # int8 layers of bitsandbytes quantize their input too, to 127 steps; bfloat16 has 8 bits.
        with torch.no_grad():
            assert (layer(x) - expected).norm() <= 0.02 * expected.norm()


def test_the_start_is_exact_and_the_base_is_never_rewritten(
    quantization: Quantization, folder: Path, tmp_path: Path
) -> None:
    model = quantization.model(folder)
    expected, before = run(model), stored(model)
    adapted = adapt(model)
    assert torch.equal(run(adapted), expected)
    train(adapted)
    moved = run(adapted)
    assert not torch.equal(moved, expected)
    for name, tensor in stored(adapted.get_base_model()).items():
        assert same(tensor, before[name.replace(".base_layer", "")]), name
    with adapted.disable_adapter():
        assert torch.equal(run(adapted), expected)
    ailora.save_adapter(adapted, tmp_path)
    again = PeftModel.from_pretrained(quantization.model(folder), tmp_path).eval()
    dtype_eps = 0.02 if moved.dtype is torch.bfloat16 else 1e-5
    assert close(run(again), moved, dtype_eps)
    on_full = PeftModel.from_pretrained(copy.deepcopy(original()), tmp_path).eval()
    update = (moved - expected).float()
    # The same update on the full base moves the outputs alike: they differ by what quantizing the base costs.
    assert ((run(on_full) - run(original())) - update).norm() < 0.75 * update.norm()
    assert torch.equal(run(adapted.unload()), expected)


def test_the_anchor_is_that_of_the_dequantized_weight_or_of_the_checkpoint(
    quantization: Quantization, folder: Path
) -> None:
    for weights_from in (None, folder):
        model = quantization.model(folder)
        sources = {p.module: read_weight(base_layer(model, p.module), p.module) for p in ailora.find_projections(model)}
        adapted = adapt(model, weights_from=weights_from)
        for planned in ailora.get_plan(adapted).adapters:
            p = planned.projection
            weight = sources[p.module] if weights_from is None else original().get_submodule(p.module).weight
            _, _, Vh = torch.linalg.svd(weight.detach().double(), full_matrices=False)
            band = Vh[:RANK] if p.role is Role.QUERY else Vh[-RANK:]
            anchor = adapted.get_base_model().get_submodule(p.module).lora_A["default"].anchor.double()
            basis = torch.linalg.qr(anchor.T).Q
            tolerance = 0.05 if anchor.dtype is torch.bfloat16 or "bfloat16" in quantization.name else 1e-4
            assert torch.linalg.matrix_norm(basis @ basis.T - band.T @ band, 2) <= tolerance


def test_the_roles_of_a_fused_and_transposed_weight_that_is_quantized(tmp_path: Path) -> None:
    """GPT-2's `Conv1D`: bitsandbytes keeps it as (out, in)."""
    base = tf.GPT2LMHeadModel(tf.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=64)).eval()
    base.save_pretrained(tmp_path)
    model = QUANTIZATIONS["bitsandbytes nf4"].model(tmp_path)
    expected = run(model)
    adapted = adapt(model, weights_from=tmp_path)
    for planned in ailora.get_plan(adapted).adapters:
        p = planned.projection
        exact = select_rows(base.get_submodule(p.module).weight.detach().T, p)
        layer = adapted.get_base_model().get_submodule(p.module)
        whole = select_rows(read_weight(layer.get_base_layer(), p.module), p)
        assert (whole - exact).norm() <= 0.15 * exact.norm()
    assert torch.equal(run(adapted), expected)


@pytest.mark.parametrize("quantization", [*QUANTIZATIONS.values(), PACKED], ids=lambda q: q.name)
def test_the_residual_form_of_a_quantized_model_is_refused_before_anything_changes(
    quantization: Quantization, folder: Path
) -> None:
    model = quantization.model(folder)
    expected = run(model)
    with pytest.raises(ailora.ModelError, match=r"q_proj: .* float32 or float64 weights.* use form='anchored'"):
        adapt(model, form="residual")
    assert torch.equal(run(model), expected)


@pytest.mark.parametrize("name", ["bitsandbytes nf4", "torchao int8", "HQQ 4-bit"])
def test_quantized_modules_are_not_trained_whole(name: str, folder: Path) -> None:
    with pytest.raises(ailora.ModelError, match=r"o_proj is quantized and cannot be fully fine-tuned"):
        adapt(QUANTIZATIONS[name].model(folder), modules_to_save=["o_proj"])


def test_dora_on_8_bit_weights_of_bitsandbytes_is_refused(folder: Path) -> None:
    with pytest.raises(ailora.ModelError, match="dora does not work on 8-bit weights"):
        adapt(QUANTIZATIONS["bitsandbytes int8"].model(folder), dora=True)


@pytest.mark.parametrize("std", [0.0, 1.0, 100.0])
def test_a_large_bias_does_not_hide_a_packed_weight(std: float) -> None:
    """In float16 `W + b - b` would lose half of W beside a bias of 100."""
    layer = nn.Linear(64, 32)
    with torch.no_grad():
        layer.weight.mul_(0.2)
        layer.bias.normal_(std=std)
    packed = PackedLinear(layer.half())
    weight = read_weight(packed, "layer").float()
    exact = (packed.qweight.float() * packed.scales.float()).T
    assert (weight - exact).norm() <= 2 * torch.finfo(torch.float16).eps * exact.norm()
    assert packed.bias is not None


def test_an_unreadable_weight_is_decomposed_from_its_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed for another device: the way out that the error names."""
    from ailora.weights import quantized

    def unreadable(_: nn.Module) -> Tensor:
        raise RuntimeError("no kernel for this device")

    nf4 = next(s for s in quantized.QUANTIZED_FORMATS if s.name == "bitsandbytes 4-bit")
    monkeypatch.setattr(quantized, "QUANTIZED_FORMATS", (dataclasses.replace(nf4, read=unreadable),))
    model = QUANTIZATIONS["bitsandbytes nf4"].model(folder)
    with pytest.raises(ailora.ModelError, match=r"no kernel for this device.*weights_from"):
        adapt(model)
    adapted, expected = adapt(model, weights_from=folder), adapt(copy.deepcopy(original()))
    for name, tensor in expected.state_dict().items():
        if "lora_A" in name:
            assert torch.allclose(adapted.state_dict()[name], tensor, atol=1e-5)


@pytest.mark.parametrize("from_checkpoint", [False, True])
def test_4_bit_weights_that_a_forward_pass_has_packed_for_the_cpu(folder: Path, from_checkpoint: bool) -> None:
    """They are read as the layer computes, and stay as they are."""
    from bitsandbytes.functional import has_avx512bf16

    if not has_avx512bf16():
        pytest.skip("bitsandbytes packs 4-bit weights on CPUs with AVX512-BF16")
    plain, packed = (QUANTIZATIONS["bitsandbytes nf4"].model(folder) for _ in range(2))
    for layer in packed.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = True  # type: ignore[assignment]
    expected = run(packed)
    module = "model.layers.0.self_attn.q_proj"
    assert packed.get_submodule(module).weight.quant_state.packing_format_for_cpu
    exact = read_weight(base_layer(plain, module), module)
    # Packed, the scales are rounded to bfloat16, and so is what the layer gives.
    error = (read_weight(base_layer(packed, module), module).float() - exact).norm()
    assert error <= torch.finfo(torch.bfloat16).eps * exact.norm()
    adapted = adapt(packed, weights_from=folder if from_checkpoint else None)
    assert torch.equal(run(adapted), expected)


def test_a_layer_that_is_quantized_after_adapting_starts_from_the_full_weight(folder: Path) -> None:
    """bitsandbytes quantizes when a model moves to its device; until then the layer holds a plain weight."""
    from bitsandbytes.nn import Linear4bit

    layer = Linear4bit(64, 32, bias=False)
    assert find_quantized_format(layer) is None
    assert torch.equal(read_weight(layer, "layer"), layer.weight.data)


def test_a_packed_weight_that_looks_like_bfloat16_is_refused() -> None:
    model = copy.deepcopy(original())
    layer = model.model.layers[1].self_attn.v_proj
    layer.weight = nn.Parameter(torch.zeros(layer.weight.numel() // 4, 1, dtype=torch.bfloat16), requires_grad=False)
    message = r"layers\.1\.self_attn\.v_proj: weight \(512, 1\) of dtype torch\.bfloat16: expected the shape \(32, 64\)"
    with pytest.raises(ailora.ModelError, match=message):
        adapt(model)


def test_a_layer_that_cannot_run_here_names_the_way_out(folder: Path) -> None:
    model = PACKED.model(folder)
    model.model.layers[0].self_attn.q_proj.scales = None
    with pytest.raises(ailora.ModelError, match=r"q_proj: the packed weight of PackedLinear .*weights_from=\.\.\."):
        read_weight(model.model.layers[0].self_attn.q_proj, "model.layers.0.self_attn.q_proj")


# --- the checkpoint that the weights come from -----------------------------------------------------------------------


def headless(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("model."): tensor for name, tensor in state.items() if name.startswith("model.")}


def outer(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"language_model.{name}": tensor for name, tensor in state.items()}


def sharded(state: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    names = sorted(state)
    return [{n: state[n] for n in names[::2]}, {n: state[n] for n in names[1::2]}]


@pytest.mark.parametrize("change", [headless, outer, sharded])
def test_tensors_are_found_in_checkpoints_of_other_heads_and_in_shards(
    change: Any, folder: Path, tmp_path: Path
) -> None:
    changed = change(load_file(folder / "model.safetensors"))
    for number, shard in enumerate(changed if isinstance(changed, list) else [changed]):
        save_file(shard, tmp_path / f"model-{number}.safetensors")
    model = QUANTIZATIONS["bitsandbytes nf4"].model(folder)
    adapted, expected = adapt(model, weights_from=tmp_path), adapt(copy.deepcopy(original()))
    for name, tensor in expected.state_dict().items():
        if "lora_A" in name:
            assert torch.allclose(adapted.state_dict()[name], tensor, atol=1e-5)


def without_values(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if "1.self_attn.v_proj" not in name}


def of_another_model(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: 0.2 * torch.randn_like(tensor) for name, tensor in state.items()}


def narrower(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor[..., :8].contiguous() for name, tensor in state.items()}


def with_a_hole(state: dict[str, Tensor]) -> dict[str, Tensor]:
    state["model.layers.1.self_attn.v_proj.weight"][0, 0] = torch.nan
    return state


def eight_bits(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(torch.int8) for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            without_values,
            r"weights_from: no tensor of the checkpoint is named model\.layers\.1\.self_attn\.v_proj\.weight",
        ),
        (
            of_another_model,
            r"is not the weight of model\.layers\.0\.self_attn\.q_proj: the relative distance is 1\.[34]",
        ),
        (narrower, r"expected the shape \(64, 64\) of the layer, got \(64, 8\)"),
        (with_a_hole, r"v_proj\.weight in .* holds NaN"),
        (eight_bits, "has the dtype torch.int8: weights_from takes an unquantized checkpoint"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(change: Any, message: str, folder: Path, tmp_path: Path) -> None:
    save_file(change(load_file(folder / "model.safetensors")), tmp_path / "model.safetensors")
    model = QUANTIZATIONS["bitsandbytes nf4"].model(folder)
    expected = run(model)
    with pytest.raises(ailora.ModelError, match=message):
        adapt(model, weights_from=tmp_path)
    assert torch.equal(run(model), expected)


def test_a_layer_that_peft_cannot_adapt_is_refused_and_left_as_it_is(folder: Path) -> None:
    model = PACKED.model(folder)
    expected = run(model)
    with pytest.raises(
        ailora.ModelError, match="PEFT cannot adapt LlamaForCausalLM as planned: Target module PackedLin"
    ):
        adapt(model)
    assert torch.equal(run(model), expected)


def test_folders_without_a_checkpoint_are_refused(folder: Path, tmp_path: Path) -> None:
    model = QUANTIZATIONS["bitsandbytes nf4"].model(folder)
    with pytest.raises(ailora.InputError, match="holds no safetensors files"):
        adapt(model, weights_from=tmp_path)
    with pytest.raises(ailora.InputError, match=r"nowhere does not exist"):
        adapt(model, weights_from=tmp_path / "nowhere")
    with pytest.raises(ailora.InputError, match="weights_from must be a folder, a safetensors file or a hub id, got 5"):
        adapt(model, weights_from=5)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ailora.InputError, match="is not a safetensors file"):
        adapt(model, weights_from=tmp_path)
