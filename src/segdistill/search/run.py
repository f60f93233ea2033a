"""The search: trials side by side, each a run of params.yaml that DVC runs, scored on the holdout.

A trial is stopped only between its first and its further steps. params.yaml keeps the trials that finished: a pruned or
failed one is removed again, as `dvc repro` would train it to its end.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import filelock
from rich.console import Console
from rich.table import Table
from rich.text import Text

from segdistill.core.errors import UserError, printable
from segdistill.core.provenance import settings_hash
from segdistill.core.yaml_file import read_mapping
from segdistill.formats.curve import read_curve
from segdistill.params.model import Params
from segdistill.params.read import MAX_RUN_NAME, RUN_NAME, load_params
from segdistill.params.stages import OF_A_RUN, check_named_in_dvc, shared_stages
from segdistill.paths import PARAMS, run_metrics
from segdistill.search.params_file import add_run, check_lines, remove_run
from segdistill.search.space import check_space, parse_space, trial_entry
from segdistill.search.study import FOLDER, OpenTrial, Study, storage_errors
from segdistill.sweep.local import Slots
from segdistill.sweep.plan import LOGS, log_of, print_end
from segdistill.sweep.processes import POLL_S, DvcProcess, leave_if_stopped, run_alone, wait_for_killed
from segdistill.training.checkpoint import stop_requests

# What a student depends on besides its own entry: with other values scores do not compare.
SHARED_SECTIONS = ("seed", "data", "teacher", "teacher_logits", "distill", "finetune")
MAX_FIRST_FAILURES = 3  # more trials than that, and none that ended well, would fail as well
SHOWN = 10  # trials of the table
MIN_WIDTH = 110  # of the table, where there is no terminal


@dataclass(frozen=True)
class Options:
    """What the command line says: see `segdistill search --help`."""

    trials: int
    base: str | None
    jobs: int
    storage: str
    name: str
    prune: bool


def search(arguments: list[str], options: Options) -> None:
    """Run trials until the study has `options.trials`, and print the best of them.

    Raises:
        UserError: arguments or params that are not allowed, a shared stage that failed, or trials that all failed.
        SystemExit: a signal stopped the search, and its trainings have saved their state.
    """
    space = parse_space(arguments)
    raw, params = read_mapping(PARAMS, "sections", "take one with: cp profiles/tiny.yaml params.yaml"), load_params()
    check_named_in_dvc(params)
    check_lines()
    base, name = _base_of(params, options.base), options.name
    if not RUN_NAME.fullmatch(name) or len(name) > MAX_RUN_NAME - 10:
        raise UserError(
            f"--name: found {name!r}; allowed are lower-case letters, digits and single dashes between them"
        )
    check_space(raw, base, f"{name}-000", space)
    facts = {
        "base": base,
        "its values": json.dumps(raw["runs"][base], sort_keys=True),
        "searched": " ".join(sorted(f"{key}={one}" for key, one in space.items())),
        f"hash of {', '.join(SHARED_SECTIONS)}": settings_hash(
            params.model_dump(mode="json", include=set(SHARED_SECTIONS))
        ),
    }
    with storage_errors(options.storage):
        study = Study(options.storage, name, space, facts, params.seed)
        _search(study, raw, params, base, options)


def _search(study: Study, raw: dict, params: Params, base: str, options: Options) -> None:
    name = study.name
    unknown = sorted(run for run in set(params.runs) - study.known_runs() if re.fullmatch(rf"{name}-\d{{3,}}", run))
    if unknown:
        raise UserError(f"runs: found {', '.join(unknown)}, of another search; remove them, or take another --name")

    LOGS.mkdir(parents=True, exist_ok=True)
    with stop_requests() as signals:
        _run_shared_stages(params, signals)
        slots = Slots(params, options.jobs)
        print(f"search {name}: {_described(study.space)}, from the run {base}; {slots.described}", flush=True)
        trials = _Search(study, raw, base, options, slots, signals)
        trials.run()
        leave_if_stopped(signals)
    _print_results(study, params)
    counts, why = study.counts(), ""
    if trials.failed and not study.results():
        logs = "\n".join(f"  - {run}: {log_of(run)}" for run in trials.failed)
        why = f"the logs of those that failed:\n{logs}"
    elif counts["failed"] and not (counts["finished"] or counts["running"]):
        # By earlier searches: this one had no trial left to run.
        why = (
            f"the {counts['failed']} that failed count and are not tried again: give a larger --trials, or another "
            "--name"
        )
    if why:
        raise UserError(f"no trial finished; {why}")


def _base_of(params: Params, given: str | None) -> str:
    """Return the run that trials are made of: the given one, else the first that has a teacher.

    Raises:
        UserError: there is no such run.
    """
    taught = [name for name, run in params.runs.items() if run.teacher != "none"]
    if given is None and not taught:
        raise UserError("runs: no run has a teacher; name the run to search from by --base")
    if given is not None and given not in params.runs:
        raise UserError(f"--base: found {given!r}; allowed are the runs of params.yaml: {', '.join(params.runs)}")
    return taught[0] if given is None else given


def _run_shared_stages(params: Params, signals: list[int]) -> None:
    """Run what all runs share; searches that start at once do it one after the other, and only the first has work."""
    lock = filelock.FileLock(FOLDER / "shared.lock")
    while not lock.is_locked:
        leave_if_stopped(signals)
        with contextlib.suppress(filelock.Timeout):
            lock.acquire(timeout=1)
    try:
        wait_for_killed()
        command = ["--wait-for-lock", "repro", *shared_stages(params)]
        run_alone(command, "a stage that all runs share failed", signals)
    finally:
        lock.release()


class _StoppedError(Exception):
    """A signal stopped a trial, whose trainings have saved their state."""


class _Search:
    """Trials of one process, as many at a time as there are slots, each `base` of `raw` with other values."""

    def __init__(self, study: Study, raw: dict, base: str, options: Options, slots: Slots, signals: list[int]) -> None:
        self.study, self.raw, self.base = study, raw, base
        self.options, self.slots, self.signals = options, slots, signals
        self.failed: list[str] = []

    def run(self) -> None:
        """Run trials until there are enough, none is likely to finish, or a signal comes."""
        running: dict[int, Iterator[None]] = {}
        are_enough = False
        while running or not (are_enough or self.signals):
            for slot in sorted(set(range(self.slots.count)) - running.keys()):
                all_fail = len(self.failed) >= MAX_FIRST_FAILURES and not self.study.counts()["finished"]
                are_enough = are_enough or all_fail
                if are_enough or self.signals:
                    break
                if (trial := self.study.next_trial(self.options.trials)) is None:
                    are_enough = True
                else:
                    running[slot] = self._run_trial(trial, self.slots.environment(slot))
            for slot, trial_steps in list(running.items()):
                if next(trial_steps, "ended") == "ended":
                    del running[slot]
            time.sleep(POLL_S)

    def _run_trial(self, trial: OpenTrial, environment: dict[str, str]) -> Iterator[None]:
        """Run one trial and tell the study how it ended; yield while DVC works."""
        run, started_s = trial.run, time.monotonic()
        log_of(run).write_text("", encoding="utf-8")
        print(f"{'started' if trial.is_new else 'continued'} {run}: {_described(trial.values)}", flush=True)
        is_added = False
        try:
            entry, params = trial_entry(self.raw, self.base, run, trial.values)
            add_run(run, entry)
            is_added = True
            distill, finetune, export = (f"{stage}@{run}" for stage in OF_A_RUN)
            yield from self._repro(run, [distill], environment)
            score = _holdout_mean_iou(run, "distill", params.distill_settings(run).steps)
            is_below_median, further_steps = trial.report(score), params.finetune_settings(run).steps
            if is_below_median and further_steps and self.options.prune:
                remove_run(run)
                trial.prune()
                self._print_end(run, "pruned", started_s, f"{score:.2%} before finetuning, below the median")
                return
            yield from self._repro(run, [finetune, export], environment)
            if further_steps:
                score = _holdout_mean_iou(run, "finetune", further_steps)
            trial.finish(score)
            self._print_end(run, "finished", started_s, f"holdout mIoU {score:.2%}")
        except _StoppedError:
            trial.leave()
        except UserError as error:
            if is_added:  # else a run of this name is the user's
                remove_run(run)
            trial.fail()
            self.failed.append(run)
            with log_of(run).open("a", encoding="utf-8") as output:
                output.write(f"error: {' '.join(str(error).split())}\n")
            print_end(run, f"after {time.monotonic() - started_s:.0f} s", has_failed=True)

    def _repro(self, run: str, stages: list[str], environment: dict[str, str]) -> Iterator[None]:
        """Run stages of a trial, those that changed; yield until they end."""
        if self.signals:
            raise _StoppedError
        with log_of(run).open("a", encoding="utf-8") as output:
            child = DvcProcess(["--wait-for-lock", "repro", "--single-item", *stages], environment, output)
        while child.exit_code is None:
            child.pass_on(self.signals)
            yield
        if child.exit_code and self.signals:
            raise _StoppedError
        if child.exit_code:
            raise UserError(f"{' or '.join(stages)} failed")

    def _print_end(self, run: str, ended: str, started_s: float, how: str) -> None:
        counts, took_s = self.study.counts(), time.monotonic() - started_s
        done = sum(counts.values()) - counts["running"]
        print(f"{ended} {run} after {took_s:.0f} s ({done} of {self.options.trials}): {how}", flush=True)


def _holdout_mean_iou(run: str, phase: str, steps: int) -> float:
    """Return the holdout mIoU of a run after the last step of a phase.

    Raises:
        UserError: its curve does not have it.
    """
    path = run_metrics(run) / f"{phase}_curve.csv"
    last = next(reversed(read_curve(path)), {"step": 0, "holdout_mean_iou": None})
    if last["step"] != steps or last["holdout_mean_iou"] is None:
        raise UserError(f"{path}: no holdout mIoU after step {steps}, so the trial has no score")
    return last["holdout_mean_iou"]


def _described(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_shown(value)}" for key, value in values.items())


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))


def _print_results(study: Study, params: Params) -> None:
    counts, results = study.counts(), study.results()
    counted = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    print(f"search {study.name}: {sum(counts.values())} trials ({counted})")
    if not results:
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    heads = ["run", "holdout mIoU", "before finetuning", *study.space]
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left")
    for one in results[:SHOWN]:
        before = "" if one.distilled_score is None else f"{one.distilled_score:.2%}"
        cells = [one.run, f"{one.score:.2%}", before, *(_shown(one.values[key]) for key in study.space)]
        table.add_row(*map(Text, cells))
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, MIN_WIDTH)
    console.print()
    console.print(table)
    repeated = f", and trains each once more with the seeds {list(params.seeds)}" if params.seeds else ""
    print(
        f"\nThe finished trials are runs of {PARAMS}; delete the lines of those that you do not want.\n"
        f"dvc repro benchmarks and reports the rest{repeated}.\n"
        "The best of many looks better on the holdout than it is, because the holdout chose it. "
        "Judge it by its val mIoU in the report, over several seeds."
    )
