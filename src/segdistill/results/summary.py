"""The reader of metrics/: one row for each model, the gains over the controls, and the student to ship."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from segdistill.core.errors import UserError
from segdistill.core.files import atomic_file, read_json, write_json
from segdistill.formats.classes import ClassTable, Color, class_key
from segdistill.params.model import Params
from segdistill.results.champion import (
    RULE,
    RULE_WHEN_BUSY,
    Floor,
    ModelFile,
    choose_champion,
    floor_of,
    model_files,
    why_busy,
)
from segdistill.results.gains import GroupCounts, Setting, ValGroups, group_settings
from segdistill.results.row import (
    COLUMNS,
    CONTROL,
    METRICS,
    STUDENT,
    TEACHER,
    Row,
    recipe_key,
    row_key,
    setting_columns,
    setting_key,
)
from segdistill.results.stale import computed_with
from segdistill.scoring.record import LEGEND, UNSEEN, ValRecord


@dataclass(frozen=True)
class Summary:
    """All rows, the teacher first, then the runs in the order of params.yaml."""

    rows: tuple[Row, ...]
    files: tuple[ModelFile, ...]
    settings: tuple[Setting, ...]  # students and controls, repetitions with other seeds put together
    floor: Floor
    busy: str | None  # why the latencies cannot be relied on
    champion: ModelFile | None
    benchmark: dict  # benchmark.json: conditions and networks
    val_groups: ValGroups = ValGroups()
    class_colors: dict[str, Color] = field(default_factory=dict)  # by the keys of class_iou
    learned_from: dict[str, dict] = field(default_factory=dict)  # by kind: the teacher on what students learn from
    params: Params | None = None
    unfinished: tuple[str, ...] = ()  # students that are not trained, exported and timed yet

    @property
    def rule(self) -> str:
        return RULE_WHEN_BUSY if self.busy else RULE

    @property
    def teacher(self) -> Row | None:
        return next((row for row in self.rows if row.role == TEACHER), None)

    @property
    def runs(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.role != TEACHER)

    @property
    def shown(self) -> Row | None:
        """Return the run whose images and mistakes are shown: the one to ship, else the most accurate one."""
        if self.champion is not None:
            return self.run(self.champion.run)
        scored = [row for row in self.runs if row.mean_iou is not None]
        return max(scored, key=lambda row: row.mean_iou or 0.0, default=None)

    @property
    def compared_with(self) -> Row | None:
        """Return the run that `shown` is compared with: a student's control; for a control, the best distilled run."""
        shown = self.shown
        if shown is None:
            return None
        if shown.role == STUDENT:
            return self.run(shown.control) if shown.control else None
        scored = [row for row in self.runs if row.role == STUDENT and row.mean_iou is not None]
        return max(scored, key=lambda row: row.mean_iou or 0.0, default=None)

    def run(self, name: str) -> Row:
        """Return the row of the run `name`."""
        return next(row for row in self.runs if row.run == name)

    def setting_of(self, run: str) -> Setting:
        """Return the setting that the run `run` is a repetition of."""
        return next(one for one in self.settings if run in [row.run for row in one.rows])


def of_rows(
    rows: Sequence[Row],
    benchmark: dict,
    params: Params | None = None,
    *,
    counts: Mapping[str, GroupCounts] | None = None,
    unseen_counts: Mapping[str, GroupCounts] | None = None,
    baseline: float | None = None,
) -> Summary:
    """Return the summary of `rows`: gains, settings over seeds, files, and the champion.

    counts are pixel counts by group of frames, of each run, on val, and unseen_counts on the unseen drives. baseline is
    the mIoU of the most frequent class.
    """
    rows = with_gains(rows)
    floor = floor_of(rows, baseline, params.report.min_mean_iou if params else 0.0)
    busy = why_busy(benchmark)
    champion = choose_champion(rows, floor, busy is not None)
    settings = group_settings(rows, counts, unseen_counts)
    return Summary(rows, model_files(rows), settings, floor, busy, champion, benchmark, params=params)


