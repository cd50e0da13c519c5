"""Configurations of the published code, and the table of its settings."""

import warnings

import pytest
import torch
from inputs import make_latents
from torch import nn

import mcr_fast
from mcr_fast import MCRLoss, MCRObjective
from mcr_fast.recipes import PUBLISHED

FLAGS = {"l": 0.1, "multil": 0.01, "num_samples": 32, "reg_by": "greedy", "contr_coeff": 1}


def released(modalities=2, reg_by="dist_pred_cub", method="ShuffleGradFinal", **section):
    """A configuration in the layout of the published ones."""
    keys = ("c", "g", "f")[:modalities]
    encoder = {"model": "Audio_ResNet", "args": {"d_model": 512, "num_classes": 6}}
    bias_infusion = {
        "method": method,
        "reg_by": reg_by,
        "num_samples": 6,
        "l": 0.1,
        "l_gradnorm": 0,
        "shuffle": True,
        "noise": False,
        "starting_epoch": 0,
        "ending_epoch": 1500,
        "use": True,
        "plot": False,
    }
    arguments = {
        "d_model": 512,
        "num_classes": 6,
        "fc_inner": 64,
        "cls_type": "linear",
        "made_up_for_this_model": 3,
        "bias_infusion": bias_infusion | section,
        "multi_loss": {"multi_supervised_w": {"combined": 1} | dict.fromkeys(keys, 1)},
    }
    model = {"model_class": "MCR_Model", "args": arguments, "encoders": [encoder] * modalities}
    return {
        "exp_name": "CREMAD Experiment",
        "training_params": {"batch_size": 32, "seed": 109},
        "scheduler": {"type": "cosanneal", "warm_up_steps": 780},
        "optimizer": {"type": "Adam", "learning_rate": 1e-4},
        "model": model,
    }


@pytest.mark.parametrize("name", ["reg_by", "regby"])
@pytest.mark.parametrize(
    ("spelling", "strategy"),
    [
        ("greedy", "greedy"),
        ("dist_pred_cjsd", "greedy"),
        ("ind", "independent"),
        ("dist_pred_max_cjsd", "independent"),
        ("colab", "collaborative"),
        ("dist_pred_all_max_cjsd", "collaborative"),
        *((ours, ours) for ours in ("independent", "collaborative")),
    ],
)
def test_strategies(name, spelling, strategy):
    loss = MCRLoss.from_released_config({name: spelling, "l": 1}, [4, 4, 4], 3)
    assert loss.strategy == strategy
    assert not loss.shared_donor


def test_shared_donor():
    loss = MCRLoss.from_released_config({"reg_by": "dist_pred_3d_agree"}, [4, 4, 4], 3)
    assert loss.shared_donor
    assert loss.strategy == "greedy"


def test_what_is_implemented_nowhere_is_refused_by_name():
    with pytest.raises(ValueError, match="'dist_pred_cub' .* implemented nowhere"):
        MCRLoss.from_released_config(released())
    assert MCRLoss.from_released_config(released() | FLAGS).strategy == "greedy"
    loss = MCRLoss.from_released_config(released(), strategy="collaborative")
    assert loss.strategy == "collaborative"


def test_flat():
    config = FLAGS | {"lib": 0.5, "temperature": 0.2, "latent_dims": [4, 4], "num_classes": 3}
    loss = MCRLoss.from_released_config(config)
    weights = (loss.mipd_weight, loss.contrastive_weight, loss.ceb_weight)
    assert weights == (0.1, 1.0, 0.5)
    assert (loss.num_permutations, loss.temperature, loss.scheme) == (32, 0.2, "uniform")
    assert (loss.latent_dims, loss.num_classes, loss.divergence) == ((4, 4), 3, "jsd")
    objective = MCRObjective.from_released_config(config)
    assert objective.unimodal_weight == (0.01, 0.01)
    assert objective.schedule.window is None


