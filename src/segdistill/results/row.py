"""One model of a sweep: its settings and its metrics, each declared once.

A metric is one field of Row, declared by `metric(...)`: the files that hold it, its label, format and meaning, which
value is better, and the tables that show it. The reader of metrics/, summary.csv, the report, the terminal, `compare`
and MLflow all follow the declarations (METRICS), so a new metric is one edit in this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from segdistill.core.provenance import settings_hash
from segdistill.params.archs import network_name
from segdistill.params.model import Params, Section

TEACHER, CONTROL, STUDENT = "teacher", "control", "student"
MISSING, MINUS = "–", "\N{MINUS SIGN}"

# The tables that show a metric: the first and the folded one of the report, the terminal's and that of `compare`.
RUNS, MORE, TERMINAL, COMPARE = "runs", "more", "terminal", "compare"
EVERYWHERE = (RUNS, TERMINAL, COMPARE)


@dataclass(frozen=True)
class Metric:
    """How a field of Row is read and shown. A field without sources is a setting, or is worked out from other rows."""

    label: str
    form: str  # a format specification; empty for texts
    meaning: str
    sources: tuple[str, ...] = ()  # paths as "export.int8.mean_iou"; the first that holds a value counts
    per: float = 1.0  # what the stored value is divided by
    times: float = 1.0  # what the value is multiplied by where it is shown
    better: Callable | None = None  # max or min; None where neither is better
    shown: tuple[str, ...] = EVERYWHERE
    optional: bool = False  # tables and files leave it out where no model has it
    name: str = ""  # the field; filled in by METRICS

    def value(self, files: Mapping[str, Any]) -> Any:
        """Return the value that the metrics files of a model hold; None where none does."""
        for source in self.sources:
            found: Any = files
            for key in source.split("."):
                found = found.get(key) if isinstance(found, Mapping) else None
            if found is not None:
                return found / self.per if self.per != 1.0 else found
        return None

    def text(self, value: Any) -> str:
        """Return `value` as it is shown."""
        if value is None:
            return MISSING
        if not self.form:
            return str(value)
        return format(value * self.times if self.times != 1.0 else value, self.form).replace("-", MINUS)


def metric(label: str, form: str, meaning: str, *sources: str, **other: Any) -> Any:
    """Declare a field of Row; see Metric."""
    return field(default=None, metadata={"metric": Metric(label, form, meaning, sources, **other)})


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model. Scores are on val, as fractions; MB are 10^6 bytes; what does not apply or is undefined is None.

    The sources name the metrics files of a model: `distill` (distill.json), `finished` (finetune.json, teacher.json for
    the teacher), `export` (export.json) and `latency` (its network in benchmark.json). Latencies are per image, end to
    end: uint8 image in, class map out. Models of one network share them.
    """

    run: str
    role: str  # teacher, control (a run without a teacher) or student
    arch: str = metric("Network", "", "architecture", shown=(RUNS,))
    alpha: float | None = metric(
        "α", "g", "weight of the distillation loss; the label loss has 1 − α", shown=(RUNS, TERMINAL)
    )
    label_weight: float | None = metric(
        "Label weight",
        "g",
        "of the label loss, where a run has both weights in place of α",
        optional=True,
        shown=(RUNS, TERMINAL),
    )
    distill_weight: float | None = metric(
        "Distill weight", "g", "of the distillation loss, likewise", optional=True, shown=(RUNS, TERMINAL)
    )
    feature_weight: float | None = metric(
        "Feature weight", "g", "of the feature loss, in the first steps", optional=True, shown=(RUNS, TERMINAL)
    )
    lr: float | None = metric("lr", "g", "learning rate", shown=(RUNS, TERMINAL))
    temperature: float | None = metric("T", "g", "temperature of the distillation loss", shown=(MORE,))
    method: str | None = metric("Method", "", "distillation loss", shown=(MORE,))
    teacher: str | None = metric("Learns from", "", "teacher logits: views, frame or online", shown=(RUNS,))
    label_loss: str | None = metric(
        "Label loss", "", "what it is trained by; only the mean loss of focal is of another kind", shown=(MORE,)
    )
    schedule: str | None = metric("Schedule", "", "learning rate over the first steps", shown=(MORE,))
    steps: int | None = metric("Steps", ",d", "first steps", shown=(MORE,))
    finetune_steps: int | None = metric("Finetune", ",d", "further steps", shown=(MORE,))
    seed: int | None = metric("Seed", "d", "of initial weights and batches", shown=(MORE,))
    parameters: int | None = metric(
        "Parameters", ",d", "weights of the network", "finished.parameters", better=min, shown=(MORE, COMPARE)
    )
    distilled_mean_iou: float | None = metric(
        "mIoU distilled", ".2%", "val mIoU after the first steps", "distill.mean_iou", better=max, shown=(RUNS, COMPARE)
    )
    mean_loss: float | None = metric(
        "Mean loss",
        ".4f",
        "on val: cross entropy, or focal loss where that is trained by",
        "finished.mean_loss",
        shown=(MORE,),
    )
    overall_acc: float | None = metric(
        "Overall acc",
        ".2%",
        "share of val pixels that are right",
        "finished.overall_acc",
        better=max,
        shown=(MORE, COMPARE),
    )
    mean_acc: float | None = metric(
        "Mean acc", ".2%", "mean recall of the classes", "finished.mean_acc", better=max, shown=(MORE,)
    )
    freqw_acc: float | None = metric(
        "FreqW acc", ".2%", "IoU weighted by class frequency", "finished.freqw_acc", better=max, shown=(MORE,)
    )
    mean_iou: float | None = metric(
        "mIoU", ".2%", "val mIoU of the finished model, in PyTorch", "finished.mean_iou", better=max
    )
    teacher_agreement: float | None = metric(
        "Agrees",
        ".1%",
        "share of val pixels on which it predicts the teacher's class",
        "finished.teacher_agreement",
        "export.torch.teacher_agreement",  # a control may be trained before there is a teacher
    )
    control: str | None = None  # the run that gain_over_vanilla is measured against
    gain_over_vanilla: float | None = metric(
        "Δ control",
        "+.2f",
        "points of mIoU above the control, both in PyTorch",
        times=100,
        better=max,
        shown=(RUNS, TERMINAL),
    )
    unseen_mean_iou: float | None = metric(
        "mIoU unseen",
        ".2%",
        "mIoU on the drives that are in no other split, in PyTorch",
        "finished.unseen.mean_iou",
        better=max,
        optional=True,
    )
    unseen_gain_over_vanilla: float | None = metric(
        "Δ unseen",
        "+.2f",
        "points of mIoU above the control on the unseen drives, both in PyTorch",
        times=100,
        better=max,
        shown=(RUNS, TERMINAL),
        optional=True,
    )
    float32_mean_iou: float | None = metric(
        "mIoU float32",
        ".2%",
        "val mIoU of the float32 ONNX file",
        "export.float32.mean_iou",
        better=max,
        shown=(RUNS, COMPARE),
    )
    int8_mean_iou: float | None = metric(
        "mIoU int8",
        ".2%",
        "val mIoU of the int8 ONNX file",
        "export.int8.mean_iou",
        better=max,
    )
    int8_unseen_mean_iou: float | None = metric(
        "mIoU int8 unseen",
        ".2%",
        "mIoU of the int8 ONNX file on the drives that are in no other split",
        "export.int8.unseen.mean_iou",
        better=max,
        optional=True,
    )
    float32_mb: float | None = metric(
        "MB float32",
        ".2f",
        "size of the float32 ONNX file",
        "export.float32.bytes",
        per=1e6,
        better=min,
        shown=(RUNS, COMPARE),
    )
    int8_mb: float | None = metric(
        "MB int8",
        ".2f",
        "size of the int8 ONNX file",
        "export.int8.bytes",
        per=1e6,
        better=min,
    )
    torch_p50_ms: float | None = metric(
        "ms torch", ".2f", "p50 end to end, eager PyTorch", "latency.torch.end_to_end_p50_ms", better=min, shown=(MORE,)
    )
    torch_best_p50_ms: float | None = metric(
        "ms torch best",
        ".2f",
        "p50 end to end, the fastest form of PyTorch",
        "latency.torch_best.end_to_end_p50_ms",
        better=min,
        shown=(MORE,),
    )
    onnx_float32_p50_ms: float | None = metric(
        "ms float32",
        ".2f",
        "p50 end to end, float32 ONNX in onnxruntime",
        "latency.onnx_float32.end_to_end_p50_ms",
        better=min,
    )
    onnx_int8_p50_ms: float | None = metric(
        "ms int8",
        ".2f",
        "p50 end to end, int8 ONNX in onnxruntime",
        "latency.onnx_int8.end_to_end_p50_ms",
        better=min,
    )
    openvino_float32_p50_ms: float | None = metric(
        "ms OpenVINO",
        ".2f",
        "p50 end to end, float32 ONNX in OpenVINO",
        "latency.openvino_float32.end_to_end_p50_ms",
        better=min,
        shown=(MORE, COMPARE),
        optional=True,
    )
    openvino_bfloat16_p50_ms: float | None = metric(
        "ms OpenVINO bf16",
        ".2f",
        "p50 end to end, float32 ONNX in OpenVINO, which computes in bfloat16",
        "latency.openvino_bfloat16.end_to_end_p50_ms",
        better=min,
        optional=True,
    )
    openvino_int8_p50_ms: float | None = metric(
        "ms OpenVINO int8",
        ".2f",
        "p50 end to end, int8 ONNX in OpenVINO",
        "latency.openvino_int8.end_to_end_p50_ms",
        better=min,
        optional=True,
    )
    s_per_image: float | None = metric(
        "s / image",
        ".4f",
        "mean, PyTorch",
        "latency.torch.end_to_end_mean_ms",
        per=1000,
        better=min,
        shown=(MORE,),
    )
    torch_total_ms: float | None = metric(
        "ms total torch",
        ",.0f",
        "all frames of the benchmark, PyTorch",
        "latency.torch.end_to_end_total_ms",
        better=min,
        shown=(MORE,),
    )
    onnx_total_ms: float | None = metric(
        "ms total ONNX",
        ",.0f",
        "all frames of the benchmark, float32 ONNX",
        "latency.onnx_float32.end_to_end_total_ms",
        better=min,
        shown=(MORE,),
    )
    row_key: str | None = None
    # Below are no columns of summary.csv.
    setting: str | None = None  # a hash of all settings but the seed: equal ones are repetitions of one experiment
    recipe: str | None = None  # a hash of what a control may have as well; see recipe_key
    class_iou: dict[str, float | None] = field(default_factory=dict)
    files: dict[str, dict] = field(default_factory=dict, repr=False, compare=False)  # the metrics files, by source
    # Settings that the metrics were computed with, where params.yaml says others by now; empty where it does not.
    computed_with: dict[str, object] = field(default_factory=dict)

    @property
    def is_stale(self) -> bool:
        return bool(self.computed_with)

    def timed(self, precision: str = "float32") -> tuple[str, float] | None:
        """Return (engine, p50 ms) of the whole model, in the form nearest to `precision`; None without any.

        PyTorch comes last: of a teacher of several parts nothing else is measured.
        """
        # A teacher whose parameters are not known is partly ONNX.
        whole = "PyTorch" if self.parameters else "PyTorch and ONNX"
        measured = [("int8 ONNX", self.onnx_int8_p50_ms)] if precision == "int8" else []
        measured += [("float32 ONNX", self.onnx_float32_p50_ms), (whole, self.torch_p50_ms)]
        return next(((engine, p50_ms) for engine, p50_ms in measured if p50_ms is not None), None)

    def columns(self) -> dict[str, Any]:
        """Return the line of summary.csv, in the order of COLUMNS, without optional metrics that it does not have."""
        values = {name: getattr(self, name) for name in COLUMNS}
        return {name: value for name, value in values.items() if value is not None or name not in OPTIONAL}

    @property
    def is_finished(self) -> bool:
        """Return whether the model was scored after its last step."""
        return bool(self.files.get("finished"))


