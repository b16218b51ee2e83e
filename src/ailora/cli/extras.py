"""Extras of `pip install ailora` that commands need."""

from __future__ import annotations

from importlib.util import find_spec

#: Command -> extra with its packages.
EXTRAS = {
    **dict.fromkeys(("train", "suggest-lr", "evaluate", "predict", "generate"), "train"),
    **dict.fromkeys(("study", "tune"), "study"),
    **dict.fromkeys(("analyze", "report"), "report"),
    "demo": "demo",
}

#: Import names of the extras' packages: only these may be missing; any other missing package is a bug.
OPTIONAL_PACKAGES = frozenset(
    {
        *("datasets", "jinja2", "nltk", "pandas", "pyarrow", "rouge_score", "ruamel", "sacrebleu", "sklearn", "trl"),
        *("optuna", "sqlalchemy"),
        *("matplotlib", "plotly"),
    }
)


def missing_extra(error: ModuleNotFoundError, *, command: str) -> str | None:
    """Name the missing extra of a command.

    Args:
        error: Error of an import.
        command: First word of the command line.

    Returns:
        A sentence with the command that installs the extra; None if the error has another cause.
    """
    package = (error.name or "").partition(".")[0]
    if command not in EXTRAS or package not in OPTIONAL_PACKAGES or find_spec(package) is not None:
        return None
    extra = EXTRAS[command]
    return f"""`ailora {command}` needs the extra '{extra}' ({package} is missing): pip install "ailora[{extra}]\""""