def test_arguments_of_the_run_script():
    """argparse leaves strings, and None for what was not given."""
    arguments = {"l": "0.1", "multil": "3", "num_samples": "16", "reg_by": "ind", "lib": None}
    arguments |= {"config": "./MCR.json", "fold": "0", "lr": "0.0001", "wd": None, "pre": True}
    objective = MCRObjective.from_released_config(arguments, [4, 4], 3)
    assert (objective.loss.mipd_weight, objective.loss.num_permutations) == (0.1, 16)
    assert objective.unimodal_weight == (3.0, 3.0)


def test_a_command_line_leaves_strings():
    fixed = {"shuffle": "True", "use": "true", "noise": "False", "l_gradnorm": "0"}
    weights = {"combined": "1", "a": "0.0", "b": "2"}
    config = {"l": "0.1", **fixed, "multil": "3", "multi_loss": {"multi_supervised_w": weights}}
    for mode, kept in (("False", "eval"), ("True", "own"), ("0", "eval"), (True, "own")):
        loss = MCRLoss.from_released_config({**config, "training_mode": mode}, [4, 4], 3)
        assert (loss.fusion_mode, loss.mipd_weight) == (kept, 0.1)
    assert MCRObjective.from_released_config(config, [4, 4], 3).unimodal_weight == (0, 3)
    with pytest.raises(ValueError, match="noise must be False, got 'True'"):
        MCRLoss.from_released_config({**config, "noise": "True"}, [4, 4], 3)


def test_nested():
    config = released(3, "greedy", contr_coeff=2, starting_epoch=5, ending_epoch=30)
    loss = MCRLoss.from_released_config(config)
    assert (loss.latent_dims, loss.num_classes) == ((512,) * 3, 6)
    assert (loss.contrastive_weight, loss.num_permutations) == (2, 6)
    objective = MCRObjective.from_released_config(config | {"l": 0.3})
    assert objective.loss.mipd_weight == 0.3, "a flag goes before the section"
    assert objective.unimodal_weight == (1, 1, 1)
    assert objective.schedule.window == (5, 31), "the published code includes the last epoch"
    assert objective.schedule.unit == "epoch"
    inner = config["model"]["args"]
    again = MCRObjective.from_released_config(inner, [512] * 3)
    assert repr(again) == repr(MCRObjective.from_released_config(config))


def test_keys_with_dots():
    config = {"model.args.bias_infusion.l": 0.1, "model.args.bias_infusion.reg_by": "ind"}
    config |= {"model.args.num_classes": 3, "model.encoders": [{}, {}], "model.args.d_model": 4}
    loss = MCRLoss.from_released_config(config)
    assert (loss.mipd_weight, loss.strategy, loss.latent_dims) == (0.1, "independent", (4, 4))
    beside = {"model": {"args": {"num_classes": 3}}, "model.args.l": 0.2}
    assert MCRLoss.from_released_config(beside, [4, 4]).mipd_weight == 0.2


def test_what_is_absent_is_off_as_in_the_published_code():
    loss = MCRLoss.from_released_config({}, [4, 4], 3)
    assert (loss.mipd_weight, loss.contrastive_weight, loss.ceb_weight) == (0, 0, 0)
    off = MCRLoss.from_released_config({"contr_coeff": False}, [4, 4], 3)
    assert off.contrastive_weight == 0


@pytest.mark.parametrize(
    ("shuffle", "exclude"),
    [
        *(("rand", None), ("rsl", "same_label"), ("rsi", "self")),
        *(("rand_rsl", "same_label"), ("rand_rsi", "self")),
    ],
)
def test_shuffles(shuffle, exclude):
    assert MCRLoss.from_released_config({"shuffle_type": shuffle}, [4, 4], 3).exclude == exclude


