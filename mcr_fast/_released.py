"""Configurations of the published code, read as options of `MCRLoss` and `MCRObjective`.

What is absent has the published code's own default: no L_MIPD without ``l``, no L_Con without
``contr_coeff``, no L_CEB without ``lib``.
"""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mcr_fast._numbers import finite, whole

Options = dict[str, Any]

# Short names of the run script, long ones of the code, and ours.
_STRATEGIES = {
    "greedy": "greedy",
    "dist_pred_cjsd": "greedy",
    "dist_pred_3d_agree": "greedy",  # with one donor for all of S
    "ind": "independent",
    "dist_pred_max_cjsd": "independent",
    "independent": "independent",
    "colab": "collaborative",
    "dist_pred_all_max_cjsd": "collaborative",
    "collaborative": "collaborative",
}
_SHUFFLES = {"rand": None, "rsl": "same_label", "rsi": "self"}
_TASKS = {"classification": "classification", "regression": "regression", "reg": "regression"}

_KNOWN = (
    *("contr_coeff", "contr_type", "ending_epoch", "l", "latent_dims", "lib", "multi_loss"),
    *("multil", "num_classes", "num_samples", "reg_by", "regby", "shuffle_type"),
    *("starting_epoch", "task", "temperature", "training_mode"),
)
# What the published configurations may say at one value only, for another means another method.
_FIXED = {"shuffle": True, "use": True, "noise": False, "l_gradnorm": 0, "l_diffsq": 0}
# Of the encoders, the data and the training, which a loss knows nothing about.
_ELSEWHERE = frozenset(
    (
        *("agent", "alpha", "batch_size", "batchnorm_features", "bnorm", "clip", "clip_grad"),
        *("clip_value", "cls", "cls_type", "config", "d_model", "dataset", "default_config"),
        *("dropout", "early_stopping", "encoders", "exp_name", "fc_inner", "fold"),
        *("freeze_encoder", "frozen_encoders", "fusion_gates", "ilr_c", "ilr_g", "kmepoch"),
        *("activate_model", "load_ongoing", "lr", "lr_finder", "lr_finder_steps", "method"),
        *("mmcosine_scaling", "mode", "model_class", "norm_decision", "num_frames", "optimizer"),
        *("plot", "pre", "pretraining_paths", "recon_ensemblestages", "recon_epochstages"),
        *("recon_weight1", "recon_weight2", "save_base_dir", "save_dir", "scheduler"),
        *("shared_pred", "shufflegradmulti", "swin_backbone", "tanh_mode_beta"),
        *("training_params", "validate_with", "wd"),
    )
)
_LEVELS = ("model", "args", "bias_infusion")  # each in the one before


def loss_options(config: Any, latent_dims: Any, num_classes: Any, overrides: Options) -> Options:
    """The arguments of `MCRLoss`."""
    of_loss, of_objective = read_released(config, latent_dims, num_classes, overrides)
    if of_objective.get("share_labels") is False and of_loss["contrastive_weight"] != 0:
        warnings.warn(
            "contr_type='pure' asks for instance labels: call MCRLoss with labels=None, or take "
            "MCRObjective.from_released_config, which does",
            UserWarning,
            stacklevel=3,
        )
    return of_loss


