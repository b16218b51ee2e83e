"""Tables, examples and labels."""

from __future__ import annotations

import csv
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ailora
from ailora.recipes.config.schema import DataConfig
from ailora.recipes.data.classification_rows import load_examples, warn_shared_sources
from ailora.recipes.data.labels import Labels
from ailora.recipes.data.readers import read_tables
from ailora.recipes.evaluation.classification_metrics import METRICS

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
    assert table.origins[1].endswith("d.tsv:2")


def test_a_header_despite_configured_columns_is_refused(tmp_path: Path) -> None:
    """Read as a row, it would be a text with a class of its own."""
    path = write(tmp_path, "d.csv", "sentence,label\na,1\n")
    with pytest.raises(ailora.InputError, match=r"d\.csv:1: the first line is a header .sentence, label., but"):
        read_tables(path, ["sentence", "label"])


def test_lists_of_files_are_joined(tmp_path: Path) -> None:
    names = files(tmp_path)
    assert read_tables([names["tsv"], names["csv"]]).rows == ROWS + ROWS


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("d.tsv", "sentence\tlabel\na\t1\nb\n", r"d\.tsv:3: 1 fields separated by tabs, expected 2: sentence, label"),
        ("d.csv", 'sentence,label\n"a,1\n', r"d\.csv:\d: unexpected end of data"),
        ("d.jsonl", '{"a": 1}\n{"a": \n', r"d\.jsonl:2: not JSON"),
        ("d.jsonl", '{"a": 1}\n{"a": NaN}\n', r"d\.jsonl:2: NaN is not JSON"),
        ("d.jsonl", '{"a": 1}\n{"a": "\\ud83d"}\n', r"d\.jsonl:2: 'a': '\\ud83d' is half a character"),
        ("d.jsonl", '{"a": 1}\n' + '{"a": ' * 3000 + "1" + "}" * 3000, r"d\.jsonl:2: nested more than 100 levels deep"),
        (
            "d.json",
            '{"a": 1}\n{"b"\n',
            r"d\.json:2: not JSON: .*; a \.json file holds a list of objects, a single object",
        ),
        ("d.json", '{"a":\n1\n', r"d\.json:3: not JSON: .*; a \.json file holds a list"),
        ("d.json", "3", r"d\.json:1: expected an object, got int"),
        ("d.jsonl", "[1]\n", r"d\.jsonl:1: expected an object"),
        ("d.parquet", "no", r"d\.parquet: not a Parquet file"),
        ("d.tsv", "sentence\tlabel\n", "holds no rows"),
        ("d.csv", "a,b,a\n1,2,3\n", r"d\.csv:1: duplicate column 'a'"),
        ("d.tsv", "", "holds no rows"),
        ("d.txt", "a", r"must end in one of \.tsv"),
        ("d.jsonl", '{"a": 1}\n{"a": 1, "a": 2}\n', r"d\.jsonl:2: duplicate key 'a'"),
    ],
)
def test_broken_files_are_named_with_the_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ailora.InputError, match=message):
        read_tables(write(tmp_path, name, text))


def test_keys_of_json_are_optional(tmp_path: Path) -> None:
    """A key that only some rows have is a column; where it is missing, it is missing to whoever needs it."""
    first, second = (
        write(tmp_path, name, text)
        for name, text in (("a.jsonl", '{"x": 1}\n{"x": 2, "y": 3}\n'), ("b.json", '[{"z": 4, "x": 5}]'))
    )
    table = read_tables([first, second])
    assert table.columns == ("x", "y", "z")
    assert table.rows == [(1, None, None), (2, 3, None), (5, None, 4)]
    rows = write(
        tmp_path, "c.jsonl", '{"sentence": "a", "label": 1}\n{"sentence": "b"}\n{"sentense": "c", "label": 1}\n'
    )
    with pytest.raises(ailora.InputError, match=r"c\.jsonl:3: the text columns .* hold \(None,\), expected text"):
        load_examples(data(rows), "train")


@pytest.mark.parametrize(
    ("name", "text", "values"),
    [
        ("d.json", '{\n  "a": "x"\n}\n', ["x"]),
        ("d.json", '{"a": "x"}', ["x"]),
        ("d.json", '[{"a": "x\u2028y"},\n{"a": "z"}]', ["x\u2028y", "z"]),
        ("d.json", '{"a": "x\u2028y\x85"}\r\n\n{"a": "z"}', ["x\u2028y\x85", "z"]),
        ("d.jsonl", '{"a": "x\u2029y\x0c"}\n{"a": "z"}', ["x\u2029y\x0c", "z"]),
    ],
)
def test_forms_of_json(tmp_path: Path, name: str, text: str, values: list[str]) -> None:
    path = write(tmp_path, name, text.replace("\x0c", "\\f"))
    assert read_tables(path).column("a") == values