METRICS: tuple[Metric, ...] = tuple(
    replace(column.metadata["metric"], name=column.name) for column in fields(Row) if "metric" in column.metadata
)
_NO_COLUMNS = ("setting", "recipe", "class_iou", "files", "computed_with")
COLUMNS = tuple(column.name for column in fields(Row) if column.name not in _NO_COLUMNS)
OPTIONAL = tuple(one.name for one in METRICS if one.optional)
GAIN, UNSEEN_GAIN = "gain_over_vanilla", "unseen_gain_over_vanilla"
SETTINGS = tuple(one.name for one in METRICS if not one.sources and one.name not in (GAIN, UNSEEN_GAIN))


def shown_in(table: str, rows: Iterable[Row]) -> tuple[Metric, ...]:
    """Return the declared settings and metrics that a table of `rows` shows, in their order."""
    had = {name for row in rows for name in row.columns()}
    return tuple(one for one in METRICS if table in one.shown and one.name in had)


def setting_columns(settings: Mapping[str, Any], finetune_steps: int) -> dict[str, Any]:
    """Return role and settings of a run as the fields of its Row, from settings named as in params.yaml."""
    is_taught = settings["teacher"] != "none"
    only_taught = ("temperature", "method", "teacher")
    own = ("arch", "finetune_steps", "feature_weight", *only_taught)
    columns = {name: settings[name] for name in SETTINGS if name not in own}
    columns |= {name: settings[name] if is_taught else None for name in only_taught}
    columns["feature_weight"] = settings.get("feature_weight") or None  # runs without it have no such column
    role = STUDENT if is_taught else CONTROL
    arch = network_name(settings["student"], settings.get("backbone"))
    return columns | {"role": role, "arch": arch, "finetune_steps": finetune_steps}