def read_released(
    config: Any, latent_dims: Any, num_classes: Any, overrides: Options
) -> tuple[Options, Options]:
    """The arguments of `MCRLoss` and of `MCRObjective`."""
    if not isinstance(config, Mapping):
        raise TypeError(f"config must be a mapping of option names, got {type(config).__name__}")
    levels = list(_levels(_unfolded(config)))
    _refuse_unknown(levels)
    found = _found(levels)
    task = _task(found, overrides)
    exclude = _exclude(found)
    loss: Options = {
        "latent_dims": latent_dims if latent_dims is not None else _latent_dims(found),
        "num_classes": num_classes if num_classes is not None else _num_classes(found),
        "scheme": "uniform",
        "mipd_weight": _number(found, "l"),
        "contrastive_weight": _number(found, "contr_coeff"),
        "ceb_weight": _number(found, "lib"),
        "temperature": _number(found, "temperature", 0.5),
        "exclude": exclude,
    }
    if "num_samples" in found:
        loss["num_permutations"] = whole("num_samples", _read(found["num_samples"]))
    if "strategy" not in overrides:
        loss |= _strategy(found)
    if task == "regression":
        loss["divergence"] = "mse"
    if _read(found.get("training_mode")):
        loss["fusion_mode"] = "own"
    objective = _of_objective(found, task)
    if exclude == "same_label" and objective.get("share_labels") is False:
        raise ValueError(
            "contr_type='pure' does not go with shuffle_type='rsl': one asks the regularizer to "
            "know no labels, the other to compare rows by them; take shuffle_type='rsi'"
        )
    return loss | overrides, objective


def _of_objective(found: Options, task: str) -> Options:
    kind = found.get("contr_type", "label")
    if kind not in ("label", "pure"):
        raise ValueError(f"contr_type must be one of 'label', 'pure', got {kind!r}")
    options: Options = {"share_labels": kind == "label"}
    if task == "regression":
        options |= {"task": task, "regression_loss": "l1"}
    elif kind == "label":
        options = {}  # class numbers are shared anyway
    weight = _unimodal_weight(found)
    if weight is not None:
        options["unimodal_weight"] = weight
    start = whole("starting_epoch", _read(found.get("starting_epoch", 0)), 0)
    end = found.get("ending_epoch")
    if end is not None:
        end = whole("ending_epoch", _read(end), 0) + 1  # which is included there
    if start > 0 or end is not None:
        options |= {"window": (start, end), "unit": "epoch"}
    return options


def _unfolded(config: Mapping[str, Any]) -> Options:
    """With keys like "model.args.d_model" as the nested mappings that they stand for."""
    nested: Options = {}
    for key, value in config.items():
        *path, name = str(key).split(".")
        inner = nested
        for step in path:
            held = inner.get(step)
            inner[step] = dict(held) if isinstance(held, Mapping) else {}
            inner = inner[step]
        if isinstance(value, Mapping) and isinstance(inner.get(name), Mapping):
            value = {**inner[name], **value}
        inner[name] = value
    return nested


