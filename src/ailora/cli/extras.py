"""Find the missing extra of `pip install ailora[...]` when a command cannot import a package."""

from __future__ import annotations

from importlib.util import find_spec

#: Command -> extra that installs its packages.
EXTRAS = {
    **dict.fromkeys(("train", "suggest-lr", "evaluate", "predict", "generate"), "train"),
    **dict.fromkeys(("study", "tune"), "study"),
    **dict.fromkeys(("analyze", "report"), "report"),
    "demo": "demo",
}

#: Import names of the packages that extras install. If any other package is missing, the cause is a bug, not a missing
#: extra.
OPTIONAL_PACKAGES = frozenset(
    {
        *("datasets", "jinja2", "nltk", "pandas", "pyarrow", "rouge_score", "ruamel", "sacrebleu", "sklearn", "trl"),
        *("optuna", "sqlalchemy"),
        *("matplotlib", "plotly"),
    }
)


def describe_missing_extra(error: ModuleNotFoundError, *, command: str) -> str | None:
    """Describe the missing extra behind a failed import.

    Args:
        error: Error of the import.
        command: Name of the command.

    Returns:
        A sentence with the command for installing the extra. None if a missing extra is not the cause.
    """
    package = (error.name or "").partition(".")[0]
    # If the package is installed, its import has failed for a reason other than a missing extra.
    if command not in EXTRAS or package not in OPTIONAL_PACKAGES or find_spec(package) is not None:
        return None
    extra = EXTRAS[command]
    return f"""`ailora {command}` needs the extra '{extra}' ({package} is missing): pip install "ailora[{extra}]\""""
