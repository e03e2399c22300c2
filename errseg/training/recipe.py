"""Recipe: everything a training run depends on, read from a TOML file."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from errseg.config import CALIBRATED, PRESETS, ModelConfig
from errseg.errors import ConfigError

Precision = Literal["fp32", "bf16", "fp16"]
Augmentation = Literal["squash", "published"]
Tuning = Literal["trunk", "published"]

_COUNTS = ("steps", "batch_size", "keep", "checkpoint_every", "validate_every", "accumulate")
_CHOICES: dict[str, Any] = {
    "precision": Precision,
    "augmentation": Augmentation,
    "tuning": Tuning,
}
_LATER = (
    "accumulate",
    "precision",
    "augmentation",
    "tuning",
    "clip_file",
    "calibration_pictures",
    "init_share",
    "hue",
    "own_names",
    "degraded",
    "copy_paste",
    "refined",
    "apart",
    "broader",
    *CALIBRATED,
)

FROM_IMAGENET = "errseg-mini"
FROM_CLIP = "clip"
"""What `init` may say beside a checkpoint's path and nothing."""


@dataclass(frozen=True)
class DataSource:
    """One data set of a recipe.

    Attributes:
        folder: holds `images/`, `labels/` and `classes.txt`.
        weight: how often its batches are drawn, relative to the others.
        distractors: absent class names, drawn anew each step from the other sets' lists.
        overlapping: sets (their folders' names) with classes that may be in these pictures though
            no label says so; their names are no distractors.
        min_scale: smallest crop, as a share of the picture's sides ("squash" alone).
        hue: the colours of half the pictures are turned by at most so many degrees of hue, for
            things that come in all colours ("squash" alone).
        mosaic: a training picture is a square of so many pictures a side.
        rare_share: pictures that hold a class found in a smaller share of the pictures than this
            are drawn more often (repeat factor sampling, LVIS 2019); 0 = all alike.
        unions: a line of `classes.txt` is a union of several things, not one thing with several
            names: all of them are meant at every step, each by any name that means the same.
        apart: share of the batches in which the things of unions are classes of their own, of which
            one per union may be what a pixel shows: which, the label map does not say.
        own_names: share of the batches in which classes go by the names of `classes.txt` alone.
        degraded: share of the pictures that may get noise, blur and the marks of JPEG.
        pseudo_labels: the folder holds one picture per ImageNet class and no label maps; they are
            made from the ImageNet classifier.
        refined: those label maps get sharper outlines from the run's starting weights, which must
            be those of a model that segments already.
        broader: a file of broader classes (`errseg.training.broader`) that pseudo-labelled pictures
            are learnt under instead of ImageNet's.
        copy_paste: share of the pictures onto which another one of the set is pasted, each of its
            classes with a chance of a half ("simple copy-paste", Ghiasi et al. 2021; ClassMix,
            Olsson et al. 2021).
    """

    folder: Path
    weight: float = 1.0
    distractors: int = 0
    overlapping: tuple[str, ...] = ()
    min_scale: float = 0.5
    hue: float = 0.0
    mosaic: int = 1
    rare_share: float = 0.0
    unions: bool = False
    own_names: float = 0.0
    degraded: float = 0.0
    pseudo_labels: bool = False
    refined: bool = False
    copy_paste: float = 0.0
    apart: float = 0.0
    broader: Path | None = None

    def __post_init__(self) -> None:
        for name in ("own_names", "degraded", "copy_paste", "apart"):
            _check_share(name, getattr(self, name))
        if self.apart and not self.unions:
            raise ConfigError("apart is given, but the set's classes are no unions.")
        if self.broader and not self.pseudo_labels:
            raise ConfigError("broader is given, but there are no pseudo_labels.")
        if self.refined and not self.pseudo_labels:
            raise ConfigError("refined is true, but there are no pseudo_labels to refine.")
        if not isinstance(self.hue, int | float) or not 0 <= self.hue <= 180:
            raise ConfigError(f"hue is {self.hue!r}; it must be a number of degrees, 0 to 180.")


def _check_share(name: str, value: object) -> None:
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(f"{name} is {value!r}; it must be a share, a number from 0 to 1.")


