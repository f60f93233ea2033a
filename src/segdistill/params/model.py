"""params.yaml as frozen, typed models: every key, its unit and what is allowed.

This is the one description of the parameters; `params.read` reads the file into it and words the errors.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model
from pydantic_core import PydanticCustomError

from segdistill.params.archs import BACKBONE_NAME, MIN_PX, arch_names, nearest, network_name, takes_backbone

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Scale = Annotated[float, Field(ge=0.1, le=10)]
Temperature = Annotated[float, Field(gt=0, le=10_000)]  # above, float32 has no digits left for the KL
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
SizePx = tuple[Count, Count]
Triple = tuple[Finite, Finite, Finite]
OutputStride = Literal[8, 16]
Schedule = Literal["constant", "step", "poly"]
TeacherKind = Literal["views", "frame", "online"]


def known_arch(name: str) -> str:
    """Return `name` where a network has that name; the rule of the fields that name one."""
    if name not in (names := arch_names()):
        raise PydanticCustomError("arch", f"allowed: {', '.join(names)}{nearest(name, names)}")
    return name


Arch = Annotated[str, AfterValidator(known_arch)]
Backbone = Annotated[str, Field(pattern=f"^{BACKBONE_NAME.pattern}$")]


class Section(BaseModel):
    """A section of params.yaml: immutable, without undeclared keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def section_of(annotation: object) -> type[Section] | None:
    """Return the section that a field of this annotation holds or may hold, None where it holds a value."""
    parts = (annotation, *get_args(annotation))
    return next((part for part in parts if isinstance(part, type) and issubclass(part, Section)), None)


class SyntheticParams(Section):
    train_frames: Count = Field(description="frames of the train split")
    val_frames: Count = Field(description="frames of the val split")


class DataParams(Section):
    source: Literal["synthetic", "cityscapes", "folder"] = Field(
        description="the built-in city, a Cityscapes folder or zips, or a folder of your own images"
    )
    root: str = Field(
        description="cityscapes: folder with leftImg8bit/ and gtFine/, or with the two official zips; "
        "folder: one with classes.yaml (own-data.md). Folders inside it may not be links"
    )
    size_px: SizePx | None = Field(description="[height, width] to resize to; null keeps the size of the files")
    holdout_fraction: Fraction = Field(description="share of train frames held out for choices")
    holdout_by: Literal["groups", "frames"] = Field(
        default="groups",
        description="groups: whole cities or drives are held out; frames: the last frames of one, which resemble those "
        "that are trained on, for data of so few groups that none can be spared",
    )
    unlabelled: str | None = Field(
        default=None,
        description="folder inside root, of JPEG and PNG images without labels: further train frames for students that "
        "have a teacher",
    )
    unseen_groups: tuple[str, ...] = Field(
        default=(),
        description="cities or drives, by name, that are taken out of train, holdout and val, and scored like val; "
        "in quotes where YAML reads a number, as '0016e5'",
    )
    synthetic: SyntheticParams = Field(description="size of the built-in city, used when source is synthetic")


class ComputeParams(Section):
    device: Literal["auto", "cpu", "cuda"] = Field(description="auto takes CUDA where there is one")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        description="of the forward pass; auto takes bfloat16 where the processor computes in it"
    )
    threads: CountOrZero = Field(
        description="CPU threads of a training step; 0 takes all cores, in a segdistill sweep its share"
    )
    devices: Count = Field(
        default=1,
        description="GPUs of this machine that share each training, evaluation and the teacher's logits (devices.md); "
        "with device cpu, processes. Another number reruns nothing",
    )


