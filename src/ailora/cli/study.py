"""`ailora study`: run, work, status, report, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ailora.cli.options import Bootstrap, ForceFile, Json, Scale, StudyOverrides

study = typer.Typer(
    help="Compare methods fairly: a tuned learning rate for each method, several seeds, confidence intervals.",
    no_args_is_help=True,
)

StudyFile = Annotated[Path, typer.Argument(help="Study file (YAML).")]


@study.command()
def run(
    file: StudyFile,
    overrides: StudyOverrides = None,
    workers: Annotated[int, typer.Option(min=1, help="Number of trials that run at a time on this machine.")] = 1,
    scale: Scale = None,
    retry_refused: Annotated[
        bool,
        typer.Option(
            "--retry-refused", help="Also run trials that were refused for invalid input, such as a missing file."
        ),
    ] = False,
) -> None:
    """Run the remaining trials of a study. If interrupted or killed, the same command resumes."""
    from ailora.cli.study_progress import Progress, describe_refusals
    from ailora.cli.tables import print_line
    from ailora.formatting import quote_argument
    from ailora.studies.study import create_or_load_study
    from ailora.studies.study_config import load_study_config
    from ailora.studies.worker_processes import run_workers

    config = load_study_config(file, overrides or [], scale=scale)
    storage, design = create_or_load_study(config, retry_refused=retry_refused)
    with Progress(storage, design.keys) as progress:
        run_workers(storage, design.config, workers, progress.update)
    for line in describe_refusals(storage, design.keys):
        print_line(line)
    print_line(f"written to {design.config.output}")
    print_line(f"Next: ailora study report {quote_argument(file)}")


@study.command()
def work(
    storage: Annotated[str, typer.Argument(help="URL of an Optuna storage, such as sqlite:///study.db.")],
    name: Annotated[str, typer.Argument(help="Name of the study in the storage.")],
    tied: Annotated[bool, typer.Option("--tied", hidden=True, help="Stop when standard input ends.")] = False,
) -> None:
    """Run trials of a study, or of a search by `ailora tune`, until none is left. Several machines can take part."""
    import signal
    import sys

    from ailora.cli.study_progress import read_handover, stop_with_input
    from ailora.studies.study import load_study_from_storage, validate_machine
    from ailora.studies.worker import work as work_on_study
    from ailora.tune.halving import work_on_search
    from ailora.tune.tune_run import is_search, load_search, validate_machine_for_search

    # Job schedulers stop a job with SIGTERM. This handler returns the trial to the queue, as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    secrets = None
    # `ailora study run` starts tied workers, which stop when their parent process ends.
    if tied:
        # The URL on the command line of a tied worker has no password.
        storage, secrets = read_handover()
        stop_with_input()
    try:
        if is_search(storage, name):
            search = load_search(storage, name, secrets=secrets)
            # The parent process of a tied worker has already validated the same files.
            if not tied:
                validate_machine_for_search(*search)
            work_on_search(*search)
        else:
            loaded = load_study_from_storage(storage, name, secrets=secrets)
            if not tied:
                validate_machine(*loaded)
            work_on_study(*loaded)
    except KeyboardInterrupt:
        sys.exit(130)  # 128 + SIGINT, as from a shell after Ctrl-C


@study.command()
def status(file: StudyFile, overrides: StudyOverrides = None, scale: Scale = None) -> None:
    """Show the progress of a study, also while its workers run elsewhere."""
    from ailora.cli.study_progress import describe_refusals, progress_table
    from ailora.cli.tables import console, print_line
    from ailora.studies.study_config import load_study_config
    from ailora.studies.study_reader import load_trial_keys

    storage, keys = load_trial_keys(load_study_config(file, overrides or [], scale=scale))
    console.print(progress_table(storage, keys))
    for line in describe_refusals(storage, keys):
        print_line(line)


@study.command()
def report(
    file: StudyFile,
    overrides: StudyOverrides = None,
    scale: Scale = None,
    out: Annotated[Path | None, typer.Option(help="Markdown file to write; default: print.")] = None,
    bootstrap: Bootstrap = True,
    force: ForceFile = False,
    as_json: Json = False,
) -> None:
    """Compare the methods with the baseline: scores, learning rates, speed, cost, failures."""
    from ailora.atomic_io import write_text
    from ailora.checkpoints.output_file import validate_output_file
    from ailora.checkpoints.output_path import writing
    from ailora.cli.tables import console, print_json, print_line, summary_table
    from ailora.studies.comparison import compare
    from ailora.studies.study import load_study
    from ailora.studies.study_config import load_study_config
    from ailora.studies.study_reader import find_inputs
    from ailora.studies.summary import summarize

    config = load_study_config(file, overrides or [], scale=scale)
    # A comparison can take minutes, so an output file that cannot be written is refused first.
    if out is not None:
        out = validate_output_file(out, force=force, reads=[file, *find_inputs(config)])
    storage, design = load_study(config)
    comparison = compare(design.keys.matching_trials(storage.trials()), design, bootstrap=bootstrap)
    if out is not None:
        with writing(out):
            write_text(out, summarize(comparison).to_markdown(storage.name))
    if as_json:
        print_json(comparison.to_dict())
        return
    if out is not None:
        print_line(f"written to {out}")
        return
    summary = summarize(comparison)
    for sentence in summary.sentences:
        console.print(sentence)
    for table in summary.tables:
        console.print(summary_table(table))


@study.command()
def export(
    file: StudyFile,
    out: Annotated[Path, typer.Option(help="File to write: .csv, .tsv, .jsonl or .parquet.")],
    overrides: StudyOverrides = None,
    scale: Scale = None,
    force: ForceFile = False,
) -> None:
    """Write a table with a row for each trial."""
    from ailora.checkpoints.output_file import validate_output_file
    from ailora.cli.tables import print_line
    from ailora.formatting import pluralize
    from ailora.recipes.evaluation.table_file import escape_formulas, validate_output_suffix, write_frame
    from ailora.studies.study import load_study, trial_frame
    from ailora.studies.study_config import load_study_config
    from ailora.studies.study_reader import find_inputs

    config = load_study_config(file, overrides or [], scale=scale)
    out = validate_output_file(out, force=force, reads=[file, *find_inputs(config)])
    validate_output_suffix(out)
    rows = trial_frame(*load_study(config))
    # Users may open .csv and .tsv files in a spreadsheet, which evaluates formulas. Only programs read other formats.
    write_frame(escape_formulas(rows) if out.suffix in (".csv", ".tsv") else rows, out)
    print_line(f"{pluralize(len(rows), 'trial')} written to {out}")