def test_columns_of_parquet_that_nothing_names_are_not_converted(tmp_path: Path) -> None:
    """Arrow's dates go beyond the year 9999, Python's do not."""
    file = tmp_path / "d.parquet"
    day = pa.array([10**7], pa.date32())
    pq.write_table(pa.table({"sentence": ["a"], "label": [1], "day": day}), file)
    assert load_examples(data(str(file)), "train").texts == [("a",)]
    assert read_tables(str(file), named=["sentence"]).columns == ("sentence", "label", "day")
    with pytest.raises(ailora.InputError, match=r"d\.parquet: column 'day' \(date32\[day\]\) has a value that Python"):
        read_tables(str(file))
    with pytest.raises(ailora.InputError, match="no column 'lable'; the columns are sentence, label, day"):
        load_examples(data(str(file), label="lable"), "train")


def test_columns_of_parquet_that_are_there_twice_are_named(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["a", "a"])
    pq.write_table(table, tmp_path / "d.parquet")
    with pytest.raises(ailora.InputError, match=r"d\.parquet: duplicate column 'a'"):
        read_tables(str(tmp_path / "d.parquet"))


def test_a_folder_is_no_data_file(tmp_path: Path) -> None:
    for name in ("d.tsv", "data"):
        (tmp_path / name).mkdir()
        with pytest.raises(ailora.InputError, match=rf"{name} is a folder; expected a file"):
            read_tables(str(tmp_path / name))


@pytest.mark.parametrize(("name", "separator"), [("d.tsv", "\t"), ("d.csv", ",")])
def test_long_texts_are_read_whole(tmp_path: Path, name: str, separator: str) -> None:
    limit, text = csv.field_size_limit(), "word " * 40_000
    path = write(tmp_path, name, f"sentence{separator}label\n{text}{separator}1\n")
    assert read_tables(path).column("sentence") == [text]
    assert csv.field_size_limit() == limit


def test_missing_files_and_other_encodings(tmp_path: Path) -> None:
    with pytest.raises(ailora.InputError, match="no such file"):
        read_tables(str(tmp_path / "x.tsv"))
    (tmp_path / "latin.tsv").write_bytes("sentence\tlabel\nol\xe9\t1\n".encode("latin-1"))
    with pytest.raises(ailora.InputError, match="not UTF-8"):
        read_tables(str(tmp_path / "latin.tsv"))
    wide = write(tmp_path, "e.tsv", "sentence\tlabel\tother\na\t1\tx\n")
    for names in ([files(tmp_path)["tsv"], wide], [wide, files(tmp_path)["tsv"]]):
        with pytest.raises(ailora.InputError, match="has the columns"):
            read_tables(names)


def data(path: str, **options: object) -> DataConfig:
    return DataConfig(**{"train": path, "validation": path, "text": ["sentence"], **options})  # type: ignore[arg-type]


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    path = files(tmp_path)["tsv"]
    with pytest.raises(ailora.InputError, match="no column 'text'; the columns are sentence, label"):
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


def test_training_data_in_other_splits_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, "d.tsv", "sentence\tlabel\na\t1\n")
    (tmp_path / "link.tsv").symlink_to(path)
    warn_shared_sources(data(path, validation="other.tsv", test=["other.tsv", str(tmp_path / "link.tsv")]))
    assert caplog.messages == [
        f"data.test and data.train both name {path}: scores on rows of the training data do not show how well the "
        "model generalizes"
    ]
    caplog.clear()
    split = {"train": "train", "validation": "train[:10%]", "test": "train"}
    warn_shared_sources(data(path, dataset="glue", **split))
    assert [message.partition(":")[0] for message in caplog.messages] == ["data.test and data.train both name train"]
    caplog.clear()
    warn_shared_sources(data(path, validation="other.tsv"))
    assert not caplog.messages


def test_two_text_columns(tmp_path: Path) -> None:
    path = write(tmp_path, "p.csv", "a,b,label\nx,y,0\nz,w,1\n")
    assert load_examples(data(path, text=["b", "a"]), "train").texts == [("y", "x"), ("w", "z")]


def test_a_data_set_by_name(tmp_path: Path) -> None:
    """`datasets.load_dataset` on a local folder takes the path that a hub name takes."""
    pd.DataFrame(ROWS, columns=["sentence", "label"]).to_csv(tmp_path / "train.csv", index=False)
    config = data("train", dataset=str(tmp_path))
    assert load_examples(config, "train").texts == [(text,) for text, _ in ROWS]
    with pytest.raises(ailora.InputError, match="cannot load split 'trian' of dataset"):
        load_examples(config.model_copy(update={"train": "trian"}), "train")


@pytest.mark.parametrize("missing", [None, -1])
def test_a_class_label_that_is_null_or_secret_is_missing(tmp_path: Path, missing: int | None) -> None:
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    rows = {"sentence": list("abc"), "label": [0, 1, missing]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ailora.InputError, match=r"row 2: the row has no label in column 'label'"):
        load_examples(data("train", dataset=str(tmp_path)), "train")