@dataclass(frozen=True)
class Recipe:
    """A training run.

    Attributes:
        model: shape of the model.
        init: "errseg-mini" starts from the ImageNet trunk and the sentence encoder that the
            extra `train-mini` installs; "clip" from `clip_file`; a path from a checkpoint of ours;
            "" is random.
        data: sets to learn from.
        validation: sets to measure on; nothing is learnt from them.
        crop: (H, W) of training crops, multiples of 32.
        keep: K in training; classes in the ground truth are always kept.
        batch_size: pictures of a batch, over all processes that train together.
        learning_rate, trunk_rate: peak rate, and the towers' share of it
            (0: they stay).
        frozen_stages: the trunk's stem and this many stages are left as they are.
        weight_decay: AdamW's; 0 for norms, biases and layers' gammas.
        warmup: steps of linear warm-up; a cosine to zero follows.
        cost_loss: weight of the cross-entropy on the stride-16 cost map (0 as published).
        cost_temperature: cosine similarities are divided by this before that cross-entropy.
        softmax_loss: weight of the cross-entropy over the kept classes (0 as published): the
            answer is the best of them, so they compete.
        lovasz_loss: weight of the Lovász-softmax loss, a surrogate of the IoU (0 as published).
        text_noise: length of the random vectors added to the class embeddings, whose length is 1.
        synonyms: a vocabulary file of names that mean the same; a class learns under all of them,
            but for the batches that a set's `own_names` takes out.
        mask_ignored: leave unlabelled pixels out of the mean, rather than count them as zero.
        average_decay: of the moving average of the weights, which is what is measured and kept.
        init_share: in the end that average is mixed with so much of the weights the run began with,
            which often does better than either (WiSE-FT, Wortsman et al. 2022).
        checkpoint_every, validate_every: in steps.
        validation_limit: pictures per validation set while training (0 = all).
        calibration_pictures: per validation set, by which the final model is calibrated, so that
            probabilities mean what they say (0 = as they are).
        accumulate: batches of a step; their losses are averaged.
        precision: "fp32", or by autocast "bf16" or "fp16".
        augmentation: "squash" crops and squashes; "published" resizes the short side to the crop's
            and crops, with colours as in SSD.
        tuning: "trunk" trains the image tower but for its frozen stages; "published" trains the
            parts of both CLIP towers that the paper's authors do.
        clip_file: the open_clip checkpoint that `init = "clip"` starts from.
    """

    model: ModelConfig
    data: tuple[DataSource, ...]
    validation: tuple[Path, ...] = ()
    init: str = ""
    crop: tuple[int, int] = (640, 640)
    steps: int = 80_000
    batch_size: int = 4
    keep: int = 32
    learning_rate: float = 2e-4
    trunk_rate: float = 0.01
    frozen_stages: int = 0
    weight_decay: float = 1e-4
    warmup: int = 1000
    cost_loss: float = 0.0
    cost_temperature: float = 0.05
    softmax_loss: float = 0.0
    lovasz_loss: float = 0.0
    text_noise: float = 0.0
    synonyms: Path | None = None
    mask_ignored: bool = False
    average_decay: float = 0.0
    init_share: float = 0.0
    gradient_limit: float = 1.0
    seed: int = 0
    checkpoint_every: int = 1000
    validate_every: int = 5000
    validation_limit: int = 0
    calibration_pictures: int = 0
    accumulate: int = 1
    precision: Precision = "fp32"
    augmentation: Augmentation = "squash"
    tuning: Tuning = "trunk"
    clip_file: Path | None = None

    def __post_init__(self) -> None:
        # the crop is a model input: the model's own check knows the rule
        dataclasses.replace(self.model, image_size=self.crop)
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        _check_share("init_share", self.init_share)
        for name, kind in _CHOICES.items():
            if getattr(self, name) not in get_args(kind):
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {get_args(kind)}."
                )
        if self.calibration_pictures and not self.validation:
            raise ConfigError(
                "calibration_pictures are given, but no validation set to take them of."
            )
        from_nothing = self.init in ("", FROM_IMAGENET, FROM_CLIP)
        if from_nothing and any(source.refined for source in self.data):
            raise ConfigError(
                f"init is {self.init!r}; label maps are refined by the model that a run starts "
                "from, so it must be the checkpoint of one that segments already."
            )
        of_clip = self.tuning == "published" or self.init == FROM_CLIP
        if of_clip and self.model.text_encoder != "clip":
            raise ConfigError(f"{self.model.name} holds no CLIP: init and tuning cannot be CLIP's.")

    def identity(self) -> str:
        """The whole recipe as text: what a checkpoint says it was trained by.

        Settings that came after the first checkpoints are left out where they change nothing.
        """
        return _said(self)


