"""Regret of `ailora tune` against random search and plain LoRA, by replaying recorded runs.

    python benchmarks/tune_regret.py record sst2 [--shared ../shared] [--scale small] [--seeds 3]
    python benchmarks/tune_regret.py replay sst2 [--scale small] [--repetitions 2000]

`record` trains every policy x roles x learning rate, seed after seed, and writes the evaluations after each seed to
`benchmarks/results/tune_runs/TASK-SCALE.json`. Finished runs are not repeated, and several processes with the same
command share the runs. A rung of `ailora tune` is a prefix of a full run that ends at one of its evaluations, so that
`replay` applies the package's own rule to recorded values exactly; a test compares a replay with a real search.
`replay` writes `benchmarks/results/tune_regret_TASK-SCALE.json`, prints its numbers as a table in Markdown, and writes
the table of all tasks to `docs/howto/choose_settings.md`.

Regret is the largest mean score of any setting minus the mean score of the chosen setting. Both means leave out
the seed that was used for choosing. The unit is a point of the metric, or 0.01 nats of the loss.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from doc_pages import DOCS, replace_between
from machine import RESULTS

from ailora.errors import AiloraError
from ailora.recipes import registry
from ailora.recipes.config.loader import load_config
from ailora.recipes.config.schema import RunConfig
from ailora.recipes.training.run_prefix import RunPrefix
from ailora.recipes.training.step_counts import evaluation_steps
from ailora.studies.running_trial import RunningTrial
from ailora.studies.trial import Condition, Status, Trial, TrialResult, TrialSpec
from ailora.studies.trial_keys import TrialKeys, trial_identity
from ailora.studies.trial_runner import TrialError, run_trial
from ailora.studies.trial_storage import TrialStorage
from ailora.studies.worker import run_until_all_ended
from ailora.tune.candidates import Candidate, RateValues, spread_candidates
from ailora.tune.halving import halve
from ailora.tune.rate_centers import DEFAULT_LORA_RATE
from ailora.tune.rung_plan import RungPlan, ranking_metric, rung_steps
from ailora.tune.search_space import ROLES, SearchSpace
from ailora.tune.tune_request import plain_config

ROOT = Path(__file__).resolve().parents[1]
TITLES = {"sst2": "SST-2, MiniLM", "cola": "CoLA, all-mpnet-base-v2", "e2e": "E2E, small Llama"}
BUDGETS = (2, 5, 10)
SEEDS = (0, 1, 2)
#: Half decades over the range of `tune.learning_rate: auto`.
RATES = tuple(float(f"{DEFAULT_LORA_RATE * 10 ** (number / 2):.3g}") for number in range(-3, 4))
#: Scale -> rows of training and of validation. The 168 runs of `small` take about an hour of a core for each task.
SCALES = {"tiny": (80, 20), "small": (1000, 100)}


def tasks(shared: Path, scale: str) -> dict[str, dict[str, Any]]:
    """Return the configurations of the tasks. `tune` was not developed on CoLA with all-mpnet-base-v2."""
    train, held_out = SCALES[scale]
    training = {"num_train_epochs": 1, "eval_steps": 0.1, "per_device_eval_batch_size": 50, "disable_tqdm": True}
    classification = {"per_device_train_batch_size": 16}
    # Most rows of SST-2 are phrases: 16 tokens hold three quarters of them, and halve the time.
    rows = {"max_train_samples": train, "max_validation_samples": held_out, "max_length": 16}
    sst2, cola, e2e = (shared / "data" / name for name in ("sst2", "cola", "e2e"))
    columns = {"columns": ["source", "label", "mark", "sentence"], "text": ["sentence"]}

    def files(folder: Path, train_file: str, validation_file: str) -> dict[str, str]:
        return {"train": str(folder / train_file), "validation": str(folder / validation_file)}

    return {
        "sst2": {
            "model": "builtin:minilm",
            "metric": "accuracy",
            "data": {**files(sst2, "train.tsv", "dev.tsv"), "text": ["sentence"], **rows},
            "training": training | classification,
        },
        "cola": {
            "model": "~/.cache/ailora-models/mpnet-base",
            "metric": "matthews_correlation",
            "data": {**files(cola, "train.tsv", "val.tsv"), **columns, **rows},
            "training": training | classification | {"bf16": True},
        },
        "e2e": {
            "recipe": "causal_lm",
            "model": str(shared / "lm" / "pico-llama"),
            "data": {
                **files(e2e, "trainset.csv", "devset.csv"),
                "prompt": "{mr} =>",
                "completion": " {ref}",
                "max_train_samples": train // 4,
                "max_validation_samples": held_out // 4,
            },
            "training": training | {"per_device_train_batch_size": 4},
        },
    }


@dataclass(frozen=True)
class Table:
    """Recorded evaluations of full runs.

    Attributes:
        evaluations: Steps after which every run evaluates, ascending.
        larger_is_better: Name of each score -> whether a larger value is better.
        values: (choice, learning rate, seed) -> step -> scores. A failed run has scores up to its last complete rung.
    """

    evaluations: Sequence[int]
    larger_is_better: Mapping[str, bool]
    values: Mapping[tuple[Condition, float, int], Mapping[int, Mapping[str, float]]]

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for _, _, seed in self.values})

    @property
    def rates(self) -> dict[Condition, RateValues]:
        """Rates of each choice, in the order of the search."""
        rates: dict[Condition, set[float]] = {}
        for condition, rate, _ in self.values:
            rates.setdefault(condition, set()).add(rate)
        return {condition: RateValues(tuple(sorted(values))) for condition, values in rates.items()}

    def score(self, choice: tuple[Condition, float], seeds: Iterable[int], name: str) -> float:
        """Return the mean of a final score, negated if smaller is better, or minus infinity if a run failed."""
        finals = [self.values[*choice, seed].get(self.evaluations[-1]) for seed in seeds]
        if any(final is None for final in finals):
            return -math.inf
        sign = 1 if self.larger_is_better[name] else -1
        return sign * math.fsum(final[name] for final in finals if final) / len(finals)

    def to_dict(self) -> dict[str, Any]:
        runs = [
            {
                "policy": c.method,
                "setting": c.values,
                "learning_rate": rate,
                "seed": seed,
                "values": {str(s): v for s, v in values.items()},
            }
            for (c, rate, seed), values in self.values.items()
        ]
        return {"evaluations": list(self.evaluations), "larger_is_better": dict(self.larger_is_better), "runs": runs}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Table:
        values = {
            (Condition.from_values("base", run["policy"], run["setting"]), run["learning_rate"], run["seed"]): {
                int(step): scores for step, scores in run["values"].items()
            }
            for run in data["runs"]
        }
        return cls(data["evaluations"], data["larger_is_better"], values)


def record(config: RunConfig, folder: Path, *, rates: Sequence[float], seeds: Sequence[int]) -> Table:
    """Train all settings with all seeds. Repeated calls, also in parallel, train only the remaining runs."""
    space = SearchSpace(plain_config(config))
    recipe = registry.make_recipe(config)
    evaluations = evaluation_steps(recipe.arguments, len(recipe.datasets["train"]))
    keys = TrialKeys({condition: trial_identity(c) for condition, c in space.configs.items()})
    specs = [TrialSpec(c, rate, seed) for seed in seeds for c in space.conditions for rate in rates]
    folder.mkdir(parents=True, exist_ok=True)
    url, settings = f"sqlite:///{folder / 'runs.db'}", {"retries": 20, "worker_timeout": 60}
    storage = TrialStorage.load_or_none(url, "runs") or TrialStorage.create(url, "runs", settings)

    def run(trial: RunningTrial) -> tuple[TrialResult, float]:
        base = space.configs[trial.spec.condition]
        output = folder / "runs" / trial.key
        training = {**base.training, **trial.spec.training_arguments}
        result = train(base.model_copy(update={"training": training, "output": str(output)}), evaluations)
        shutil.rmtree(output)
        loss = result.metrics["validation"]["loss"]
        described = f"{base.adapter.policy}, {trial.spec.condition.label}, {trial.spec.learning_rate:g}"
        print(f"seed {trial.spec.seed}, {described}: loss {loss:.4f}, {result.seconds:.1f} s", flush=True)
        return result, -loss

    run_until_all_ended(storage, keys, lambda: storage.enqueue({keys.key(spec): spec for spec in specs}), run)
    done = {trial.spec: trial.result for trial in keys.matching_trials(storage.trials())}
    storage.close()
    values = {(s.condition, s.learning_rate, s.seed): _evaluations(done[s]) for s in specs}
    return Table(evaluations, {**dict.fromkeys(config.metrics, True), "loss": False}, values)


def train(config: RunConfig, evaluations: Sequence[int]) -> TrialResult:
    """Train a run in this process up to its last evaluation. A run that diverges is trained to the previous rung."""
    for step in reversed(rung_steps(evaluations)):
        try:
            return run_trial(config, "all", prefix=RunPrefix(step, evaluations[-1]))
        except (AiloraError, TrialError) as error:
            reason = error
    raise TrialError(str(reason))


def _evaluations(result: TrialResult | None) -> dict[int, dict[str, float]]:
    history = result.history if result else ()
    return {int(r["step"]): {k: v for k, v in r.items() if k not in ("step", "epoch")} for r in history}


def replay(table: Table, budget: float, *, seed: int, goal: str, order: Sequence[Condition]) -> Candidate | None:
    """Return the candidate that `ailora tune` would choose with a seed and an order of choices, or None."""
    rates = {condition: table.rates[condition] for condition in order}
    size = len(spread_candidates(rates, len(table.values)))
    plan = RungPlan.within(table.evaluations, budget, max_candidates=size)

    def find_trial(candidate: Candidate, step: int) -> Trial:
        spec = TrialSpec(candidate.condition, candidate.learning_rate, seed, until_step=step)
        scores = table.values[candidate.condition, candidate.learning_rate, seed].get(step)
        if scores is None:
            return Trial(candidate.number, "", spec, Status.FAIL, error="failed")
        return Trial(candidate.number, "", spec, Status.COMPLETE, TrialResult({"validation": scores}))

    rungs = list(zip(plan.steps, plan.counts, strict=True))
    candidates = spread_candidates(rates, plan.counts[0])

    def score(result: TrialResult, step: int) -> float:
        name = ranking_metric(goal, step, plan.steps[-1])
        value = result.metrics["validation"][name]
        return value if table.larger_is_better[name] else -value

    return halve(candidates, rungs, find_trial=find_trial, score=score).winner


def regret(table: Table, chosen: tuple[Condition, float] | None, *, seed: int, name: str) -> float:
    """Return the regret of a setting chosen with a seed, in units of the score. Infinite without a setting."""
    others = [other for other in table.seeds if other != seed] or [seed]
    settings = dict.fromkeys((condition, rate) for condition, rate, _ in table.values)
    best = max(table.score(setting, others, name) for setting in settings)
    return best - table.score(chosen, others, name) if chosen else math.inf


def compare(table: Table, *, goal: str, name: str, repetitions: int) -> dict[str, dict[str, float]]:
    """Return the mean and the 90 % quantile of the regret of each way to choose, over seeds and orders."""
    chance = random.Random(0)
    settings = list(dict.fromkeys((condition, rate) for condition, rate, _ in table.values))
    roles = {condition for condition, _ in settings if condition.method == "lora"}
    plain = [(c, rate) for c, rate in settings if c in roles and c.values[ROLES] == ["query", "value"]]
    regrets: dict[str, list[float]] = {}
    for _ in range(repetitions):
        seed = chance.choice(table.seeds)
        order = chance.sample(list(table.rates), len(table.rates))
        ways: dict[str, tuple[Condition, float] | None] = {}
        for budget in BUDGETS:
            winner = replay(table, budget, seed=seed, goal=goal, order=order)
            ways[f"tune {budget}x"] = (winner.condition, winner.learning_rate) if winner else None
            drawn = chance.sample(settings, min(budget, len(settings)))
            ways[f"random search {budget}x"] = max(drawn, key=lambda s, seed=seed: table.score(s, [seed], goal))
        ways["plain LoRA, default rate"] = min(plain, key=lambda s: abs(math.log(s[1] / DEFAULT_LORA_RATE)))
        ways[f"all {len(settings)} settings"] = max(settings, key=lambda s, seed=seed: table.score(s, [seed], goal))
        for way, chosen in ways.items():
            regrets.setdefault(way, []).append(regret(table, chosen, seed=seed, name=name))
    return {way: _summarize(values) for way, values in regrets.items()}


def _summarize(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(100 * value for value in values)
    return {"mean": math.fsum(ordered) / len(ordered), "quantile_90": ordered[int(0.9 * (len(ordered) - 1))]}


def format_table(regrets: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Format regrets as a table in Markdown: a row for each way to choose, a column for each goal and unit."""
    ways = list(next(iter(regrets.values())))
    cells = [[f"{r[way]['mean']:.2f} ({r[way]['quantile_90']:.2f})" for r in regrets.values()] for way in ways]
    rows = [["choice by", *regrets], ["---"] * (len(regrets) + 1), *([w, *c] for w, c in zip(ways, cells, strict=True))]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def page_table() -> str:
    """Format the recorded regrets of all tasks: a column for each task and goal, in the unit of the goal."""
    columns: dict[str, Mapping[str, Mapping[str, float]]] = {}
    for task, title in TITLES.items():
        file = RESULTS / f"tune_regret_{task}-small.json"
        if not file.exists():
            continue
        for name, regrets in json.loads(file.read_text())["regrets"].items():
            goal, unit = name.split(": ")
            if (unit == "0.01 nats") == (goal == "loss"):
                columns[f"{title}, {unit}"] = regrets
    return format_table(columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["record", "replay"])
    parser.add_argument("task", choices=["sst2", "e2e", "cola"])
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--seeds", type=int, choices=range(1, len(SEEDS) + 1), default=len(SEEDS))
    parser.add_argument("--repetitions", type=int, default=2000)
    arguments = parser.parse_args()
    name = f"{arguments.task}-{arguments.scale}"
    folder = ROOT / "out" / "tune_regret"
    file = RESULTS / "tune_runs" / f"{name}.json"
    if arguments.command == "record":
        base = {"recipe": "classification", "output": str(folder / "base")}
        config = load_config(base | tasks(arguments.shared, arguments.scale)[arguments.task])
        for count in range(1, arguments.seeds + 1):
            table = record(config, folder / name, rates=RATES, seeds=SEEDS[:count])
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(table.to_dict()) + "\n")
        return
    table = Table.from_dict(json.loads(file.read_text()))
    scores = list(table.larger_is_better)
    regrets = {
        f"{goal}: {'0.01 nats' if score == 'loss' else f'points of {score}'}": compare(
            table, goal=goal, name=score, repetitions=arguments.repetitions
        )
        for goal in scores
        for score in scores
    }
    result = {"task": arguments.task, "scale": arguments.scale, "seeds": table.seeds, "regrets": regrets}
    (RESULTS / f"tune_regret_{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(format_table(regrets))
    replace_between(DOCS / "howto" / "choose_settings.md", "regret", Path(__file__).name, page_table())


if __name__ == "__main__":
    main()
