"""What every family of the catalog promises, proven by how the attention of a small model of it behaves.

The models are made from the families' own configurations (`tests/tiny_models.py`). `tests/attention.py` says
what is tried.
"""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import ailora
from ailora.roles import FusedLayout, Role, fused_splits
from ailora.roles.catalog import FAMILIES, LEFT_OUT
from tests.attention import (
    BIASED,
    CHUNKED,
    NORMED,
    SCALED,
    START_EQUAL,
    Model,
    feed_forward,
    names,
    problems,
    sites,
    without_biases,
)
from tests.contracts.test_adapted_model import close
from tests.tiers import in_tiers
from tests.tiny_models import tiny_inputs, tiny_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning"),
]


#: Its modeling file is remote code.
REMOTE = {"chatglm"}
RANK = 2

#: Model type -> families that are parts of its model, and have none that `AutoModel` makes, or none that runs alone.
_PARTS = """
    aimv2: aimv2_text_model
    align: align_text_model
    altclip: altclip_text_model altclip_vision_model
    blip: blip_text_model blip_vision_model
    blip-2: blip_2_vision_model
    blt: blt_local_encoder blt_patcher
    bridgetower: bridgetower_text_model
    canary: canary_decoder
    chinese_clip: chinese_clip_text_model
    clap: clap_audio_model
    clipseg: clipseg_text_model clipseg_vision_model
    clvp: clvp_decoder
    dia: dia_encoder dia_decoder
    emu3: emu3_text_model
    flava: flava_text_model flava_image_model flava_multimodal_model
    git: git_vision_model
    got_ocr2: got_ocr2_vision
    groupvit: groupvit_text_model groupvit_vision_model
    idefics: idefics_vision
    idefics2: idefics2_vision idefics2_perceiver
    instructblip: instructblip_vision_model instructblip_qformer
    instructblipvideo: instructblipvideo_vision_model instructblipvideo_qformer
    janus: janus_vision_model
    kosmos-2: kosmos_2_vision_model kosmos_2_text_model
    kosmos-2.5: kosmos_2_5_text_model
    llama4: llama4_vision_model
       metaclip_2: metaclip_2_text_model metaclip_2_vision_model
    minimax_m3_vl: minimax_m3_vl_vision
    mllama: mllama_vision_model mllama_text_model
    ovis2: ovis2_vision
    owlv2: owlv2_text_model owlv2_vision_model
    owlvit: owlvit_text_model owlvit_vision_model
    qwen2_5_omni_thinker: qwen2_5_omni_text
    qwen2_vl: qwen2_vl_vision
    qwen3_omni_moe_thinker: qwen3_omni_moe_text
    rf_detr: rf_detr_dinov2
    sam3: sam3_detr_encoder sam3_detr_decoder
    sam3_lite_text: sam3_lite_text_detr_encoder sam3_lite_text_detr_decoder
    siglip: siglip_text_model
    siglip2: siglip2_text_model
    step3p7: step3p5_vision
    t5gemma: t5_gemma_module
    t5gemma2: t5gemma2_text t5gemma2_decoder
    unlimited_ocr: unlimited_ocr_sam_vision_model
    xclip: xclip_text_model xclip_vision_model
"""
_LINES = [line.split(":") for line in _PARTS.strip().splitlines()]
MADE_AS = {part: model_type.strip() for model_type, parts in _LINES for part in parts.split()}

#: What users have most: these from CI on, the others in `make test-all`.
OFTEN = names(
    """
    albert bart bert bitnet blip_text_model bloom camembert chatglm clip_text_model clip_vision_model codegen cohere
    cpmant ctrl cvt dbrx deberta deberta-v2 deepseek_v2 deepseek_v3 dinov2 dinov3_vit distilbert electra esm falcon
    falcon_h1 gemma gemma2 gemma3_text gemma4_text gemma4_vision git glm glm4 glm4_moe glm5_next_text gpt2 gpt_bigcode
    gpt_neo gpt_neox gpt_oss gptj granite granitemoehybrid hubert jamba kosmos_2_text_model layoutlmv3 lfm2 llama
    llama4_text longformer longt5 lxmert m2m_100 mbart minimax mistral mixtral mllama_text_model modernbert
    modernbert-decoder moonshine mpnet mpt mt5 nemotron_h olmo2 opt pegasus persimmon phi phi3 phimoe pixtral
    prophetnet qwen2 qwen2_5_vl_vision qwen2_audio_encoder qwen2_moe qwen2_vl_text qwen2_vl_vision qwen3 qwen3_5_text
    qwen3_moe qwen3_next recurrent_gemma roberta sam_vision_model seamless_m4t segformer siglip_text_model
    siglip_vision_model smollm3 speecht5 stablelm starcoder2 swin swinv2 t5 t5gemma2_text timesformer unispeech
    videomae vit vitdet wav2vec2 wav2vec2-bert whisper xglm xlm xlm-roberta
    """
)


def _first_of_each_rule() -> set[str]:
    """Return a family for each naming rule, of those that users have most, the shortest name."""
    first: dict[object, str] = {}
    for family in sorted(FAMILIES.keys() - REMOTE, key=lambda family: (family not in OFTEN, len(family), family)):
        first.setdefault(FAMILIES[family], family)
    return set(first.values())