def _levels(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The configuration, and what of "model", "args" and "bias_infusion" is nested in it."""
    yield config
    for name in _LEVELS:
        inner = config.get(name)
        if isinstance(inner, Mapping):
            yield inner
            config = inner


def _refuse_unknown(levels: list[Mapping[str, Any]]) -> None:
    """Raise for names that nobody knows: where the options are, and among the flags at the top."""
    strict = levels[-1:]
    if "model" in levels[0]:  # else it is the model's arguments, which may be any
        strict = [levels[0], *strict]
    known = {*_KNOWN, *_FIXED, *_ELSEWHERE, *_LEVELS}
    unknown = {key: None for level in strict for key in level if key not in known}
    if unknown:
        names = ", ".join(repr(name) for name in unknown)
        raise ValueError(
            f"config has options that are not known: {names}; known are {', '.join(_KNOWN)}"
        )


def _found(levels: list[Mapping[str, Any]]) -> Options:
    """All options; an outer one, such as a flag of the run script, goes before an inner one."""
    found: Options = {}
    for level in reversed(levels):
        found |= {key: value for key, value in level.items() if value is not None}
    for level in levels:  # a width or number of outputs belongs to the innermost one
        found |= {key: level[key] for key in ("d_model", "num_classes") if level.get(key)}
    for name, wanted in _FIXED.items():
        if name in found and _read(found[name]) != wanted:
            raise ValueError(
                f"{name} must be {wanted!r}, got {found[name]!r}: what the published code does "
                "then is another method, which is not here"
            )
    return found


def _read(value: Any) -> Any:
    """A value that a command line may have left a string."""
    if not isinstance(value, str):
        return value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    try:
        return int(value)
    except ValueError:
        pass
    try:
        return float(value)
    except ValueError:
        return value


def _number(found: Options, name: str, default: float = 0.0) -> float:
    value = _read(found.get(name, default))
    return finite(name, float(value) if isinstance(value, bool) else value)


def _strategy(found: Options) -> Options:
    name = found.get("reg_by", found.get("regby", "greedy"))
    if name == "dist_pred_cub":
        raise ValueError(
            "reg_by='dist_pred_cub' of the published configurations is implemented nowhere, and "
            "the run script replaces it by greedy, ind or colab: give one of these as reg_by, or "
            "strategy="
        )
    if name not in _STRATEGIES:
        raise ValueError(f"reg_by must be one of {', '.join(map(repr, _STRATEGIES))}, got {name!r}")
    return {"strategy": _STRATEGIES[name], "shared_donor": name == "dist_pred_3d_agree"}


def _exclude(found: Options) -> str | None:
    """The pairs that "rand", "rsl", "rsi", "rand_rsl" and "rand_rsi" leave out."""
    given = found.get("shuffle_type", "rand")
    words = re.split(r"[^a-z]+", given) if isinstance(given, str) else [given]
    if not set(words) <= set(_SHUFFLES):
        raise ValueError(
            f"shuffle_type must be one of {', '.join(map(repr, _SHUFFLES))}, got {given!r}"
        )
    return next((_SHUFFLES[word] for word in ("rsl", "rsi") if word in words), None)


def _task(found: Options, overrides: Options) -> str:
    """Regression if it says so, if its method is one of regression, or if it has one output."""
    given = found.get("task")
    if given is not None:
        if given not in _TASKS:
            raise ValueError(f"task must be one of {', '.join(map(repr, _TASKS))}, got {given!r}")
        return _TASKS[given]
    by_method = str(found.get("method", "")).endswith("_Reg")
    if overrides.get("divergence", "mse") != "mse":
        return "classification"
    return "regression" if by_method or _read(found.get("num_classes")) == 1 else "classification"


def _latent_dims(found: Options) -> Sequence[int]:
    if "latent_dims" in found:
        return found["latent_dims"]
    number = len(found.get("encoders") or ()) or len(_unimodal_weights(found))
    if not number or "d_model" not in found:
        raise ValueError(
            "latent_dims must be given, one width a modality: the configuration has no "
            "'latent_dims', and no 'd_model' with 'encoders' or 'multi_loss'"
        )
    return [whole("d_model", _read(found["d_model"]))] * number


def _num_classes(found: Options) -> int:
    if "num_classes" not in found:
        raise ValueError("num_classes must be given: the configuration has none")
    return whole("num_classes", _read(found["num_classes"]))


def _unimodal_weights(found: Options) -> Options:
    """Those of "multi_loss", without that of the task loss."""
    section = found.get("multi_loss")
    weights = section.get("multi_supervised_w") if isinstance(section, Mapping) else None
    if not isinstance(weights, Mapping):
        return {}
    weights = {name: _read(weight) for name, weight in weights.items()}
    if weights.get("combined", 1) != 1:
        raise ValueError(
            "multi_supervised_w must have combined=1, the weight of the task loss, got "
            f"{weights['combined']!r}; scale the others and the learning rate instead"
        )
    return {name: weight for name, weight in weights.items() if name != "combined"}


def _unimodal_weight(found: Options) -> float | tuple[float, ...] | None:
    """The number of "multil" where "multi_loss" has any, or what that has."""
    weights = tuple(_unimodal_weights(found).values())
    if "multil" not in found:
        return weights or None
    given = _number(found, "multil")
    return tuple(given if weight != 0 else 0.0 for weight in weights) or given
