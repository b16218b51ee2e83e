"""`ailora.json`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import ailora
from ailora.lora.inject import get_metadata
from ailora.plan import METADATA_NAME, AdapterMetadata, Plan, find_metadata
from tests.families import FAMILIES


def saved(folder: Path) -> AdapterMetadata:
    model = ailora.adapt(FAMILIES["bert"].model(), rank=4)
    ailora.save_adapter(model, folder)
    return get_metadata(model)


SIDECARS = Path(__file__).parent / "metadata_files"


def test_it_says_what_the_adapter_is(tmp_path: Path) -> None:
    sidecar = saved(tmp_path)
    data = json.loads((tmp_path / METADATA_NAME).read_text())
    assert data["format_version"] == 1
    assert data["plan"]["policy"]["name"] == "ailora"
    assert data["plan"]["form"] == "anchored"
    assert [a["role"] for a in data["plan"]["adapters"]] == ["query", "value"] * 2
    assert all(a["rows"] == [[0, 32]] and a["rank"] == 4 and a["scaling"] == 1.0 for a in data["plan"]["adapters"])
    assert set(data["versions"]) >= {"ailora", "torch", "peft", "transformers"}
    assert AdapterMetadata.read(tmp_path / METADATA_NAME) == sidecar
    assert Plan.from_dict(sidecar.plan) == ailora.make_plan(FAMILIES["bert"].model(), rank=4)


def test_the_fingerprint_is_that_of_the_base_tensors() -> None:
    def fingerprint(change: float) -> str:
        model = FAMILIES["bert"].model()
        with torch.no_grad():
            model.bert.encoder.layer[1].attention.self.value.weight[0, 0] += change
        return get_metadata(ailora.adapt(model)).fingerprint

    assert fingerprint(0.0) == fingerprint(0.0) != fingerprint(1e-3)


def test_a_checkpoint_is_read_with_the_nearest_one_above(tmp_path: Path) -> None:
    sidecar = saved(tmp_path)
    (tmp_path / "checkpoints" / "checkpoint-3").mkdir(parents=True)
    assert find_metadata(tmp_path / "checkpoints" / "checkpoint-3") == sidecar
    assert find_metadata("/") is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format_version": 2}', '{"format_version": 1, "plan": {}}'])
def test_what_is_no_sidecar_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / METADATA_NAME).write_text(content)
    with pytest.raises(ailora.InputError, match=r"ailora\.json: not an ailora\.json of format 1"):
        AdapterMetadata.read(tmp_path / METADATA_NAME)


def test_a_sidecar_with_a_broken_plan_is_refused(tmp_path: Path) -> None:
    sidecar = saved(tmp_path)
    sidecar.model_copy(update={"plan": {}}).write(tmp_path)
    with pytest.raises(ailora.InputError, match="not a plan"):
        AdapterMetadata.read(tmp_path / METADATA_NAME)


@pytest.mark.parametrize("file", sorted(SIDECARS.glob("*.json")), ids=lambda file: file.stem)
def test_files_of_every_version_stay_readable(file: Path) -> None:
    """As they were written then: before fused weights, and with them."""
    sidecar = AdapterMetadata.read(file)
    plan = Plan.from_dict(sidecar.plan)
    assert plan.policy.name == "ailora"
    assert [a.projection.role.value for a in plan.adapters] == ["query", "value"]
    assert all(a.rank == 2 and a.scaling == 1 for a in plan.adapters)
    assert plan.adapters[0].projection.shape in ((32, 32), (96, 32))
    assert sidecar.fingerprints.keys() == plan.modules.keys()
    assert sidecar.exported is None
    assert Plan.from_dict(plan.to_dict()) == plan


@pytest.mark.parametrize("changes", [{"modules_to_save": ["("]}, {"modules_to_save": [""]}, {"task_type": "SEQ_CLASS"}])
def test_a_plan_with_names_that_peft_would_not_take_is_refused(changes: dict[str, object], tmp_path: Path) -> None:
    plan = saved(tmp_path).plan
    with pytest.raises(ailora.InputError, match=f"not a plan: .*{next(iter(changes))}"):
        Plan.from_dict(plan | changes)


def test_labels_and_padding_of_a_classifier_are_kept(tmp_path: Path) -> None:
    model = FAMILIES["bert"].model()
    labels = {i: f"name {i}" for i in range(model.config.num_labels)}
    model.config.id2label, model.config.pad_token_id = labels, 3
    ailora.save_adapter(ailora.adapt(model, rank=4, task_type="SEQ_CLS"), tmp_path)
    metadata = AdapterMetadata.read(tmp_path / METADATA_NAME)
    assert (metadata.labels, metadata.pad_token_id) == (tuple(labels.values()), 3)


def test_a_file_of_a_later_format_is_named_in_one_line(tmp_path: Path) -> None:
    saved(tmp_path)
    data = json.loads((tmp_path / METADATA_NAME).read_text())
    (tmp_path / METADATA_NAME).write_text(json.dumps(data | {"format_version": 2}))
    with pytest.raises(ailora.InputError, match=r"format 1: format_version: Input should be 1$"):
        AdapterMetadata.read(tmp_path / METADATA_NAME)