#: One family of each naming rule and fused layout, and the one that most models copy.
FAST = _first_of_each_rule() | {"llama"}


def tiers(families: set[str]) -> list[object]:
    return in_tiers(sorted(families), fast=FAST, ci=OFTEN)


@lru_cache(maxsize=4)
def _made(model_type: str) -> nn.Module:
    return tiny_model(model_type)


def whole(family: str) -> Model:
    """The model that a family is tried in."""
    model_type = MADE_AS.get(family, family)
    model = without_biases(copy.deepcopy(_made(model_type)))
    return Model(model, tiny_inputs(model_type), ailora.find_projections(model))


@pytest.mark.parametrize("family", tiers(FAMILIES.keys() - REMOTE))
def test_the_roles_are_what_the_attention_does(family: str) -> None:
    model = whole(family)
    own = [site for site in sites(model) if family in (site.value.rule, site.output.rule)]
    tried = [site for site in own if site.result() is not None]
    if family in START_EQUAL:
        tried = [site for site in tried if "decoder" not in site.name or site.value.attention == "cross"]
    assert tried, f"no attention of {family} ran in {MADE_AS.get(family, family)}: {[site.name for site in own]}"
    assert {site.name: problems(site) for site in tried} == {site.name: [] for site in tried}


@pytest.mark.parametrize("family", tiers(FAMILIES.keys() - REMOTE))
def test_the_roles_partition_every_weight(family: str) -> None:
    by_module: dict[str, list[int]] = {}
    model = whole(family)
    shapes = {p.module: p.shape for p in model.projections}
    for p in model.projections:
        by_module.setdefault(p.module, []).extend(row for start, stop in p.rows for row in range(start, stop))
    assert all(sorted(rows) == list(range(shapes[module][0])) for module, rows in by_module.items())


@pytest.mark.parametrize("family", tiers(FAMILIES.keys() - REMOTE - {"bitnet"}))
def test_the_gate_is_the_part_that_what_follows_is_not_linear_in(family: str) -> None:
    """BitNet has a norm there."""
    found = {name: problem for name, problem in feed_forward(whole(family), family).items() if problem}
    assert {name: p for name, p in found.items() if p != "the last part is not called"} == {}


def run(model: nn.Module, model_type: str) -> list[Tensor]:
    """Every floating tensor of a model's output."""
    torch.manual_seed(0)
    with torch.no_grad():
        output = model(**tiny_inputs(model_type))
    found = [value for value in tree_leaves(tuple(output.values())) if isinstance(value, Tensor)]
    return [value for value in found if value.is_floating_point()]


@pytest.mark.parametrize("model_type", tiers(FAMILIES.keys() - REMOTE - MADE_AS.keys()))
def test_every_family_starts_exact_and_saves_a_stock_file(model_type: str, tmp_path: Path) -> None:
    # Frozen, as under an adapter: torch picks other kernels for weights that train.
    base = copy.deepcopy(_made(model_type)).requires_grad_(False)
    expected = run(base, model_type)
    model = ailora.adapt(base, rank=RANK, task_type=None).eval()
    assert ailora.get_plan(model).counts.keys() == {Role.QUERY, Role.VALUE}
    assert all(torch.equal(a, b) for a, b in zip(run(model, model_type), expected, strict=True))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".delta"):
                parameter.normal_(std=0.1, generator=generator)
    moved = run(model, model_type)
    assert not all(torch.equal(a, b) for a, b in zip(moved, expected, strict=True))
    ailora.save_adapter(model, tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(_made(model_type)), tmp_path).eval()
    assert all(close(a, b, 1e-4) for a, b in zip(run(loaded, model_type), moved, strict=True))


def test_how_many_families_are_proven_and_which_are_left_out() -> None:
    assert len(FAMILIES.keys() - REMOTE) == 388
    assert len(OFTEN - REMOTE) >= 60
    assert FAMILIES.keys() >= OFTEN
    assert not FAMILIES.keys() & LEFT_OUT.keys()
    assert len(LEFT_OUT) == 55
    named = MADE_AS.keys() | BIASED | SCALED | NORMED | CHUNKED | START_EQUAL
    assert FAMILIES.keys() >= named


def test_a_swapped_or_shifted_layout_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proofs can fail: GPT-2's weight read in another order, or head by head, is no attention."""
    swapped = {
        "values first": lambda roles, config, out: FusedLayout(1, ((Role.VALUE, 32), (Role.KEY, 32), (Role.QUERY, 32))),
        "keys first": lambda roles, config, out: FusedLayout(1, ((Role.KEY, 32), (Role.QUERY, 32), (Role.VALUE, 32))),
        "values second": lambda roles, config, out: FusedLayout(
            1, ((Role.QUERY, 32), (Role.VALUE, 32), (Role.KEY, 32))
        ),
        "head by head": fused_splits.per_head,
    }
    rule = FAMILIES["gpt2"][0]
    for split in swapped.values():
        monkeypatch.setitem(
            FAMILIES, "gpt2", (type(rule)(rule.pattern, rule.roles, split=split), *FAMILIES["gpt2"][1:])
        )
        (site,) = sites(whole("gpt2"))
        assert problems(site)