def test_contrastive_types():
    latents, labels = make_latents(1, 2, 6, 4), torch.tensor([0, 1, 2, 0, 1, 1])
    fusion, heads = nn.Linear(8, 3).double(), [nn.Linear(4, 3).double() for _ in range(2)]
    config = FLAGS | {"temperature": 0.5}
    for kind, compared in (("label", labels), ("pure", None)):
        objective = MCRObjective.from_released_config(config | {"contr_type": kind}, [4, 4], 3)
        out = objective(latents, labels, fusion=fusion, unimodal_heads=heads)
        expected = mcr_fast.functional.nt_xent(latents, compared)
        torch.testing.assert_close(out.contrastive, expected)
    with pytest.warns(UserWarning, match="contr_type='pure' asks for instance labels") as caught:
        MCRLoss.from_released_config(config | {"contr_type": "pure"}, [4, 4], 3)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MCRLoss.from_released_config({"contr_type": "pure"}, [4, 4], 3)


@pytest.mark.parametrize(
    "config",
    [
        released(3, "greedy", method="ShuffleGradFinal3D_Reg", contr_coeff=1),
        released(3, "greedy", contr_coeff=1) | {"task": "regression"},
        FLAGS | {"task": "reg", "latent_dims": [512] * 3, "num_classes": 6},
    ],
)
def test_regression(config):
    objective = MCRObjective.from_released_config(config)
    assert objective.task_loss.task == "regression"
    assert objective.task_loss.regression_loss == "l1"
    assert objective.share_labels
    assert objective.loss.divergence == "mse"


def test_one_output_is_regression():
    assert MCRLoss.from_released_config({"num_classes": 1}, [4, 4]).divergence == "mse"
    given = MCRObjective.from_released_config(
        {"num_classes": 1}, [4, 4], divergence="binary_jsd", task="multilabel"
    )
    assert given.task_loss.task == "multilabel"


def test_overrides():
    objective = MCRObjective.from_released_config(
        FLAGS, [4, 4], 3, scheme="cyclic", mipd_weight=7, unimodal_weight=2, warmup=9
    )
    assert (objective.loss.scheme, objective.loss.mipd_weight) == ("cyclic", 7)
    assert (objective.unimodal_weight, objective.schedule.warmup) == ((2, 2), 9)


BAD = [
    ({"lambda": 1, "l": 1}, ValueError, r"not known: 'lambda'; known are contr_coeff, .*multil"),
    (released(2, "greedy", contr_coef=1), ValueError, "not known: 'contr_coef'"),
    (released(2, "greedy") | {"contr_coef": 1}, ValueError, "not known: 'contr_coef'"),
    ({"reg_by": "selfish"}, ValueError, "reg_by must be one of 'greedy', 'dist_pred_cjsd'"),
    ({"shuffle_type": "samelabel"}, ValueError, "shuffle_type must be one of 'rand', 'rsl'"),
    ({"contr_type": "none"}, ValueError, "contr_type must be one of 'label', 'pure'"),
    ({"contr_type": "pure", "shuffle_type": "rsl"}, ValueError, "'pure' does not go with"),
    ({"l": "much"}, TypeError, "l must be a number"),
    ({"num_samples": 2.5}, TypeError, "num_samples must be int"),
    ({"noise": True}, ValueError, "noise must be False, got True"),
    ({"task": "ranking"}, ValueError, "task must be one of"),
    ({"multi_loss": {"multi_supervised_w": {"combined": 0, "c": 1}}}, ValueError, "combined=1"),
]


@pytest.mark.parametrize(("config", "kind", "text"), BAD)
def test_bad_configurations(config, kind, text):
    with pytest.raises(kind, match=text):
        MCRObjective.from_released_config(config, [4, 4], 3)


def test_sizes_must_be_somewhere():
    with pytest.raises(ValueError, match="latent_dims must be given"):
        MCRLoss.from_released_config({"num_classes": 3, "d_model": 4})
    with pytest.raises(ValueError, match="num_classes must be given"):
        MCRLoss.from_released_config({"latent_dims": [4, 4]})
    with pytest.raises(TypeError, match="config must be a mapping"):
        MCRLoss.from_released_config([("l", 1)])


