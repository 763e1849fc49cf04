"""Settings of a job: frozen dataclasses, filled from defaults, a YAML file, `--set`, then options.

All mistakes of a config file are reported at once, each with what was meant.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from . import head_options
from .augmenting import HOW, fits
from .errors import UsageError

ARTIFACTS = ("blur", "pen", "folds", "bubbles", "edges")
STAINS = ("none", "macenko", "vahadane", "reinhard")
ICC = ("none", "srgb")
JPEG2000 = ("full", "low-band")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
_USUAL_MPP = "0.5 for a 20x scan, 0.25 for 40x"


@dataclass(frozen=True)
class ExtractSettings:
    """Slides → features.

    Attributes:
        tile: side of a tile in px at `mpp`.
        mpp: µm per pixel of the tiles; several with commas, `0.5,1`, make tiles and features at each of them.
        more_mpp: the further ones of these.
        overlap: px at `mpp` shared by neighboring tiles.
        min_tissue: least share of a tile that must be tissue, 0 to 1.
        slide_mpp: µm per pixel for slides whose own value is missing or refused.
        masks: folder with a GeoJSON outline for each slide whose tissue was drawn by hand; the others' is detected.
        mask_origin: where coordinates of `masks` count from: `canvas`, or `bounds` (QuPath, MIRAX slides).
        quality: whether blur, pen, folds, bubbles and edges are looked for.
        exclude: which of them are cut out of the tissue, e.g. `blur,folds`; what is not named is flagged only.
            Ink is cut out of detected tissue always, so `pen` matters to tissue drawn by hand alone.
        allow_upsampling: take slides coarser than `mpp`, too.
        encoder: name of the encoder; several with commas see the same tiles, which are read once.
        weights: file or `local-dir:` folder with its weights; of several encoders in the same order, with commas.
        icc: `srgb` turns pixels into sRGB by each slide's own colour profile, where it has one; `none` does not.
        stain: stain normalization, fitted once per slide; `none` leaves pixels alone.
        stain_reference: what stains are normalized to: the name of a built-in reference, a reference that
            `slidemil stain fit` wrote, or an image; none takes the built-in `tiatoolbox-target`.
        augment: colors are changed by chance before tiles are encoded, to see what a model bears: `hed:0.1:7`
            multiplies the amount of each stain by a factor from 1 ± 0.1, by seed 7, the same for all tiles of a slide,
            or with `hed:0.1:7:tile` another for each; `none` does not. Such features are not mixed with others.
        batch_size: tiles per encoder call; 0 takes as many as the device's memory holds. Features do not depend on it.
        device: `auto`, `cpu`, `openvino` (the CPU by way of OpenVINO), `cuda`, `cuda:1` …; several with commas, or
            `all` CUDA devices: a process for each.
        precision: of the encoder's arithmetic, `fp32`, `bf16`, `fp16`, or `auto`: `fp32` on a CPU, what the encoder is
            used with on CUDA.
        compile: let torch.compile make machine code of the encoder: minutes at the start, faster afterwards.
        commercial_only: refuse encoders whose licence does not permit commercial use.
        workers: threads that read, 0 for as many as pay.
        processes: processes that these threads are spread over, so that a library that aborts or hangs costs a slide
            and not the run: `auto` (one, or more for many threads), or a number; 0 reads in the command's own process.
            Slides are also hashed, opened and looked through in such a process.
        read_timeout: seconds after which a read of some megapixels counts as hung; needs processes.
        slide_timeout: seconds after which a slide counts as hung: hashing it, opening and looking through it, and
            reading its tiles may each take as long, without the time that it waits for the encoder; needs processes.
        memory_gb: cap on pixels under way, in GB.
        max_bad_tiles: share of unreadable tiles over which a slide fails.
        dtype: of stored features, `float16` or `float32`.
        store: besides the HDF5 files one zarr store of all slides, for dask and clouds: `zarr` (beside the feature
            folder), or a folder or fsspec URL that ends in `.zarr`, e.g. `s3://bucket/cohort.zarr`.
        dense: store also the feature map of each tile (a vector for each patch of a ViT, each place of a CNN's last
            map), as zarr groups: `dense_<encoder>/<slide>.zarr`. `slidemil plan` says how many GB that is.
        jpeg2000: how JPEG 2000 slides are read at half their size and below: `full` decodes all and takes area means,
            `low-band` leaves out the finer bands, which is about twice as fast but gives other pixels.
    """

    tile: int = 224
    mpp: float = 0.5
    more_mpp: str = ""
    overlap: int = 0
    min_tissue: float = 0.25
    slide_mpp: float | None = None
    masks: str | None = None
    mask_origin: str = "canvas"
    quality: bool = True
    exclude: str = ""
    allow_upsampling: bool = False
    encoder: str = "descriptors"
    weights: str | None = None
    icc: str = "none"
    stain: str = "none"
    stain_reference: str | None = None
    augment: str = "none"
    batch_size: int = 64
    device: str = "auto"
    precision: str = "auto"
    compile: bool = False
    commercial_only: bool = False
    workers: int = 0
    processes: str = "auto"
    read_timeout: float = 120.0
    slide_timeout: float = 3600.0
    memory_gb: float = 2.0
    max_bad_tiles: float = 0.01
    dtype: str = "float16"
    jpeg2000: str = "full"
    store: str | None = None
    dense: bool = False

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        _require(
            {
                f"tile must be 16 to 8192 px (224 is usual), not {self.tile}": 16 <= self.tile <= 8192,
                f"mpp must be 0.02 to 100 µm per pixel ({_USUAL_MPP}), not {self.mpp:g}": 0.02 <= self.mpp <= 100,
                f"mpp and more_mpp must be different numbers from 0.02 to 100, not {self.more_mpp}": not self.more_mpp
                or self._scales_fit,
                "several mpp need store=zarr: a store holds the features of one": not self.more_mpp
                or self.store in (None, "zarr"),
                f"overlap must be 0 to tile - 1, not {self.overlap}": 0 <= self.overlap < max(self.tile, 1),
                f"min_tissue must be 0 to 1, not {self.min_tissue}": 0 <= self.min_tissue <= 1,
                f"max_bad_tiles must be 0 to 1, not {self.max_bad_tiles}": 0 <= self.max_bad_tiles <= 1,
                f"icc must be one of {', '.join(ICC)}, not {self.icc}": self.icc in ICC,
                f"mask_origin must be canvas or bounds, not {self.mask_origin}": self.mask_origin
                in ("canvas", "bounds"),
                f"exclude takes {', '.join(ARTIFACTS)}, not {self.exclude}": set(self.excluded) <= set(ARTIFACTS),
                "exclude needs quality=true": self.quality or not self.excluded,
                f"stain must be one of {', '.join(STAINS)}, not {self.stain}": self.stain in STAINS,
                "stain_reference needs a stain normalization, e.g. stain=macenko": self.stain_reference is None
                or self.stain != "none",
                f"augment must be none or {HOW}, not {self.augment}": fits(self.augment),
                f"dtype must be float16 or float32, not {self.dtype}": self.dtype in ("float16", "float32"),
                f"store must be zarr, or end in .zarr, not {self.store}": self.store is None
                or self.store.endswith("zarr"),
                f"jpeg2000 must be one of {', '.join(JPEG2000)}, not {self.jpeg2000}": self.jpeg2000 in JPEG2000,
                f"batch_size must be 0 (what fits) or more, not {self.batch_size}": self.batch_size >= 0,
                f"precision must be one of {', '.join(PRECISIONS)}, not {self.precision}": self.precision in PRECISIONS,
                f"workers must be 0 (auto) or more, not {self.workers}": self.workers >= 0,
                f"processes must be auto or a number from 0, not {self.processes}": self.processes == "auto"
                or self.processes.isdecimal(),
                f"read_timeout must be above 0 s, not {self.read_timeout}": self.read_timeout > 0,
                f"slide_timeout must be above 0 s, not {self.slide_timeout}": self.slide_timeout > 0,
                f"memory must be at least 0.1 GB, not {self.memory_gb}": self.memory_gb >= 0.1,
                f"slide_mpp must be 0.02 to 10 µm per pixel ({_USUAL_MPP}), not {self.slide_mpp}": self.slide_mpp
                is None
                or 0.02 <= self.slide_mpp <= 10,
            }
        )

    @property
    def scales(self) -> tuple[float, ...]:
        """All µm per pixel that tiles are made at."""
        return (self.mpp, *(float(text) for text in self.more_mpp.split(",") if text.strip()))

    @property
    def _scales_fit(self) -> bool:
        try:
            return len(set(self.scales)) == len(self.scales) and all(0.02 <= mpp <= 100 for mpp in self.scales)
        except ValueError:
            return False

    @property
    def excluded(self) -> tuple[str, ...]:
        """The artifacts that are cut out of the tissue."""
        return _names(self.exclude)


@dataclass(frozen=True)
class LearnSettings:
    """Features and labels → a head.

    Attributes:
        head: name of the head.
        head_options: what it is built with, e.g. `hidden=256,attention=128`; docs/learn.md says what each head takes.
        epochs: at most so many passes over the training bags.
        lr: learning rate.
        weight_decay: of AdamW.
        dropout: share of features dropped in training.
        patience: epochs without a better validation loss before training stops.
        test: share of the patients held out.
        validation: share of the patients that early stopping watches.
        seed: of the split, the initial weights and the order of bags.
        task: what is asked: `classification`, `multilabel`, `ordinal`, `regression`, `cox`, `discrete_hazard`; of
            several targets one each, joined by commas.
        per_patient: one bag per patient, of the tiles of all the patient's slides.
        folds: number of folds of a cross-validation; 0 trains one model.
        repeats: how often the folds are dealt anew.
        site: column of the label table; slides of one site are then kept on one side of every fold.
        search: number of trials in which settings are searched on inner folds of the training patients: `lr`,
            `weight_decay`, `dropout`, `feature_dropout`, as far as you do not set them. 0 for none; needs optuna.
        inner_folds: number of these folds.
        teacher: models of this job, joined by commas: the head learns from the labels and from what these say together
            (knowledge distillation). None of them may have seen the slides that are held out here.
        teacher_share: of the teachers in the loss; the rest is the labels'.
        temperature: by which the logits of teachers and head are divided.
        schedule: `constant`, or `cosine`: the learning rate falls to 0 over the epochs.
        clip: largest norm of a step's gradient; 0 for no limit.
        ema: share of the old weights that their moving average keeps at a step, e.g. 0.99; 0 for none.
        feature_dropout: share of the input features switched off, the same ones for all tiles of a bag.
        mixup: bags are mixed with others, shares from Beta(mixup, mixup); 0 for none.
        train_batch: slides in one step.
        class_weights: `balanced` or `none`.
        task_weights: of several targets: `equal`, or `uncertainty` (learned).
        surgery: of several targets: `none`, or `pcgrad`.
        clinical: columns of clinical variables, joined by commas; in the label table, or in `--clinical-table`.
        fusion: how they join the slide: `late` (says the same without them as a model of the slide alone), `middle`,
            `cross_attention`, `early`.
        clinical_dropout: share of the variables, and of whole rows, that training does not show.
        adapt: how site or scanner are kept out of the model: `none`, `coral`, `reversal`, `covariance`.
        adapt_weight: what that weighs beside the loss of the slides.
        confounders: columns of the label table that tell what is to be kept out, joined by commas; by default `site`.
        precision: `auto` (bfloat16 for features of width 512 and more on hardware that has it), `float32`, `bfloat16`.
        train_memory_gb: prepared features are kept in memory up to this; others are read again in every epoch.
        track: show each epoch elsewhere, too: `tensorboard` (in `logs/tensorboard`; needs the extra `track`), `mlflow`
            (on the server that the variable MLFLOW_TRACKING_URI names), or both with a comma.
        watch: store what the model said of the held-out slides after every epoch, so that `slidemil evaluate` can show
            how much better the model would look if its epoch and threshold had been chosen on them.
    """

    head: str = "gated_abmil"
    head_options: str = ""
    epochs: int | None = None
    lr: float | None = None
    weight_decay: float | None = None
    dropout: float | None = None
    patience: int | None = None
    test: float = 0.3
    validation: float = 0.2
    seed: int = 0
    task: str = "classification"
    per_patient: bool = False
    folds: int = 0
    repeats: int = 1
    site: str = ""
    search: int = 0
    inner_folds: int = 3
    teacher: str = ""
    teacher_share: float = 0.7
    temperature: float = 2.0
    schedule: str = "constant"
    clip: float = 0.0
    ema: float = 0.0
    feature_dropout: float = 0.0
    mixup: float = 0.0
    train_batch: int = 1
    class_weights: str = "balanced"
    task_weights: str = "equal"
    surgery: str = "none"
    clinical: str = ""
    fusion: str = "late"
    clinical_dropout: float = 0.2
    adapt: str = "none"
    adapt_weight: float = 1.0
    confounders: str = ""
    precision: str = "auto"
    train_memory_gb: float = 4.0
    track: str = ""
    watch: bool = False

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        _require(
            {
                f"head_options must be {head_options.HOW}, not {self.head_options}": not self.head_options
                or bool(self.of_head),
                "dropout is set twice: as itself, and in head_options": self.dropout is None
                or "dropout" not in self.of_head,
                f"folds must be 0 (none) or at least 2, not {self.folds}": self.folds == 0 or self.folds >= 2,
                f"track must be tensorboard, mlflow, or both with a comma, not {self.track}": {*_names(self.track)}
                <= {"tensorboard", "mlflow"},
                f"search must be 0 (none) or more, not {self.search}": self.search >= 0,
                f"inner_folds must be at least 2, not {self.inner_folds}": self.inner_folds >= 2,
                f"search={self.search}, and lr, weight_decay, dropout and feature_dropout are all set: nothing is left "
                "to search": not self.search
                or None in (self.lr, self.weight_decay, self.of_head.get("dropout", self.dropout))
                or self.feature_dropout == 0,
                "a head with teachers: set no search, and no adapt": not self.teachers
                or (not self.search and self.adapt == "none"),
                f"teacher_share must be from 0 to 1, not {self.teacher_share}": 0 <= self.teacher_share <= 1,
                f"temperature must be above 0, not {self.temperature}": self.temperature > 0,
                f"repeats must be at least 1, not {self.repeats}": self.repeats >= 1,
                f"test must be above 0 and below 1, not {self.test}": 0 < self.test < 1,
                f"validation must be above 0 and below 1, not {self.validation}": 0 < self.validation < 1,
                f"epochs must be at least 1, not {self.epochs}": self.epochs is None or self.epochs >= 1,
                f"seed must not be negative, not {self.seed}": self.seed >= 0,
                f"adapt={self.adapt} needs a column: --site, or confounders=scanner,site": self.adapt == "none"
                or bool(self.kept_out),
            }
        )

    @property
    def of_head(self) -> dict[str, float]:
        """Option of the head → value; none where they cannot be read."""
        return head_options.read(self.head_options) or {}

    @property
    def trackers(self) -> tuple[str, ...]:
        """Where epochs are shown, too."""
        return _names(self.track)

    @property
    def teachers(self) -> tuple[str, ...]:
        """Models that teach."""
        return _names(self.teacher)

    @property
    def variables(self) -> tuple[str, ...]:
        """Columns of clinical variables."""
        return _names(self.clinical)

    @property
    def kept_out(self) -> tuple[str, ...]:
        """Columns of what is to be kept out of the model."""
        return _names(self.confounders or self.site)


@dataclass(frozen=True)
class Settings:
    """All settings of a job."""

    extract: ExtractSettings = dataclasses.field(default_factory=ExtractSettings)
    train: LearnSettings = dataclasses.field(default_factory=LearnSettings)


Part = TypeVar("Part", ExtractSettings, LearnSettings)


def load_settings(
    config: Path | None = None, assignments: Sequence[str] = (), options: Mapping[str, Any] | None = None
) -> Settings:
    """Merge defaults, a YAML file, `--set key=value` and options; what comes later wins.

    Keys are `extract.tile` or, where the name is unambiguous, just `tile`. Options that are None were not
    given.

    Raises:
        UsageError: lists every unknown key and every value that does not fit.
    """
    mistakes: list[str] = []
    values: dict[str, Any] = {}
    for name, value in _yaml_pairs(config, mistakes):
        _take(values, name, value, f"{config}", mistakes)
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals:
            mistakes.append(f"--set {text}: write it as key=value")
            continue
        _take(values, name.strip(), _scalar(value), f"--set {text}", mistakes)
    for name, value in (options or {}).items():
        if value is not None:
            _take(values, name, value, f"--{name.replace('_', '-')}", mistakes)
    extract = _build("extract", ExtractSettings, values, mistakes)
    learn = _build("train", LearnSettings, values, mistakes)
    if mistakes or extract is None or learn is None:
        raise UsageError("settings do not fit:\n  " + "\n  ".join(mistakes))
    return Settings(extract, learn)


def settings_table() -> str:
    """Return all settings as a table in Markdown, from the defaults and what the classes say of them."""
    lines: list[str] = []
    for part, cls in _PARTS.items():
        said = _said_of_fields(cls)
        lines += ["", f"## `{part}`", "", "| key | default | what it is |", "|---|---|---|"]
        for field in dataclasses.fields(cls):
            text = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
            shown = "" if field.default in (None, "") else f"`{text}`"
            lines.append(f"| `{field.name}` | {shown} | {said[field.name]} |")
    return "\n".join(lines[1:]) + "\n"


def _said_of_fields(cls: type[Any]) -> dict[str, str]:
    """Return field → what the docstring's `Attributes` say of it."""
    said: dict[str, str] = {}
    name = ""
    for line in (inspect.getdoc(cls) or "").partition("Attributes:")[2].splitlines():
        start = re.match(r"    (\w+): (.*)", line)
        if start:
            name, said[start[1]] = start[1], start[2]
        elif name and line.strip():
            said[name] += f" {line.strip()}"
    return said