def labels_of(*values: object, regression: bool = False) -> Labels:
    return Labels.from_values(values, [f"f.tsv:{i}" for i in range(2, len(values) + 2)], regression=regression)


def test_labels_are_sorted_as_numbers_or_as_text() -> None:
    assert labels_of("10", "9", "-1").names == ("-1", "9", "10")
    assert labels_of("02", "1").names == ("1", "02")
    labels = labels_of("no", "yes", "maybe")
    assert labels.names == ("maybe", "no", "yes")
    assert (labels.encode("yes", "f:1"), labels.decode(1)) == (2, "no")


@pytest.mark.parametrize("names", [("--1", "2"), ("²", "1"), ("1-", "2"), ("٣", "4"), ("1.2.3", "1.0")])
def test_labels_that_only_resemble_numbers_are_text(names: tuple[str, str]) -> None:
    assert labels_of(*names).names == tuple(sorted(names))


def test_numbers_of_thousands_of_digits_are_no_labels() -> None:
    digits = "9" * 5000
    with pytest.raises(ailora.InputError, match=r"f\.tsv:2: label '9+.* has 5,000 digits; expected at most 300"):
        labels_of(digits, "1")
    with pytest.raises(ailora.InputError, match=r"f:1: label must be a finite number"):
        Labels(None).encode(10**400, "f:1")


def test_blanks_around_labels_do_not_count() -> None:
    labels = labels_of("1", "1 ", " 0", "0")
    assert labels.names == ("0", "1")
    assert labels.encode("1 ", "f:1") == 1


def test_whole_numbers_may_have_a_plus_sign() -> None:
    """As in files of LIBSVM."""
    assert labels_of("+1", "-1", "+1").names == ("-1", "+1")
    with pytest.raises(ailora.InputError, match=r"label '1' is the same number as label '\+1'"):
        labels_of("+1", "-1", "1")


def test_files_of_several_formats_share_their_labels(tmp_path: Path) -> None:
    paths = [
        write(tmp_path, "a.tsv", "sentence\tlabel\na\t1\nb\t0\n"),
        write(tmp_path, "b.jsonl", '{"sentence": "c", "label": 1}\n'),
    ]
    examples = load_examples(data(paths[0], train=paths), "train")
    assert Labels.from_values(examples.labels or [], examples.origins, regression=False).names == ("0", "1")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("a", "a"), "the single class 'a'"),
        (("1", "0", "01"), r"f\.tsv:4: label '01' is the same number as label '1' \(f\.tsv:2\); use the same"),
        ((1, "1"), r"f\.tsv:3: label '1' and label 1 \(f\.tsv:2\) differ in type; write all labels"),
        ((1, 0, True), r"f\.tsv:4: label True and label 1 \(.* differ in type"),
        ((1, 1.5), r"f\.tsv:3: label 1\.5 is a decimal number; for regression, choose metric pearson or"),
        (
            (0.0, 1.0),
            r"f\.tsv:2: label 0\.0 is a decimal number.*; for classification, write labels as text or whole numbers",
        ),
        (("1", "2.5", "3"), r"f\.tsv:3: label '2\.5' is a decimal number"),
        (([1], [2]), r"f\.tsv:2: label must be text or a whole number, got a list \(\[1\]\)"),
    ],
)
def test_labels_that_are_no_classes_are_named(values: tuple[object, ...], message: str) -> None:
    with pytest.raises(ailora.InputError, match=message):
        labels_of(*values)


def test_bad_labels_are_named() -> None:
    with pytest.raises(ailora.InputError, match=r"f\.tsv:7: label 'x' is not in the training data, which has a, b"):
        labels_of("a", "b").encode("x", "f.tsv:7")
    for value in ("good", "nan", None, True):
        with pytest.raises(ailora.InputError, match=r"f\.tsv:7: label must be a finite number"):
            labels_of(regression=True).encode(value, "f.tsv:7")


@pytest.mark.parametrize("missing", ["null", '""', '" "'])
def test_missing_labels_of_json_are_named(tmp_path: Path, missing: str) -> None:
    rows = f'{{"sentence": "a", "label": 1}}\n{{"sentence": "b", "label": {missing}}}\n'
    with pytest.raises(ailora.InputError, match=r"d\.jsonl:2: the row has no label in column 'label'"):
        load_examples(data(write(tmp_path, "d.jsonl", rows)), "train")


@pytest.mark.parametrize("values", [["x", None], [1.0, float("nan")], pd.array([1, None], dtype="Int64")])
def test_missing_labels_of_parquet_are_named(tmp_path: Path, values: object) -> None:
    pd.DataFrame({"sentence": ["a", "b"], "label": values}).to_parquet(tmp_path / "d.parquet")
    with pytest.raises(ailora.InputError, match=r"d\.parquet: row 1: the row has no label"):
        load_examples(data(str(tmp_path / "d.parquet")), "train")


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