def summarise(params: Params, metrics: Path, *, check_stale: bool = True, complete: bool = True) -> Summary:
    """Return the summary of the teacher and of every student in `params`.

    With `check_stale`, a row whose settings were changed in params.yaml has those that it was computed with. Without
    `complete`, students may be unfinished: those that were trained have rows, and no champion is chosen.

    Raises:
        UserError: a metrics file is missing, or the benchmark does not know a run.
    """
    benchmark = _read(metrics / "benchmark.json", None if complete else {})
    students = params.students()
    unfinished: tuple[str, ...] = ()
    if not complete:
        timed = benchmark.get("models", {})
        trained, exported = (
            {run for run in students if (metrics / "runs" / run / name).is_file()}
            for name in ("finetune.json", "export.json")
        )
        unfinished = tuple(run for run in students if run not in trained & exported & set(timed))
        students = tuple(run for run in students if run in trained)
    teacher = _teacher_row(params, metrics, benchmark, check_stale)
    rows = [
        teacher,
        *(_run_row(params, metrics, run, benchmark, check_stale, complete=not unfinished) for run in students),
    ]
    for row in rows:
        if not unfinished and row.run not in benchmark["models"]:
            raise UserError(f"metrics/benchmark.json: has no latencies of '{row.run}'; dvc repro benchmark takes them")
    folders = {run: metrics / "runs" / run / "val" for run in students}
    counts, unseen_counts = (
        {run: record.group_counts for run, folder in folders.items() if (record := _record(folder / inside))}
        for inside in ("", UNSEEN)
    )
    # The most frequent class predicted for every pixel: a floor, where more than one class occurs.
    baseline, of_teacher = None, _record(metrics / "val")
    if of_teacher is not None:
        truth_C: np.ndarray = of_teacher.counts_CC.sum(1)
        occurring = np.count_nonzero(truth_C)
        baseline = float(truth_C.max() / truth_C.sum() / occurring) if occurring > 1 else None
    found = of_rows(rows, benchmark, params, counts=counts, unseen_counts=unseen_counts, baseline=baseline)

    colors, legend = {}, metrics / "images" / LEGEND
    if legend.is_file():
        facts = _read(legend)
        try:
            table = ClassTable.of_facts(facts)
        except UserError as error:
            raise UserError(f"{legend}: {error}; dvc repro writes it again") from None
        colors = {class_key(name): color for name, color in zip(table.names, table.colors, strict=True)}
    checked = teacher.files["finished"]
    groups = ValGroups(checked.get("val_groups"), checked.get("val_groups_in_train"), checked.get("unseen_groups", 0))
    learned_from: dict[str, dict] = {}
    for kind in params.teacher_logits.kinds:
        learned_from[kind] = _read(metrics / "teacher_logits" / f"{kind}.json", {})
    return replace(
        found,
        champion=None if unfinished else found.champion,
        unfinished=unfinished,
        class_colors=colors,
        val_groups=groups,
        learned_from=learned_from,
    )


def rows_on_disk(params: Params, metrics: Path) -> tuple[Row, ...]:
    """Return a row for the teacher and for every student of `params` that was distilled, however far it is.

    Values that are not there yet are None.
    """
    benchmark = _read(metrics / "benchmark.json", {})
    rows = [_teacher_row(params, metrics, benchmark, check_stale=True)] if (metrics / "teacher.json").is_file() else []
    for run in params.students():
        if (metrics / "runs" / run / "distill.json").is_file():
            rows.append(_run_row(params, metrics, run, benchmark, check_stale=True, complete=False))
    return with_gains(rows)