def as_yaml(settings: Settings) -> str:
    """Return the settings as YAML that `--config` reads back."""
    import yaml

    return yaml.safe_dump(dataclasses.asdict(settings), sort_keys=False, allow_unicode=True)


_PARTS: dict[str, Any] = {"extract": ExtractSettings, "train": LearnSettings}
_KEYS = {f"{part}.{f.name}": f.name for part, cls in _PARTS.items() for f in dataclasses.fields(cls)}


def _names(text: str) -> tuple[str, ...]:
    """Names joined by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _require(rules: Mapping[str, bool]) -> None:
    broken = [rule for rule, kept in rules.items() if not kept]
    if broken:
        raise ValueError("; ".join(broken))


def _yaml_pairs(config: Path | None, mistakes: list[str]) -> list[tuple[str, Any]]:
    if config is None:
        return []
    import yaml

    try:
        tree = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        mistakes.append(f"{config}: cannot be read as YAML ({' '.join(str(error).split())})")
        return []
    if not isinstance(tree, Mapping):
        mistakes.append(f"{config}: expected `key: value` lines, found {type(tree).__name__}")
        return []
    pairs: list[tuple[str, Any]] = []
    for name, value in tree.items():
        if isinstance(value, Mapping) and name not in _KEYS.values():
            pairs += [(f"{name}.{inner}", item) for inner, item in value.items()]
        else:
            pairs.append((str(name), value))
    return pairs


def _take(values: dict[str, Any], name: str, value: Any, where: str, mistakes: list[str]) -> None:
    key = name.replace("-", "_")
    full = [known for known, short in _KEYS.items() if key in (known, short)]
    if full:
        values |= _scales(value) if full[0] == "extract.mpp" else {full[0]: _joined(value, full[0])}
        return
    section, _, short = key.rpartition(".")
    meant = [known for known, plain in _KEYS.items() if plain == short]
    if meant:  # a right name under a wrong section
        mistakes.append(
            f"{where}: unknown section `{section}`: `{short}` belongs to `{meant[0].split('.')[0]}`. "
            f"Write `{meant[0]}`, or just `{short}`."
        )
        return
    near = difflib.get_close_matches(short, list(_KEYS.values()), n=1)
    hint = f" Did you mean `{near[0]}`?" if near else f" Known keys: {', '.join(_KEYS.values())}."
    mistakes.append(f"{where}: unknown key `{short}`.{hint}")


def _scales(value: Any) -> dict[str, Any]:
    """Return the first µm/px and the further ones, of a number, a list, or a text with commas."""
    first, *more = value if isinstance(value, list) else str(value).split(",")
    return {"extract.mpp": _scalar(str(first)), "extract.more_mpp": ",".join(str(one).strip() for one in more)}


def _joined(value: Any, key: str) -> Any:
    """Return options of a head that a file writes as `name: value` lines as `--set` has them."""
    if key == "train.head_options" and isinstance(value, Mapping):
        return ",".join(f"{name}={one}" for name, one in value.items())
    return value


def _build(part: str, cls: type[Part], values: Mapping[str, Any], mistakes: list[str]) -> Part | None:
    hints = typing.get_type_hints(cls)
    given: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        key = f"{part}.{field.name}"
        if key in values:
            fits, value = _coerce(values[key], hints[field.name])
            if not fits:
                mistakes.append(f"{key}: `{values[key]}` is no {_type_name(hints[field.name])}")
            else:
                given[field.name] = value
    try:
        return cls(**given)
    except ValueError as error:
        mistakes += [f"{part}: {line}" for line in str(error).split("; ")]
        return None


def _coerce(value: Any, hint: Any) -> tuple[bool, Any]:
    """Fit a value to a type: whole floats pass as int, ints as float, nothing else is bent."""
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None:
        return type(None) in allowed, None
    for kind in allowed:
        if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
            return True, float(value)
        if kind is int and isinstance(value, int | float) and not isinstance(value, bool) and value == int(value):
            return True, int(value)
        if kind in (str, bool) and isinstance(value, kind):
            return True, value
        if kind is str and isinstance(value, list) and all(isinstance(item, str) for item in value):
            return True, ",".join(value)
        if kind is str and isinstance(value, int | float) and not isinstance(value, bool):
            return True, str(value)
    return False, value


def _type_name(hint: Any) -> str:
    names = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return " or ".join(names[kind] for kind in kinds if kind in names)


def _scalar(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
