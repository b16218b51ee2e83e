"""`verify`: whether an adapter was made for a base, and what is found when it was not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraModel
from safetensors.torch import load_file, save_file

import ailora
from ailora.adapter_io.lora_weights import PREFIX
from ailora.checkpoints import Verdict, export, init, verify
from tests.checkpoints.conftest import LLAMA, loaded, on_residual_weights, trained
from tests.families import FAMILIES
from tests.tiny_models import tiny_model

WEIGHTS = "adapter_model.safetensors"
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


def results(verdict: Verdict) -> dict[str, bool | None]:
    return {check.name: check.passed for check in verdict.checks}


def detail(verdict: Verdict, name: str) -> str:
    return next(check.detail for check in verdict.checks if check.name == name)


CHECKS = ("finite numbers", "digests", "ranks and scalings", "adapted modules", "base weights", "anchor")
PASSED = dict.fromkeys(CHECKS, True) | {"saved modules": None}


@pytest.mark.parametrize("options", [{}, {"policy": "reversed"}, {"alpha": 3, "rslora": True}, {"form": "stock"}])
def test_what_init_wrote_is_untrained_and_passes(base: Path, options: dict[str, Any], tmp_path: Path) -> None:
    init(str(base), tmp_path, rank=4, **options)
    verdict = verify(tmp_path, str(base))
    assert verdict.passed
    assert results(verdict) == {**PASSED, "start": True}
    assert "exactly zero" in detail(verdict, "start")


def test_a_trained_adapter_passes(base: Path, adapter: Path) -> None:
    verdict = verify(adapter, str(base))
    assert verdict.passed
    assert results(verdict) == {**PASSED, "start": None}


@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neox", "bert"])
@pytest.mark.parametrize("couple_roles", [False, True])
def test_fused_and_transposed_weights(model_type: str, couple_roles: bool, tmp_path: Path) -> None:
    tiny_model(model_type).save_pretrained(tmp_path / "base")
    init(str(tmp_path / "base"), tmp_path / "adapter", rank=2, couple_roles=couple_roles)
    assert results(verify(tmp_path / "adapter", str(tmp_path / "base"))) == {**PASSED, "start": True}


def test_any_null_vectors_of_a_singular_weight_pass(tmp_path: Path) -> None:
    """If more singular values are zero than the rank, rounding chooses the minor directions, on each machine others."""
    model = tiny_model("bert")
    value = model.encoder.layer[0].attention.self.value
    rank = 2
    with torch.no_grad():
        value.weight[: 4 * rank] = 0
    model.save_pretrained(tmp_path / "base")
    init(str(tmp_path / "base"), tmp_path / "adapter", rank=rank)
    file = tmp_path / "adapter" / WEIGHTS
    tensors = load_file(file)
    factors = {
        name: tensors[f"{PREFIX}encoder.layer.0.attention.self.value.{name}.weight"] for name in ("lora_A", "lora_B")
    }
    U, _, Vh = torch.linalg.svd(value.weight.detach())
    others = slice(-2 * rank, -rank)
    factors["lora_A"][:rank] = Vh[others] * factors["lora_A"][:rank].norm(dim=1, keepdim=True)
    factors["lora_B"][:, rank:] = U[:, others] * factors["lora_B"][:, rank:].norm(dim=0)
    save_file(tensors, file, metadata={"format": "pt"})
    assert results(verify(tmp_path / "adapter", str(tmp_path / "base")))["anchor"]


def test_the_unit_size(base: Path, tmp_path: Path) -> None:
    init(str(base), tmp_path, {"query": {"init": "principal", "size": "unit"}}, rank=4)
    assert verify(tmp_path, str(base)).passed


def test_plain_lora_has_no_anchor(base: Path, tmp_path: Path) -> None:
    init(str(base), tmp_path, "lora", rank=4)
    verdict = verify(tmp_path, str(base))
    assert results(verdict) == {**PASSED, "anchor": None, "start": True}
    assert verdict.passed


def test_half_precision_files_are_judged_by_their_rounding(base: Path, adapter: Path, tmp_path: Path) -> None:
    state = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(adapter / WEIGHTS).items()}
    shutil.copytree(adapter, tmp_path / "half")
    save_file(state, tmp_path / "half" / WEIGHTS)
    assert verify(tmp_path / "half", str(base)).passed


def test_the_same_weights_in_another_dtype(tmp_path: Path) -> None:
    model = LLAMA.model().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    model.float().save_pretrained(tmp_path / "whole")
    init(str(tmp_path / "half"), tmp_path / "adapter", rank=4)
    assert results(verify(tmp_path / "adapter", str(tmp_path / "whole"))) == {**PASSED, "start": True}
    init(str(tmp_path / "whole"), tmp_path / "other", rank=4)
    assert results(verify(tmp_path / "other", str(tmp_path / "half"))) == {**PASSED, "start": True}


def test_another_base_fails(adapter: Path, tmp_path: Path) -> None:
    other = LLAMA.model()
    with torch.no_grad():
        other.model.layers[1].self_attn.v_proj.weight.normal_(std=0.2)
    other.save_pretrained(tmp_path)
    verdict = verify(adapter, str(tmp_path))
    assert not verdict.passed
    assert results(verdict)["base weights"] is False
    assert results(verdict)["anchor"] is False
    assert "layers.1.self_attn.v_proj" in detail(verdict, "anchor")


def changed(adapter: Path, folder: Path, name: str, change: Any) -> Path:
    shutil.copytree(adapter, folder)
    state = load_file(folder / WEIGHTS)
    state[name] = change(state[name].clone())
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / WEIGHTS)
    return folder


def with_a_hole(tensor: torch.Tensor) -> torch.Tensor:
    tensor[0, 0] = float("inf")
    return tensor


def turned(tensor: torch.Tensor) -> torch.Tensor:
    """The first direction of the anchor turned by three hundredths."""
    tensor[0] += 0.03 * tensor[0].norm() * torch.nn.functional.normalize(torch.randn(tensor.shape[1]), dim=0)
    return tensor


def longer(tensor: torch.Tensor) -> torch.Tensor:
    tensor[:4] *= 1.02
    return tensor


@pytest.mark.parametrize(("change", "check"), [(with_a_hole, "finite numbers"), (turned, "anchor"), (longer, "anchor")])
def test_damage_is_found(change: Any, check: str, base: Path, adapter: Path, tmp_path: Path) -> None:
    verdict = verify(changed(adapter, tmp_path / "damaged", f"{Q0}.lora_A.weight", change), str(base))
    assert not verdict.passed
    assert results(verdict)[check] is False


def test_another_scaling_is_found(base: Path, adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter, tmp_path / "scaled")
    file = tmp_path / "scaled" / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "lora_alpha": 2 * config["lora_alpha"]}))
    verdict = verify(tmp_path / "scaled", str(base))
    assert results(verdict)["ranks and scalings"] is False
    assert "is scaled by 2 in adapter_config.json, but by 1 in the plan" in detail(verdict, "ranks and scalings")


def test_a_file_that_was_trained_whole_has_another_anchor(base: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    from tests.families import train

    init(str(base), tmp_path / "start", rank=4)
    model = PeftModel.from_pretrained(loaded(base), tmp_path / "start", is_trainable=True)
    train(model, LLAMA, steps=5, rate=3e-2)
    model.save_pretrained(tmp_path / "trained")
    shutil.copy(tmp_path / "start" / "ailora.json", tmp_path / "trained")
    assert results(verify(tmp_path / "trained", str(base)))["anchor"] is False


def test_equal_singular_values_leave_the_subspace_open_and_pass(tmp_path: Path) -> None:
    """Of a multiple of an orthogonal matrix every direction is as principal as any other."""
    model = LLAMA.model()
    with torch.no_grad():
        weight = model.model.layers[0].self_attn.q_proj.weight
        weight.copy_(torch.linalg.qr(torch.randn(32, 32)).Q)
    model.save_pretrained(tmp_path / "base")
    init(str(tmp_path / "base"), tmp_path / "adapter", rank=4)
    turned = load_file(tmp_path / "adapter" / WEIGHTS)
    Q = torch.linalg.qr(torch.randn(32, 32)).Q[:4]
    turned[f"{Q0}.lora_A.weight"][:4] = Q
    turned[f"{Q0}.lora_B.weight"][:, 4:] = weight.detach() @ Q.T
    save_file(turned, tmp_path / "adapter" / WEIGHTS)
    assert verify(tmp_path / "adapter", str(tmp_path / "base")).passed


def test_exports_and_residual_adapters_have_no_anchor_to_look_at(base: Path, adapter: Path, tmp_path: Path) -> None:
    export(adapter, tmp_path / "export", rank=3)
    assert results(verify(tmp_path / "export", str(base)))["anchor"] is None
    assert verify(tmp_path / "export", str(base)).passed


def test_an_adapter_on_residual_weights_does_not_belong_on_the_untouched_base(base: Path, tmp_path: Path) -> None:
    on_residual_weights(base, tmp_path)
    verdict = verify(tmp_path, str(base))
    assert not verdict.passed
    assert "needs residual weights" in detail(verdict, "base weights")
    assert results(verdict)["anchor"] is None


@pytest.mark.parametrize(
    ("policy", "residual"),
    [("ailora", ("q_proj", "v_proj")), ({"query": "lora", "value": "minor"}, ("v_proj",))],
    ids=["all", "value"],
)
def test_every_residual_weight_is_looked_at(policy: Any, residual: tuple[str, ...], base: Path, tmp_path: Path) -> None:
    model = on_residual_weights(base, tmp_path / "adapter", policy=policy)
    residual_base = LoraModel.unload(model.base_model)
    residual_base.save_pretrained(tmp_path / "residual")
    verdict = verify(tmp_path / "adapter", str(tmp_path / "residual"))
    assert results(verdict)["base weights"] is None
    assert detail(verdict, "base weights") == "residual weights have no fingerprint"
    last = residual_base.model.layers[1].self_attn
    for name in ("q_proj", "v_proj"):
        weight = last.get_submodule(name).weight
        before = weight.detach().clone()
        with torch.no_grad():
            weight.copy_(loaded(base).model.layers[1].self_attn.get_submodule(name).weight)
            # A weight that needs no residual differs from its fingerprint instead.
            weight.add_(0 if name in residual else 1)
        residual_base.save_pretrained(tmp_path / name)
        verdict = verify(tmp_path / "adapter", str(tmp_path / name))
        assert results(verdict)["base weights"] is False
        assert f"layers.1.self_attn.{name} " in detail(verdict, "base weights")
        with torch.no_grad():
            weight.copy_(before)


def test_what_nothing_speaks_for_does_not_pass(tmp_path: Path) -> None:
    """Plain LoRA has no anchor, and weights in another dtype no fingerprint that could be compared."""
    LLAMA.model().save_pretrained(tmp_path / "base")
    init(str(tmp_path / "base"), tmp_path / "adapter", "lora", rank=4)
    other = LLAMA.model()
    with torch.no_grad():
        other.model.layers[0].self_attn.q_proj.weight.normal_()
    other.to(torch.bfloat16).save_pretrained(tmp_path / "other")
    verdict = verify(tmp_path / "adapter", str(tmp_path / "other"))
    assert False not in results(verdict).values()
    assert not verdict.passed


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_a_model_of_another_kind_fails(family: str, adapter: Path, tmp_path: Path) -> None:
    FAMILIES[family].model().save_pretrained(tmp_path)
    try:
        verdict = verify(adapter, str(tmp_path))
    except ailora.InputError:
        return  # it has no class for the adapter's task
    assert results(verdict)["base weights"] is False


def test_a_model_of_another_size_fails(adapter: Path, tmp_path: Path) -> None:
    import transformers as tf

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
    tf.LlamaForCausalLM(tf.LlamaConfig(**sizes, num_hidden_layers=2, vocab_size=64)).save_pretrained(
        tmp_path / "narrow"
    )
    verdict = verify(adapter, str(tmp_path / "narrow"))
    assert results(verdict)["base weights"] is False
    assert "expected the shape (32, 32) for" in detail(verdict, "base weights")


def test_the_stock_form_trains_its_anchor(base: Path, tmp_path: Path) -> None:
    trained(base, tmp_path, form="stock")
    assert results(verify(tmp_path, str(base))) == {**PASSED, "anchor": None, "start": None}


def test_quantized_bases_are_told_apart(adapter: Path, base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "fp8")
    for file in (tmp_path / "fp8").glob("*.safetensors"):
        save_file({n: t.to(torch.float8_e4m3fn) for n, t in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(ailora.ModelError, match="is quantized: give the unquantized checkpoint"):
        verify(adapter, str(tmp_path / "fp8"))


def test_heads_are_looked_at_too(tmp_path: Path) -> None:
    family = FAMILIES["bert"]
    family.model().save_pretrained(tmp_path / "base")
    init(str(tmp_path / "base"), tmp_path / "adapter", rank=4)
    assert verify(tmp_path / "adapter", str(tmp_path / "base")).passed
    head = changed(
        tmp_path / "adapter", tmp_path / "hole", "base_model.model.classifier.weight", lambda t: t.fill_(float("nan"))
    )
    assert results(verify(head, str(tmp_path / "base")))["finite numbers"] is False


def test_without_a_sidecar_nothing_can_be_said(base: Path, adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter, tmp_path / "alone")
    (tmp_path / "alone" / "ailora.json").unlink()
    with pytest.raises(ailora.InputError, match=r"no ailora\.json"):
        verify(tmp_path / "alone", str(base))


def test_a_sidecar_of_another_adapter_is_told_apart(base: Path, adapter: Path, tmp_path: Path) -> None:
    trained(base, tmp_path / "small", rank=2)
    shutil.copytree(adapter, tmp_path / "mixed")
    shutil.copy(tmp_path / "small" / "ailora.json", tmp_path / "mixed")
    with pytest.raises(
        ailora.InputError, match=r"does not belong to .* has rank 4 in ailora\.json, but 8 in adapter_model"
    ):
        verify(tmp_path / "mixed", str(base))
    # One that only lies above it says nothing of it.
    (tmp_path / "above" / "below").mkdir(parents=True)
    for name in (WEIGHTS, "adapter_config.json"):
        shutil.copy(adapter / name, tmp_path / "above" / "below")
    shutil.copy(tmp_path / "small" / "ailora.json", tmp_path / "above")
    with pytest.raises(
        ailora.InputError, match="or its parent folders: without this file, the adapter's plan is unknown"
    ):
        verify(tmp_path / "above" / "below", str(base))


@pytest.mark.parametrize("of_base", [True, False], ids=["smaller base", "larger base"])
def test_a_base_of_another_vocabulary_fails_as_peft_fails(of_base: bool, base: Path, tmp_path: Path) -> None:
    resized = loaded(base)
    resized.resize_token_embeddings(40, mean_resizing=False)
    resized.save_pretrained(tmp_path / "resized")
    small, large = str(base), str(tmp_path / "resized")
    adapted = ailora.adapt(loaded(Path(large if of_base else small)), rank=4)
    metadata_folder = ailora.save_adapter(adapted, tmp_path / "own")
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    shutil.copy(metadata_folder / "ailora.json", tmp_path / "adapter")
    assert verify(tmp_path / "adapter", large if of_base else small).passed
    verdict = verify(tmp_path / "adapter", small if of_base else large)
    assert not verdict.passed
    assert "resize_token_embeddings" in detail(verdict, "saved modules")


def test_a_file_that_lacks_a_targeted_module_fails(base: Path, tmp_path: Path) -> None:
    """Its metadata were cut as well, so that nothing else tells."""
    init(str(base), tmp_path, rank=4)
    state = load_file(tmp_path / WEIGHTS)
    save_file({name: state[name] for name in state if not name.startswith(Q0)}, tmp_path / WEIGHTS)
    metadata = json.loads((tmp_path / "ailora.json").read_text())
    metadata["plan"]["adapters"] = [a for a in metadata["plan"]["adapters"] if PREFIX + a["module"] != Q0]
    (tmp_path / "ailora.json").write_text(json.dumps(metadata))
    verdict = verify(tmp_path, str(base))
    assert results(verdict)["adapted modules"] is False
    assert "layers.0.self_attn.q_proj" in detail(verdict, "adapted modules")