class TrainingParams(Section):
    """The settings of any training; the sections of teacher and students share them."""

    output_stride: OutputStride = Field(description="input pixels per feature pixel at the end of the backbone")
    backbone: Backbone | None = Field(
        default=None, description="model of timm under the head of a network named *_timm; null for all others"
    )
    init: str = Field(
        description="random, imagenet (weights of the backbone: those of tf_efficientnet_lite0, 1 and 2 are installed, "
        "torchvision's and timm's others are downloaded), or a weights file, in checkpoints/ for the teacher, in "
        "initial_weights/ for students"
    )
    steps: Count = Field(description="optimizer steps")
    batch_size: Annotated[int, Field(ge=2)] = Field(description="crops per step; batch norm needs at least 2")
    schedule: Schedule = Field(description="learning rate over the steps")
    decay_every_steps: Count = Field(description="step schedule: steps between two decays")
    gamma: Positive = Field(description="step schedule: factor of each decay")
    poly_power: Positive = Field(description="poly schedule: exponent")
    momentum: Fraction = Field(description="of SGD; AdamW's averages have 0.9 and 0.999")
    weight_decay: NotNegative = Field(description="of the optimizer; AdamW's is apart from the gradient")
    backbone_lr_factor: Positive = Field(description="the backbone learns at lr times this")
    label_loss: Literal["cross_entropy", "focal", "ohem"] = Field(
        description="mean over valid pixels; ohem is the cross entropy of the hard ones"
    )
    focal_gamma: NotNegative = Field(description="focusing exponent of the focal loss")
    scale_range: tuple[Scale, Scale] = Field(
        default=(1.0, 1.0),
        description="[smallest, largest] scale of a crop, drawn uniformly: at scale s a window of crop_px / s pixels, "
        "resized to crop_px; from 0.1 to 10, and from the smallest scale that fits into the frame",
    )
    flip_probability: Fraction = Field(description="of a horizontal flip")
    jitter: Fraction = Field(description="brightness, contrast and saturation vary by a factor in 1 +- this")
    mix: Literal["none", "cutmix", "classmix"] = Field(
        default="none",
        description="paste a part of another crop of the batch into a crop, its label and its teacher logits: a "
        "rectangle, or the pixels of half of the classes",
    )
    mix_probability: Fraction = Field(default=0.5, description="of a crop to get a part of another, by mix")
    log_every_steps: Count = Field(description="steps between two points of the curves")
    evaluate_every_steps: CountOrZero = Field(description="steps between two mIoU points on the holdout; 0 is never")
    checkpoint_every_steps: Count = Field(description="steps between two resumable checkpoints")
    compile: bool = Field(
        default=False,
        description="run the steps through torch's compiler (a C++ compiler on a CPU, Triton on CUDA), which takes a "
        "minute or two the first time; measure whether steps get faster",
    )

    # New keys have defaults, with which a training is what it was before them.
    ohem_threshold: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.7, description="ohem: pixels whose class has at most this probability are hard"
    )
    ohem_min_share: Fraction = Field(
        default=0.0625, description="ohem: at least this share of the pixels of a batch counts, the hardest"
    )
    class_weights: Literal["none", "inverse_log"] = Field(
        default="none",
        description="of the label loss, a weighted mean then: inverse_log is 1 / ln(1.02 + share of the train pixels)",
    )
    warmup_steps: CountOrZero = Field(
        default=0, description="the learning rate rises from lr / this to the schedule's over so many first steps"
    )
    optimizer: Literal["sgd", "adamw"] = Field(default="sgd", description="SGD with momentum, or AdamW")
    decay_norm_and_bias: bool = Field(
        default=True, description="false: weight decay leaves out batch norm and biases (parameters of one dimension)"
    )
    ema_decay: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = Field(
        default=0.0,
        description="of the moving average of weights and batch norm statistics, which is then scored and shipped; "
        "0 turns it off",
    )


class TrainingSettings(TrainingParams):
    """One training, fully resolved: what the training loop reads."""

    lr: Positive = Field(description="learning rate")
    crop_px: SizePx = Field(description=f"[height, width] of the training crops, from {MIN_PX}")
    seed: CountOrZero = Field(description="of initial weights and batches")