# name: C, lambda_M, lambda_uni, K, batch, lambda_C, lambda_B, lr, weight decay, pre-trained, left
# out by the run script; as printed in the run script and the configurations
TABLE = {
    "crema_d/resnet18": (6, 0.1, 0.01, 32, 32, 1, 0, 1e-4, 1e-4, True, ""),
    "crema_d/wav2vec2_conformer": (6, 0.1, 1, 32, 8, 1, 1, 5e-5, 5e-6, False, ""),
    "ave/resnet18": (28, 0.01, 0.01, 32, 32, 1, 0, 1e-4, 1e-4, True, ""),
    "ave/hubert_vivit": (28, 0.01, 1, 32, 8, 1, 1, 1e-5, 1e-4, True, ""),
    "ucf101/resnet18": (51, 0.001, 0.1, 32, 32, 1, 0, 1e-4, 1e-4, True, ""),
    "mosei_vt/transformer": (1, 0.01, 0.1, 32, 32, 1, 1, 1e-4, 1e-4, True, "blw"),
    "mosei_vta/transformer": (1, 0.001, 0.001, 32, 32, 1, 1, 1e-4, 1e-4, True, "blw"),
    "mosi_vt/transformer": (1, 0.001, 0.001, 32, 32, 1, 0, 1e-4, 1e-4, False, "bw"),
    "mosi_vta/transformer": (1, 0.01, 0.01, 32, 32, 1, 0, 1e-4, 1e-4, False, "bw"),
    "something_something_v2/swin3d_t": (174, 0.1, 1, 16, 16, 1, 1, 1e-5, 0.02, True, "bow"),
}
WIDTHS = {"resnet18": 512, "wav2vec2_conformer": 512, "hubert_vivit": 768, "transformer": 40}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name):
    recipe = PUBLISHED[name]
    row = (recipe.num_classes, recipe.mipd_weight, recipe.unimodal_weight)
    row += (recipe.num_permutations, recipe.batch_size, recipe.contrastive_weight)
    row += (recipe.ceb_weight, recipe.learning_rate, recipe.weight_decay, recipe.pretrained)
    row += ("".join(field[0] for field in recipe.defaults),)
    assert row == TABLE[name]
    assert f"d{recipe.latent_dims[0]}" in recipe.encoders
    assert recipe.latent_dims[0] == WIDTHS.get(name.split("/")[1], 768)
    assert len(set(recipe.latent_dims)) == 1
    assert len(recipe.latent_dims) == (3 if "vta" in name else 2)
    assert (recipe.strategy, recipe.temperature) == ("greedy", 0.5)
    loss = recipe.loss()
    assert (loss.mipd_weight, loss.num_permutations) == (recipe.mipd_weight, row[3])
    objective = recipe.objective(num_permutations=2, warmup=3)
    assert set(objective.unimodal_weight) == {recipe.unimodal_weight}
    assert (objective.loss.num_permutations, objective.schedule.warmup) == (2, 3)
    optimizer = recipe.optimizer(nn.Linear(1, 1).parameters())
    assert type(optimizer).__name__ == recipe.optimizer_name
    defaults = optimizer.defaults
    assert (defaults["lr"], defaults["weight_decay"]) == row[7:9]


def test_the_table_is_complete_and_frozen():
    assert set(PUBLISHED) == set(TABLE)
    with pytest.raises(TypeError):
        PUBLISHED["new"] = None
    with pytest.raises(AttributeError):
        PUBLISHED["ave/resnet18"].mipd_weight = 1


def test_a_published_regression_trains():
    objective = PUBLISHED["mosei_vta/transformer"].objective()
    fusion, heads = nn.Linear(120, 1), [nn.Linear(40, 1) for _ in range(3)]
    latents = make_latents(1, 3, 8, 40, dtype=torch.float32)
    labels = torch.tensor([0.5, 1, 0.5, -1, 2, 2, 0, 0])
    out = objective(latents, labels, fusion=fusion, unimodal_heads=heads)
    out.loss.backward()
    torch.testing.assert_close(out.contrastive, mcr_fast.functional.nt_xent(latents, labels))