def _said(settings: Recipe | DataSource | ModelConfig) -> str:
    """What a dataclass's repr says, less later settings with their defaults."""
    said = []
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        # once a union's things went by the set's own names alone: own_names says which way it is
        told = field.name == "own_names" and getattr(settings, "unions", False)
        if field.name in _LATER and value == field.default and not told:
            continue
        if isinstance(value, tuple) and value and isinstance(value[0], DataSource):
            comma = "," if len(value) == 1 else ""
            value_said = f"({', '.join(map(_said, value))}{comma})"
        elif isinstance(value, ModelConfig):
            value_said = _said(value)
        else:
            value_said = repr(value)
        said.append(f"{field.name}={value_said}")
    return f"{type(settings).__name__}({', '.join(said)})"


def load_recipe(path: Path, root: Path | None = None) -> Recipe:
    """Read a recipe.

    A recipe with `extends = FILE` has the settings of that one, but for those it gives itself; its
    own [[data]] entries stand in place of all of the other's.

    Args:
        path: of the TOML file; files that it names are relative to its folder.
        root: what the folders named in the recipe are relative to; None = the recipe's own folder.

    Raises:
        ConfigError: the file cannot be read, or a setting is unknown or of the wrong kind.
    """
    values = _values(path)
    try:
        return _recipe(values, path.parent if root is None else root)
    except (ConfigError, TypeError, KeyError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _values(path: Path, extending: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The settings of a file and of those that it extends; files named in them are found."""
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {path}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a TOML file: {error}.") from error
    for name in ("synonyms", "clip_file", "extends"):
        if name in values:
            values[name] = _beside(path, name, values[name])
    if not isinstance(values.get("model", {}), dict):
        raise ConfigError(f"{path}: model is {values['model']!r}; it must be a table, [model].")
    data = values.get("data", [])
    if not isinstance(data, list) or not all(isinstance(entry, dict) for entry in data):
        raise ConfigError(f"{path}: data is {data!r}; it must be tables, [[data]].")
    for entry in data:
        if "broader" in entry:
            entry["broader"] = _beside(path, "broader", entry["broader"])
    if "extends" not in values:
        return values
    other = values.pop("extends")
    if other.resolve() in (path.resolve(), *extending):
        raise ConfigError(f"{path} extends itself, by way of {other}; break the circle.")
    extended = _values(other, (path.resolve(), *extending))
    model = {**extended.get("model", {}), **values.get("model", {})}
    return {**extended, **values, "model": model}


def _beside(path: Path, setting: str, name: object) -> Path:
    """The file that a recipe names, relative to the recipe's own folder."""
    if not isinstance(name, str) or "\0" in name:
        raise ConfigError(f"{path}: {setting} is {name!r}; it must be the path of a file.")
    return path.parent / name


def _recipe(values: Mapping[str, Any], root: Path) -> Recipe:
    settings = _plain(values)
    model = settings.pop("model", {})
    preset = model.pop("preset", None)
    if preset not in PRESETS:
        raise ConfigError(f"[model] preset is {preset!r}; it must be one of {sorted(PRESETS)}.")
    config = ModelConfig.from_dict({**dataclasses.asdict(PRESETS[preset]), **model})
    data = tuple(
        DataSource(**{**_plain(entry), "folder": root / entry["folder"]})
        for entry in settings.pop("data", [])
    )
    if not data:
        raise ConfigError("there is no [[data]] entry; name at least one folder to learn from.")
    validation = tuple(root / folder for folder in settings.pop("validation", []))
    known = {field.name for field in dataclasses.fields(Recipe)}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ConfigError(f"unknown setting {unknown[0]!r}; known are {sorted(known)}.")
    return Recipe(model=config, data=data, validation=validation, **settings)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """With tuples for the lists of TOML: settings are compared and never change."""
    return {
        key: tuple(value)
        if isinstance(value, list) and key not in ("data", "validation")
        else value
        for key, value in values.items()
    }
