"""Small models under every quantization that runs here, and their unquantized originals."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from torch import Tensor, nn

from ailora.weights.base_weight import BaseWeight
from ailora.weights.quantized import find_quantized_format, prevent_cpu_repacking

POSITIONS = 6


def read_weight(layer: nn.Module, module: str) -> torch.Tensor:
    """The weight of a layer as a plain matrix."""
    return BaseWeight(module, layer, find_quantized_format(layer)).read()


@dataclass(frozen=True)
class Quantization:
    """One way to quantize a model.

    Attributes:
        name: Of the test.
        quantize: A folder with a checkpoint -> the quantized model.
        format_name: Name of the format in `weights.quantized`.
        error: A bound on the relative error of a weight, from its bits: half a step of a normal distribution's range.
    """

    name: str
    quantize: Callable[[Path], nn.Module]
    format_name: str
    error: float

    def model(self, folder: Path) -> nn.Module:
        """A fresh quantized model, in eval mode, that computes alike on every CPU."""
        model = self.quantize(folder).eval()
        prevent_cpu_repacking(model)
        return model


def _loaded(make: Callable[[], Any], dtype: torch.dtype = torch.float32) -> Callable[[Path], nn.Module]:
    """By transformers' own loader. The head stays as it is, which the checkpoint does not hold."""

    def load(folder: Path) -> nn.Module:
        return tf.AutoModelForCausalLM.from_pretrained(folder, quantization_config=make(), dtype=dtype)

    return load


def _by_hand(replace: Callable[[nn.Linear], nn.Module]) -> Callable[[Path], nn.Module]:
    """Layer by layer, where transformers has no loader of its own."""

    def load(folder: Path) -> nn.Module:
        model = tf.AutoModelForCausalLM.from_pretrained(folder)
        for name, layer in list(model.named_modules()):
            if isinstance(layer, nn.Linear) and name != "lm_head":
                parent, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(parent), leaf, replace(layer))
        return model.requires_grad_(False)

    return load


def _bnb(dtype: torch.dtype = torch.float32, **options: Any) -> Callable[[Path], nn.Module]:
    return _loaded(lambda: tf.BitsAndBytesConfig(**options, bnb_4bit_compute_dtype=dtype), dtype)


def _torchao_int8() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return tf.TorchAoConfig(quant_type=Int8WeightOnlyConfig())


def _torchao_int4() -> Any:
    from torchao.quantization import IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup

    return tf.TorchAoConfig(quant_type=IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)))


def _quanto(folder: Path) -> nn.Module:
    from optimum.quanto import freeze, qint8, quantize

    model = tf.AutoModelForCausalLM.from_pretrained(folder)
    quantize(model, weights=qint8, exclude="lm_head")
    freeze(model)
    return model


def _hqq(layer: nn.Linear) -> nn.Module:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    config = BaseQuantizeConfig(nbits=4, group_size=32)
    return HQQLinear(layer, config, compute_dtype=torch.float32, device="cpu")


class PackedLinear(nn.Module):
    """A layer like GPTQ's and AWQ's: integers in buffers, scales beside them, no attribute `weight`."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight = layer.weight.detach()
        scales = weight.abs().amax(dim=1) / 7
        self.register_buffer("qweight", (weight / scales[:, None]).round().to(torch.int32).T.contiguous())
        self.register_buffer("scales", scales)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        made = x @ (self.qweight * self.scales).to(x.dtype)
        return made if self.bias is None else made + self.bias


_NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}

QUANTIZATIONS = {
    q.name: q
    for q in (
        Quantization("bitsandbytes int8", _bnb(load_in_8bit=True), "bitsandbytes 8-bit", 0.02),
        Quantization(
            "bitsandbytes nf4", _bnb(load_in_4bit=True, bnb_4bit_quant_type="nf4"), "bitsandbytes 4-bit", 0.15
        ),
        Quantization(
            "bitsandbytes fp4, double",
            _bnb(load_in_4bit=True, bnb_4bit_use_double_quant=True),
            "bitsandbytes 4-bit",
            0.2,
        ),
        Quantization(
            "bitsandbytes nf4 stored as bfloat16",
            _bnb(torch.bfloat16, load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_quant_storage=torch.bfloat16),
            "bitsandbytes 4-bit",
            0.15,
        ),
        Quantization("torchao int8", _loaded(_torchao_int8), "torchao", 0.02),
        Quantization("torchao int4", _loaded(_torchao_int4), "torchao", 0.2),
        Quantization("quanto int8", _quanto, "quanto", 0.02),
        Quantization("HQQ 4-bit", _by_hand(_hqq), "HQQ", 0.2),
    )
}
#: PEFT refuses to adapt a layer that it does not know, so this one is only read.
PACKED = Quantization("packed", _by_hand(PackedLinear), "packed", 0.3)


@cache
def original() -> nn.Module:
    """A small Llama with grouped queries, float32."""
    torch.manual_seed(3)
    config = tf.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64, tie_word_embeddings=False,
    )  # fmt: skip
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.2)
    return model


def saved(folder: Path, model: nn.Module | None = None) -> Path:
    """The original as a checkpoint."""
    copy.deepcopy(model or original()).save_pretrained(folder)
    return folder


def run(model: nn.Module) -> Tensor:
    """The logits."""
    ids = torch.randint(5, 64, (2, POSITIONS), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(input_ids=ids).logits
