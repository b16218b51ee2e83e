"""Secrets are found by their keys, and nothing else is."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
from transformers import Seq2SeqTrainingArguments
from trl import SFTConfig

from ailora.recipes.config.schema import SCHEMAS
from ailora.redaction import (
    Secret,
    is_secret,
    mask_argument,
    mask_override,
    mask_url,
    mask_value,
    without_secrets,
    wrap_secrets,
)

KNOWN = "s3cr3t"


@pytest.mark.parametrize(
    "key",
    ["hub_token", "training.hub_token", "api_key", "aws_access_key", "password", "db-password", "client_secret", "env"],
)
def test_keys_of_secrets(key: str) -> None:
    assert is_secret(key)
    assert without_secrets({"training": {"deepspeed": {key: KNOWN, "other": 1}}}) == {
        "training": {"deepspeed": {"other": 1}}
    }
    assert KNOWN not in mask_value(key, [KNOWN]) + mask_override(f"{key}={KNOWN}") + mask_override(f"{key}: {KNOWN}")


def test_of_all_training_arguments_only_the_hubs_token_is_one() -> None:
    names = {
        field.name for arguments in (SFTConfig, Seq2SeqTrainingArguments) for field in dataclasses.fields(arguments)
    }
    assert {name for name in names if is_secret(name)} == {"hub_token"}
    assert not any(is_secret(name) for schema in SCHEMAS.values() for name in schema.model_fields)


def test_roles_and_labels_that_are_named_like_secrets_stay() -> None:
    config = {"adapter": {"rank": {"cross_key": 4}}, "data": {"labels": {"password": 1}}, "training": {"seed": 0}}
    assert without_secrets(config) == config


def test_secrets_of_a_study_go_wherever_a_run_is_described() -> None:
    study = {
        "base": {"training": {"hub_token": KNOWN, "seed": 0}},
        "methods": ["lora", {"x": {"training.hub_token": KNOWN, "training": {"hub_token": KNOWN}}}],
        "tasks": {"a": {"training.deepspeed": {"comet": {"api_key": KNOWN}}}},
        "storage": f"postgresql://me:{KNOWN}@host/studies",
    }
    assert without_secrets(study) == {
        "base": {"training": {"seed": 0}},
        "methods": ["lora", {"x": {"training": {}}}],
        "tasks": {"a": {"training.deepspeed": {"comet": {}}}},
        "storage": "postgresql://me:***@host/studies",
    }


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"postgresql+psycopg://me:{KNOWN}@host:5432/db", "postgresql+psycopg://me:***@host:5432/db"),
        (f"postgresql://me:{KNOWN}@{KNOWN}/{KNOWN}@host/db", "postgresql://me:***@host/db"),
        (f"postgresql://host/db?user=me&password={KNOWN}", "postgresql://host/db?user=me&password=***"),
        (f"postgresql://me:{KNOWN}", "postgresql://me:***"),
        (f"postgresql:///me:{KNOWN}@host/db", "postgresql:///me:***@host/db"),
        (f"postgresql:/me:{KNOWN}@host/db", "postgresql:***"),
        (f"me:{KNOWN}@host/db", "me:***"),
        (f"host=host password={KNOWN}", "host=host password=***"),
        (f"sqlite+pysqlcipher://:{KNOWN}@/study.db", "sqlite+pysqlcipher://:***@/study.db"),
        (f"mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3D{KNOWN}", "mssql+pyodbc:///?odbc_connect=***"),
        ("sqlite:////home/a:b@c/study.db", "sqlite:////home/a:b@c/study.db"),
        ("postgresql://me@/studies?host=/run", "postgresql://me@/studies?host=/run"),
        ("postgresql://[::1]:5432/db", "postgresql://[::1]:5432/db"),
        ("postgresql://host:5432/db", "postgresql://host:5432/db"),
        ("no url", "no url"),
    ],
)
def test_passwords_of_urls_whole_or_malformed(url: str, shown: str) -> None:
    assert mask_url(url) == shown


def test_an_override_of_a_storage_is_masked_in_every_section() -> None:
    for key in ("storage", "tune.storage"):
        assert mask_override(f"{key}=postgresql://me:{KNOWN}@host/db: [") == f"'{key}=***'"


def test_a_protected_secret_is_used_and_not_pickled() -> None:
    training = wrap_secrets({"hub_token": KNOWN, "deepspeed": {"comet": {"api_key": KNOWN}}, "run_name": "a"})
    token = training["hub_token"]
    assert isinstance(token, Secret)
    assert f"Bearer {token}" == f"Bearer {KNOWN}"
    assert copy.deepcopy(training) == training
    assert KNOWN not in repr(training)
    content = pickle.dumps(training)
    assert KNOWN.encode() not in content
    assert pickle.loads(content)["hub_token"] is None


@pytest.mark.parametrize("value", [f"{{hub_token: {KNOWN}}}", f"{{hub_token: {KNOWN}", f"{{a: {{api_key: {KNOWN}}}}}"])
def test_a_mapping_in_an_override_may_hold_secrets(value: str) -> None:
    assert mask_argument(f"training={value}") == "training=***"
    assert mask_override(f"training={value}") == "'training=***'"


def test_other_overrides_are_shown() -> None:
    for override in ("training={seed: 3}", "training.seed=3", "adapter.rank={cross_key: 4}"):
        assert (mask_argument(override), mask_override(override)) == (override, repr(override))