class TeacherParams(TrainingParams):
    arch: Arch = Field(description="network of the teacher")
    checkpoint: str | tuple[str, ...] | None = Field(
        description="weights (.pth, .pt, .safetensors) or an ONNX file, or a list of them, whose predictions are "
        "averaged; null trains the teacher"
    )
    flip: bool = Field(description="average the predictions with those on the mirrored image")
    scales: Annotated[tuple[Positive, ...], Field(min_length=1)] = Field(
        description="average the predictions on the image at these scales"
    )
    onnx_mean: Triple = Field(
        description="an ONNX file of floats is fed (RGB in 0..1 - mean) / std; one of bytes, bytes"
    )
    onnx_std: tuple[Positive, Positive, Positive] = Field(description="see onnx_mean")
    min_mean_iou: Fraction = Field(description="the pipeline stops when the teacher's val mIoU is lower")
    cross_fit: Literal[False] | Annotated[int, Field(ge=2)] = Field(
        default=False,
        description="2 or more folds of train frames, by city or recording: for each, one more teacher is trained on "
        "the other folds, and gives the logits of this one; false takes those of the teacher that saw all frames",
    )
    lr: Positive = Field(description="learning rate")
    crop_px: SizePx = Field(description=f"[height, width] of the training crops, from {MIN_PX}")

    @property
    def network(self) -> str:
        """Return the name of the network, with its backbone."""
        return network_name(self.arch, self.backbone)

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """Return the files of the teacher, none where it is trained."""
        if self.checkpoint is None:
            return ()
        return (self.checkpoint,) if isinstance(self.checkpoint, str) else self.checkpoint

    @property
    def is_one_net(self) -> bool:
        """Return whether one forward pass of one torch network is the teacher; it can then run in every step."""
        files = self.checkpoints
        return not self.flip and self.scales == (1.0,) and len(files) < 2 and not any(map(is_onnx, files))

    @property
    def described(self) -> str:
        """Return the teacher in a few words: its network, or its files, with flip and scales."""
        named = isinstance(self.checkpoint, tuple) or any(map(is_onnx, self.checkpoints))
        parts = [" + ".join(PurePath(file).name for file in self.checkpoints) if named else self.network]
        parts += ["flipped"] if self.flip else []
        parts += [f"at scales {' '.join(f'{scale:g}' for scale in self.scales)}"] if self.scales != (1.0,) else []
        return ", ".join(parts)


def is_onnx(file: str) -> bool:
    """Return whether a checkpoint of that name is an ONNX file."""
    return PurePath(file).suffix.lower() == ".onnx"


class TeacherSettings(TeacherParams, TrainingSettings):
    """The training of the teacher, fully resolved."""


class ViewLimitParams(Section):
    distill_steps: Count = Field(description="the most first steps of a run")
    finetune_steps: CountOrZero = Field(description="the most further steps of a run")
    batch_size: Annotated[int, Field(ge=2)] = Field(description="crops per step of all runs")

    @property
    def steps(self) -> dict[str, int]:
        """Return the steps by phase of a training."""
        return {"distill": self.distill_steps, "finetune": self.finetune_steps}


class TeacherLogitsParams(Section):
    kinds: tuple[TeacherKind, ...] = Field(description="what students of this sweep learn from, one folder each")
    views: Count = Field(description="K crop views per train frame; every student draws its crops from them")
    stride: Literal[4, 8, 16] = Field(description="input pixels per stored logit, each way")
    dtype: Literal["float16", "uint8", "float32"] = Field(
        description="stored precision; uint8 has a scale for each class of each row"
    )
    batch_size: Count = Field(description="crops per forward pass of the teacher")
    mirrored: Literal["auto"] | bool = Field(
        default=False,
        description="store the teacher's logits of the mirrored views as well, twice the bytes; auto does so where the "
        "teacher differs too much on them. Without them, flipped crops get the mirrored logits",
    )
    feature_channels: Annotated[int, Field(ge=0, le=256)] = Field(
        default=0,
        description="views: channels of the teacher's features (one torch network) that are stored as well, in 8 bits "
        "per 16 pixels each way, for runs with a feature_weight; 64 to 256, 0 stores none",
    )
    limit_views_to: ViewLimitParams | None = Field(
        default=None,
        description="store only the views that runs of so many steps draw with the global seed; null stores all",
    )


class DistillParams(TrainingParams):
    crop_px: SizePx = Field(description=f"[height, width] of the crop views, from {MIN_PX}, by teacher_logits.stride")
    method: Literal["kl", "channel_kl", "sigmoid_kl"] = Field(description="distillation loss")
    temperature: Temperature = Field(description="T of the distillation loss")
    kl_resolution: Literal["stride", "full"] = Field(description="compare on the stored grid, or upsampled to the crop")
    distill_where: Literal["all", "right", "label_probability"] = Field(
        default="all",
        description="kl: the mean over all pixels, over those whose label the teacher predicts, or weighted by the "
        "probability that it gives the label; void pixels have weight 1",
    )


class FinetuneParams(Section):
    """The further steps; null keeps what the run's first steps used."""

    steps: CountOrZero = Field(description="optimizer steps; 0 hands the distilled student on")
    schedule: Schedule = Field(description="learning rate over these steps")
    decay_every_steps: Count = Field(description="step schedule: steps between two decays")
    gamma: Positive = Field(description="step schedule: factor of each decay")
    lr: Positive | None = Field(description="learning rate at the first of these steps; null is the run's")
    alpha: Fraction | None = Field(description="weight of the distillation loss; null is the run's, a control's is 0")
    label_weight: NotNegative | None = Field(default=None, description="as in runs; null is the run's")
    distill_weight: NotNegative | None = Field(default=None, description="as in runs; null is the run's")
    warmup_steps: CountOrZero = Field(default=0, description="as in distill, of these steps; not taken from the run")


