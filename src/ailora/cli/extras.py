"""Commands whose packages are extras of `pip install ailora`."""

from __future__ import annotations

from importlib.util import find_spec

#: command -> the extra that brings its packages
EXTRAS = {
    **dict.fromkeys(("train", "suggest-lr", "evaluate", "predict", "generate"), "train"),
    "study": "study",
    **dict.fromkeys(("analyze", "report"), "report"),
    "demo": "demo",
}

#: Packages of the extras as they are imported: only these are missing by the user's choice. Others are a bug.
OPTIONAL_PACKAGES = frozenset(
    {
        *("datasets", "jinja2", "nltk", "pandas", "pyarrow", "rouge_score", "ruamel", "sacrebleu", "sklearn", "trl"),
        *("optuna", "sqlalchemy", "statsmodels"),
        *("matplotlib", "plotly"),
    }
)


def missing_extra(error: ModuleNotFoundError, *, command: str) -> str | None:
    """Return the sentence that says which extra a command needs, or None where the error is another one.

    Args:
        error: what an import raised.
        command: the first word of the command line.
    """
    package = (error.name or "").partition(".")[0]
    if command not in EXTRAS or package not in OPTIONAL_PACKAGES or find_spec(package) is not None:
        return None
    extra = EXTRAS[command]
    return f"""`ailora {command}` needs the extra '{extra}' ({package} is missing): pip install "ailora[{extra}]\""""
