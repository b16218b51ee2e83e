"""The catalog against the installed transformers: what has a row, what is left out, and what is unknown."""

from __future__ import annotations

import warnings
from collections import Counter

import pytest
import torch
import transformers as tf
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import ailora
from ailora.roles.catalog import FAMILIES, LEFT_OUT
from docs import architectures
from tests.tiny_models import tiny_config

#: With the transformers that the page was written for; another release has other model types, which are unknown here.
VERSION = "5.23.0"
of_the_page = pytest.mark.skipif(tf.__version__ != VERSION, reason=f"the page is for transformers {VERSION}")
EXPECTED = {"row": 388, "parts": 172, "left out": 55, "unknown": 189}


@pytest.fixture(scope="module")
def walk() -> dict[str, list[str]]:
    return architectures.walk()


@of_the_page
def test_every_model_type_has_a_row_or_known_parts_or_a_reason_or_is_unknown(walk: dict[str, list[str]]) -> None:
    """A new release's types show up as unknown, in the page and here."""
    assert {status: len(names) for status, names in walk.items()} == EXPECTED
    assert len(set(CONFIG_MAPPING.keys())) == sum(EXPECTED.values())


@of_the_page
def test_every_row_and_every_reason_is_for_a_model_type_that_there_is() -> None:
    assert FAMILIES.keys() - set(CONFIG_MAPPING.keys()) == {"chatglm"}
    assert not LEFT_OUT.keys() - set(CONFIG_MAPPING.keys())


@of_the_page
def test_the_page_is_current() -> None:
    """Written by `python -m docs.architectures`."""
    assert architectures.FILE.read_text() == architectures.render()


@pytest.mark.slow
def test_unknown_model_types_are_refused_and_never_guessed(walk: dict[str, list[str]]) -> None:
    """On the meta device, all that can be made small: found are roles by rows of the catalog, or there is an error."""
    outcomes: Counter[tuple[str, str]] = Counter()
    for status, model_types in walk.items():
        for model_type in model_types:
            try:
                with torch.device("meta"), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    model = tf.AutoModel.from_config(tiny_config(model_type))
            except Exception:
                outcomes[status, "not made"] += 1
                continue
            try:
                rules = {p.rule for p in ailora.find_projections(model)}
            except ailora.ModelError:
                with pytest.raises(ailora.ModelError, match="no naming rule for the roles of"):
                    ailora.find_projections(model)
                outcomes[status, "refused"] += 1
                continue
            assert rules <= FAMILIES.keys(), model_type
            assert status in ("row", "parts") or model_type not in rules, model_type
            outcomes[status, "found"] += 1
    assert outcomes["row", "refused"] == 0
    assert outcomes["left out", "found"] == 0
    assert outcomes["row", "found"] >= 300
    assert outcomes["left out", "refused"] + outcomes["unknown", "refused"] >= 60
