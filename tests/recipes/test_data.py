"""Tables, examples and labels."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import ailora
from ailora.recipes.examples import Labels, load_examples
from ailora.recipes.metrics import METRICS
from ailora.recipes.schema import DataConfig
from ailora.recipes.tables import read_tables

ROWS = [('He said "no', "0"), ("Yes, he did", "1")]


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def files(folder: Path) -> dict[str, str]:
    """The same two rows in every format."""
    frame = pd.DataFrame(ROWS, columns=["sentence", "label"])
    frame.to_parquet(folder / "d.parquet")
    frame.to_json(folder / "d.jsonl", orient="records", lines=True)
    frame.to_csv(folder / "d.csv", index=False)
    return {
        "tsv": write(folder, "d.tsv", 'sentence\tlabel\nHe said "no\t0\nYes, he did\t1\n'),
        **{kind: str(folder / f"d.{kind}") for kind in ("csv", "jsonl", "parquet")},
    }


@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    table = read_tables(files(tmp_path)[kind])
    assert table.columns == ("sentence", "label")
    assert table.rows == ROWS


def test_a_byte_order_mark_is_no_part_of_a_column(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_bytes(b"\xef\xbb\xbfsentence,label\r\na,1\r\n")
    table = read_tables(str(tmp_path / "d.csv"))
    assert (table.columns, table.rows) == (("sentence", "label"), [("a", "1")])


def test_files_without_a_header(tmp_path: Path) -> None:
    path = write(tmp_path, "d.tsv", "a\t1\t*\tone\nb\t0\t\ttwo\n")
    table = read_tables(path, ["source", "label", "mark", "sentence"])
    assert table.column("sentence") == ["one", "two"]
    assert table.where[1].endswith("d.tsv:2")


def test_lists_of_files_are_joined(tmp_path: Path) -> None:
    names = files(tmp_path)
    assert read_tables([names["tsv"], names["csv"]]).rows == ROWS + ROWS


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("d.tsv", "sentence\tlabel\na\t1\nb\n", r"d\.tsv:3: 1 fields between tabs, expected 2: sentence, label"),
        ("d.csv", 'sentence,label\n"a,1\n', r"d\.csv:\d: unexpected end of data"),
        ("d.jsonl", '{"a": 1}\n{"a": \n', r"d\.jsonl:2: not JSON"),
        ("d.jsonl", '{"a": 1}\n{"b": 2}\n', r"d\.jsonl:2: keys \['b'\], expected \['a'\]"),
        ("d.jsonl", "[1]\n", r"d\.jsonl:1: expected an object"),
        ("d.parquet", "no", r"d\.parquet: not a Parquet file"),
        ("d.tsv", "sentence\tlabel\n", "holds no rows"),
        ("d.csv", "a,b,a\n1,2,3\n", r"d\.csv:1: the column 'a' is there twice"),
        ("d.tsv", "", "holds no rows"),
        ("d.txt", "a", r"ends in one of \.tsv"),
    ],
)
def test_broken_files_are_named_with_the_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ailora.InputError, match=message):
        read_tables(write(tmp_path, name, text))


def test_missing_files_and_other_encodings(tmp_path: Path) -> None:
    with pytest.raises(ailora.InputError, match="no such file"):
        read_tables(str(tmp_path / "x.tsv"))
    (tmp_path / "latin.tsv").write_bytes("sentence\tlabel\nol\xe9\t1\n".encode("latin-1"))
    with pytest.raises(ailora.InputError, match="not UTF-8"):
        read_tables(str(tmp_path / "latin.tsv"))
    with pytest.raises(ailora.InputError, match="has the columns"):
        read_tables([files(tmp_path)["tsv"], write(tmp_path, "e.tsv", "x\n1\n")])


def data(path: str, **options: object) -> DataConfig:
    return DataConfig(**{"train": path, "validation": path, "text": ["sentence"], **options})  # type: ignore[arg-type]


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    path = files(tmp_path)["tsv"]
    with pytest.raises(ailora.InputError, match="no column 'text'; it has: sentence, label"):
        load_examples(data(path, text=["text"]), "train")
    with pytest.raises(ailora.InputError, match="no column 'gold'"):
        load_examples(data(path, label="gold"), "train")


def test_rows_without_text_or_label_are_named(tmp_path: Path) -> None:
    with pytest.raises(ailora.InputError, match=r"n\.jsonl:1: the text columns .* expected text"):
        load_examples(data(write(tmp_path, "n.jsonl", '{"sentence": null, "label": 1}\n')), "train")
    with pytest.raises(ailora.InputError, match=r"l\.tsv:2: the row has no label"):
        load_examples(data(write(tmp_path, "l.tsv", "sentence\tlabel\na\t\n")), "train")


def test_the_cut_is_the_same_every_time_and_keeps_the_order(tmp_path: Path) -> None:
    rows = "".join(f"{i}\t{i % 2}\n" for i in range(50))
    path = write(tmp_path, "d.tsv", f"sentence\tlabel\n{rows}")
    cuts = [load_examples(data(path, max_train_samples=10), "train").texts for _ in range(2)]
    kept = [int(text) for (text,) in cuts[0]]
    assert cuts[0] == cuts[1]
    assert len(kept) == 10
    assert kept == sorted(kept) != list(range(10))
    assert len(load_examples(data(path, max_train_samples=10), "validation").texts) == 50


def test_two_text_columns(tmp_path: Path) -> None:
    path = write(tmp_path, "p.csv", "a,b,label\nx,y,0\nz,w,1\n")
    assert load_examples(data(path, text=["b", "a"]), "train").texts == [("y", "x"), ("w", "z")]


def test_a_data_set_by_name(tmp_path: Path) -> None:
    """`datasets.load_dataset` on a local folder takes the path that a hub name takes."""
    pd.DataFrame(ROWS, columns=["sentence", "label"]).to_csv(tmp_path / "train.csv", index=False)
    config = data("train", dataset=str(tmp_path))
    assert load_examples(config, "train").texts == [(text,) for text, _ in ROWS]
    with pytest.raises(ailora.InputError, match="cannot load split 'trian' of data set"):
        load_examples(config.model_copy(update={"train": "trian"}), "train")


def test_labels_are_sorted_as_numbers_or_as_text() -> None:
    assert Labels.of(["10", "9", 1], regression=False).names == ("1", "9", "10")
    labels = Labels.of(["no", "yes", "maybe"], regression=False)
    assert labels.names == ("maybe", "no", "yes")
    assert (labels.encode("yes", "f:1"), labels.name(1)) == (2, "no")


def test_bad_labels_are_named() -> None:
    with pytest.raises(ailora.InputError, match=r"f\.tsv:7: label 'x' is not in the training data: a, b"):
        Labels.of(["a", "b"], regression=False).encode("x", "f.tsv:7")
    with pytest.raises(ailora.InputError, match="single class 'a'"):
        Labels.of(["a", "a"], regression=False)
    for value in ("good", "nan", None):
        with pytest.raises(ailora.InputError, match=r"f\.tsv:7: label .* is not a number"):
            Labels.of([], regression=True).encode(value, "f.tsv:7")


def test_metrics_are_those_of_the_literature() -> None:
    import numpy as np

    labels, predictions = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    assert METRICS["accuracy"].score(labels, predictions, 2) == 0.75
    assert METRICS["f1"].score(labels, predictions, 2) == pytest.approx(0.8)
    # (TP TN - FP FN) / sqrt((TP+FP)(TP+FN)(TN+FP)(TN+FN)) = (2 - 0) / sqrt(3 * 2 * 2 * 1)
    assert METRICS["matthews_correlation"].score(labels, predictions, 2) == pytest.approx(2 / 12**0.5)
    assert METRICS["pearson"].score(labels * 1.0, labels * 2.0, 1) == pytest.approx(1)
    assert METRICS["spearman"].score(labels * 1.0, np.zeros(4), 1) == 0.0
    assert METRICS["f1"].score(np.array([0, 1, 2]), np.array([0, 1, 1]), 3) == pytest.approx((1 + 2 / 3 + 0) / 3)
    # The number of classes is the task's, not that of the rows at hand.
    assert METRICS["f1"].score(np.array([0, 1, 1]), np.array([0, 1, 0]), 3) == pytest.approx(2 / 3)