def row_key(params: Params, run: str, data_fingerprint: str) -> str:
    """Return a hash of everything that `run` was computed from: equal keys are the same experiment."""
    computed_from = _computed_from(params, run, data_fingerprint)
    if params.seed_of(run) != params.seed:  # the global seed draws the views and trains the teacher all the same
        computed_from.append({"global seed": params.seed})
    return settings_hash(run, *computed_from)


def setting_key(params: Params, run: str, data_fingerprint: str) -> str:
    """Return a hash of everything that `run` was computed from but its name and seed."""
    settings, *others = _computed_from(params, run, data_fingerprint)
    return settings_hash({name: value for name, value in settings.items() if name != "seed"}, *others)


def recipe_key(params: Params, run: str) -> str:
    """Return a hash of how `run` is trained, without what the teacher adds: a student and its control have one."""
    taught = {"seed", "teacher", "alpha", "label_weight", "distill_weight", "feature_weight"}
    taught |= {"method", "temperature", "kl_resolution", "distill_where"}
    # How often a training is looked at changes no weight: a trial of `search` evaluates where its control does not.
    observed = {"log_every_steps", "evaluate_every_steps", "checkpoint_every_steps"}
    sections = params.distill_settings(run), params.finetune_settings(run)
    return settings_hash(*(section.model_dump(mode="json", exclude=taught | observed) for section in sections))


def _computed_from(params: Params, run: str, data_fingerprint: str) -> list:
    settings = params.distill_settings(run)
    computed_from: list[Section] = [settings, params.finetune_params(run), params.export_params(run)]
    if settings.teacher != "none":
        computed_from += [params.teacher, params.teacher_logits]
    # Without defaults, so that a key that a later version adds changes no row.
    facts: list = [section.model_dump(mode="json", exclude_defaults=True) for section in computed_from]
    if settings.teacher == "none":  # a control draws its crops from the same views
        facts.append(params.teacher_logits.model_dump(mode="json", include={"views", "stride"}))
    return [*facts, data_fingerprint]