def write_summary(summary: Summary, metrics: Path) -> None:
    """Write summary.json, flat values by run as `dvc metrics diff` compares them, and summary.csv, a line per model."""
    champion = summary.champion
    value: dict[str, Any] = {
        "champion": champion and asdict(champion) | {"path": champion.path, "rule": summary.rule},
        "teacher": summary.teacher.columns() if summary.teacher else None,
        "runs": {row.run: row.columns() for row in summary.runs},
    }
    for one in summary.settings:
        if one.seeds > 1:
            value.setdefault("settings", {})[one.name] = {
                "seeds": one.seeds,
                "mean_iou": one.mean_iou,
                "spread": one.spread,
                "gain_over_vanilla": one.gain and one.gain.mean,
                "gain_low": one.gain and one.gain.low,
                "gain_high": one.gain and one.gain.high,
                "val_groups": one.gain and one.gain.groups,
            }
            if one.claim and one.claim.other_recipe:
                value["settings"][one.name]["control_differs"] = one.claim.other_recipe
            if one.unseen_gain:
                value["settings"][one.name] |= {
                    "unseen_gain_over_vanilla": one.unseen_gain.mean,
                    "unseen_gain_low": one.unseen_gain.low,
                    "unseen_gain_high": one.unseen_gain.high,
                    "unseen_groups": one.unseen_gain.groups,
                }
    write_json(metrics / "summary.json", value)
    with atomic_file(metrics / "summary.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        had = {name for row in summary.rows for name in row.columns()}
        writer = csv.DictWriter(stream, [name for name in COLUMNS if name in had], lineterminator="\n")
        writer.writeheader()
        writer.writerows(row.columns() for row in summary.rows)


def with_gains(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Return the rows, each run measured against a control: of its network, recipe and seed where there is one."""
    controls = [row for row in rows if row.role == CONTROL]
    if not controls:
        return tuple(rows)
    found = []
    for row in rows:
        if row.role != TEACHER:
            alike = [control for control in controls if control.arch == row.arch] or controls
            # A seed fixes initial weights and batches, so much of what chance does to a pair of one seed is the same
            # for both. Controls of other seeds are measured against the first one, which shows what chance does.
            if row.role == STUDENT:
                # Where several controls differ in steps or augmentation, only the one that was trained alike tells
                # what the teacher gave.
                alike = [control for control in alike if control.recipe == row.recipe] or alike
            paired = [control for control in alike if control.seed == row.seed and row.role == STUDENT]
            control = (paired or alike)[0]
            row = replace(
                row,
                control=control.run,
                gain_over_vanilla=_difference(row.mean_iou, control.mean_iou),
                unseen_gain_over_vanilla=_difference(row.unseen_mean_iou, control.unseen_mean_iou),
            )
        found.append(row)
    return tuple(found)


def _difference(own: float | None, other: float | None) -> float | None:
    return None if own is None or other is None else own - other


def _teacher_row(params: Params, metrics: Path, benchmark: dict, check_stale: bool) -> Row:
    stale = computed_with(params, metrics, TEACHER) if check_stale else {}
    files = {"finished": _read(metrics / "teacher.json"), "latency": _latencies(benchmark, TEACHER)}
    settings = params.teacher.model_dump(mode="json") | {"seed": params.seed} | stale
    # How a given checkpoint was trained is not known.
    trained = () if settings["checkpoint"] else ("lr", "schedule", "steps", "seed")
    return Row(
        run=TEACHER,
        role=TEACHER,
        arch=files["finished"].get("arch", "") if stale else params.teacher.described,
        label_loss=settings["label_loss"],
        computed_with=stale,
        **{name: settings[name] for name in trained},
        **_measured(files),
    )


def _run_row(params: Params, metrics: Path, run: str, benchmark: dict, check_stale: bool, complete: bool = True) -> Row:
    folder = metrics / "runs" / run
    missing: dict | None = None if complete else {}
    files = {"distill": _read(folder / "distill.json", missing), "finished": _read(folder / "finetune.json", missing)}
    files["export"] = _read(folder / "export.json", missing)
    files["latency"] = _latencies(benchmark, run)
    if not files["export"].get("int8"):
        # Latencies are of a network: another run of it has an int8 file, this one has none.
        for backend in ("onnx_int8", "openvino_int8"):
            files["latency"].pop(backend, None)
    settings, steps = params.distill_settings(run).model_dump(mode="json"), params.finetune_params(run).steps
    stale = computed_with(params, metrics, run) if check_stale else {}
    columns = setting_columns(stale or settings, stale.get("finetune_steps", steps) if stale else steps)
    fingerprint = files["distill"].get("data_fingerprint", "")
    return Row(
        run=run,
        row_key=row_key(params, run, fingerprint),
        setting=None if stale else setting_key(params, run, fingerprint),
        recipe=None if stale else recipe_key(params, run),
        computed_with=stale,
        **columns,
        **_measured(files),
    )


def _measured(files: dict[str, dict]) -> dict:
    values = {one.name: one.value(files) for one in METRICS if one.sources}
    return values | {"class_iou": files["finished"].get("class_iou", {}), "files": files}


def _latencies(benchmark: dict, model: str) -> dict:
    return dict(benchmark.get("networks", {}).get(benchmark.get("models", {}).get(model), {}))


def _read(path: Path, missing: dict | None = None) -> dict:
    try:
        return read_json(path)
    except FileNotFoundError:
        if missing is not None:
            return missing
        raise UserError(f"{path}: no such file; dvc repro writes it") from None
    except UserError as error:
        raise UserError(f"{error}; dvc repro writes it again") from None


def _record(folder: Path) -> ValRecord | None:
    try:
        return ValRecord(folder)
    except FileNotFoundError:
        return None