class ExportParams(Section):
    opset: Annotated[int, Field(ge=18, le=23)] = Field(description="of the ONNX files")
    calibration_images: Count = Field(description="train frames that set the ranges of the int8 file")
    max_int8_loss: NotNegative | None = Field(
        default=0.5,
        description="points of holdout mIoU that int8 may lose against float32 before further ways to quantise are "
        "tried (ship.md); null tries none and measures nothing",
    )


class BenchmarkParams(Section):
    frames: Count = Field(description="timed rounds; in each, every network runs one frame on every backend, in turn")
    size_px: SizePx | None = Field(
        description=f"[height, width] of the timed frames, from {MIN_PX}; null is the prepared size"
    )
    warmup_frames: Count = Field(description="rounds before the timed ones that are not counted")
    threads: CountOrZero = Field(description="CPU threads of each model; 0 takes all cores")
    engines: Annotated[tuple[Literal["torch", "onnxruntime", "openvino"], ...], Field(min_length=1)] = Field(
        default=("torch", "onnxruntime"),
        description="what runs the networks; openvino is installed with the extra of that name",
    )


class ReportParams(Section):
    min_mean_iou: Fraction = Field(
        description="no file of a lower val mIoU is shipped; nor is one below half of the teacher's, or below the "
        "most frequent class predicted everywhere"
    )


class EvaluationParams(Section):
    batch_size: Count = Field(description="frames per forward pass")
    images: CountOrZero = Field(description="val frames, evenly spread, whose predictions are saved as images")


class TrackingParams(Section):
    experiment: Annotated[str, Field(min_length=1)] = Field(description="name of the MLflow experiment")
    uri: str | None = Field(
        description="tracking server, without a password; null is mlflow.db here. MLFLOW_TRACKING_URI goes first"
    )
    live: bool = Field(description="segdistill ui follows running trainings")
    system_metrics: bool = Field(description="while MLflow follows a training, CPU, memory and GPU every 10 s")
    model: Annotated[str, Field(pattern=r"^[\w.-]+$")] | None = Field(
        description="name of the champion in MLflow's model registry; null does not register it"
    )


class RunBase(Section):
    student: Arch = Field(description="network of the student; the run's stages depend on its file")
    alpha: Fraction | None = Field(
        default=None, description="loss = (1 - alpha) * label + alpha * T^2 * distillation; a control's is 0"
    )
    label_weight: NotNegative | None = Field(
        default=None, description="with distill_weight in place of alpha; 1 where distill_weight is 0"
    )
    distill_weight: NotNegative | None = Field(
        default=None, description="loss = label_weight * label + distill_weight * T^2 * distillation; a control's is 0"
    )
    feature_weight: NotNegative = Field(
        default=0.0,
        description="adds this times the feature loss (mean squared error of the student's features after a 1x1 "
        "projection, for features of mean square 1), in the first steps; needs teacher views and "
        "teacher_logits.feature_channels",
    )
    lr: Positive = Field(description="learning rate")
    teacher: Literal["views", "frame", "online", "none"] = Field(
        description="none is a control, which learns from labels alone"
    )
    seed: CountOrZero | None = Field(default=None, description="of initial weights and batches; null is the global one")
    finetune: dict[str, Any] = Field(default={}, description="keys of finetune that differ for this run")
    export: dict[str, Any] = Field(default={}, description="keys of export that differ for this run")


# The crop views are drawn once for all students, so their size and scales are the same in all runs.
_OVERRIDES: dict[str, Any] = {}
for _name, _field in DistillParams.model_fields.items():
    if _name not in {"crop_px", "scale_range"}:
        _kind: Any = Annotated[_field.annotation, *_field.metadata] if _field.metadata else _field.annotation
        _OVERRIDES[_name] = (_kind | None, None)
if TYPE_CHECKING:  # a type checker cannot run `create_model`
    RunParams = RunBase
else:
    RunParams = create_model("RunParams", __base__=RunBase, **_OVERRIDES)


class LossWeights(NamedTuple):
    """loss = label * label loss + distill * T^2 * distillation loss."""

    label: float
    distill: float


# The two ways to give them: alpha alone, or both weights.
WEIGHT_KEYS = ("alpha", "label_weight", "distill_weight")


class StudentSettings(DistillParams, TrainingSettings):
    """One training of one student, fully resolved: what `distill` or `steplr-finetune` reads."""

    steps: CountOrZero = Field(description="optimizer steps; 0 hands the student on, in finetune only")
    student: Arch
    alpha: Fraction | None = None
    label_weight: NotNegative | None = None
    distill_weight: NotNegative | None = None
    feature_weight: NotNegative = 0.0
    teacher: Literal["views", "frame", "online", "none"]

    @property
    def network(self) -> str:
        """Return the name of the network, with its backbone."""
        return network_name(self.student, self.backbone)

    @property
    def loss_weights(self) -> LossWeights:
        """Return the weights of both losses, however params give them."""
        if self.alpha is not None:
            return LossWeights(1 - self.alpha, self.alpha)
        assert self.label_weight is not None and self.distill_weight is not None, "params.read checks it"
        return LossWeights(self.label_weight, self.distill_weight)


class Params(Section):
    seed: CountOrZero = Field(description="of everything drawn: splits, views, weights, batches")
    seeds: tuple[CountOrZero, ...] = Field(
        default=(),
        description="every run is trained once more with each of these, as RUN-SEED; with `seed` it is trained anyway",
    )
    data: DataParams
    compute: ComputeParams
    evaluation: EvaluationParams
    teacher: TeacherParams
    teacher_logits: TeacherLogitsParams
    distill: DistillParams
    finetune: FinetuneParams
    export: ExportParams
    report: ReportParams
    benchmark: BenchmarkParams
    tracking: TrackingParams
    runs: Annotated[dict[str, RunParams], Field(min_length=1)]

    def teacher_settings(self) -> TeacherSettings:
        """Return the settings of the teacher's training."""
        return TeacherSettings(**self.teacher.model_dump(), seed=self.seed)

    def students(self) -> tuple[str, ...]:
        """Return the names of all students: each run, followed by its repetitions with other seeds."""
        return tuple(name for run in self.runs for name in (run, *self.repetitions(run)))

    def repetitions(self, run: str) -> tuple[str, ...]:
        """Return the names of the students that repeat `run`, RUN-SEED for each of `seeds` but its own."""
        return tuple(f"{run}-{seed}" for seed in self.seeds if seed != self.seed_of(run))

    def seed_of(self, name: str) -> int:
        """Return the seed of a student, the global one where its run names none."""
        own = self.student(name).seed
        return self.seed if own is None else own

    def student(self, name: str) -> RunParams:
        """Return the entry of a student: that of its run, with its own seed."""
        run = self.run_of(name)
        if run == name:
            return self.runs[run]
        return self.runs[run].model_copy(update={"seed": int(name.removeprefix(f"{run}-"))})

    def run_of(self, name: str) -> str:
        """Return the run that a student is or repeats."""
        return name if name in self.runs else name.rpartition("-")[0]

    def distill_settings(self, run: str) -> StudentSettings:
        """Return the settings of the first steps of `run`, which may be any student."""
        entry = self.student(run).model_dump(exclude={"finetune", "export"}, exclude_none=True)
        settings = {"seed": self.seed} | self.distill.model_dump() | entry
        if not takes_backbone(settings["student"]):
            settings["backbone"] = None  # distill.backbone is for the students that take one
        return StudentSettings(**settings)

    def finetune_settings(self, run: str) -> StudentSettings:
        """Return the settings of the further steps of `run`; `steps` is 0 where there are none."""
        own = self.finetune_params(run).model_dump(exclude_none=True)
        if self.student(run).teacher == "none":  # a control stays one
            own = {key: value for key, value in own.items() if key not in WEIGHT_KEYS}
        elif own.keys() & set(WEIGHT_KEYS):  # alpha replaces both weights of the run, and they replace its alpha
            own = dict.fromkeys(WEIGHT_KEYS) | own
        # The projection that the first steps learned is gone, and a fresh one would first pull the student astray.
        return self.distill_settings(run).model_copy(update=own | {"feature_weight": 0.0})

    def finetune_params(self, run: str) -> FinetuneParams:
        """Return the section finetune with what `run` overrides."""
        return FinetuneParams(**(self.finetune.model_dump() | self.student(run).finetune))

    def export_params(self, run: str) -> ExportParams:
        """Return the section export with what `run` overrides."""
        return ExportParams(**(self.export.model_dump() | self.student(run).export))
