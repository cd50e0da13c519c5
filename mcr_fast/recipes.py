"""The settings of the published runs, as data: ``mcr_fast.recipes.PUBLISHED["crema_d/resnet18"]``.

They are those of the paper's released run script. Where it leaves a flag out, the value is the one
in that data set's configuration, and `Recipe.defaults` names the field. What is common to all: the
greedy strategy, independent permutations, one contrastive temperature of 0.5 (0.1 in the code's
standalone file), cosine annealing of the learning rate with warm restarts after
`Recipe.lr_warmup_steps` steps at its full value, and weight 1 for the task loss.

"Pre-trained" means that the encoders start from unimodal training on the same data; the published
gain is over models that start there too.

Reference:
    arXiv 2411.07335 and its code.

Example:
    >>> import torch, mcr_fast
    >>> recipe = mcr_fast.recipes.PUBLISHED["crema_d/resnet18"]
    >>> recipe.mipd_weight, recipe.unimodal_weight, recipe.batch_size
    (0.1, 0.01, 32)
    >>> objective = recipe.objective()
    >>> optimizer = recipe.optimizer([*objective.parameters(), *torch.nn.Linear(2, 2).parameters()])
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch

from mcr_fast._names import Strategy
from mcr_fast._task import DIVERGENCE_OF, TaskName
from mcr_fast.modules import MCRLoss
from mcr_fast.objective import OPTIONS, MCRObjective

__all__ = ["PUBLISHED", "Recipe"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One published run.

    Attributes:
        data, encoders: what was trained, on what.
        latent_dims: width of each modality's latents.
        num_classes: C, 1 for regression.
        task: ``"classification"`` or ``"regression"``, of which the loss is L1.
        mipd_weight: lambda_M.
        unimodal_weight: lambda_uni.
        contrastive_weight: lambda_C.
        ceb_weight: lambda_B; 0 where the script has none.
        num_permutations: K.
        strategy: of the game.
        temperature: of L_Con.
        batch_size: rows of a batch.
        optimizer_name, learning_rate, weight_decay: of the optimizer.
        lr_warmup_steps: steps at the full learning rate, before it is annealed.
        clip_norm: the norm that gradients are clipped to, None for none.
        pretrained: whether the encoders were trained alone before.
        defaults: the fields that the run script leaves to the configuration.
        note: what else to know.
    """

    data: str
    encoders: str
    latent_dims: tuple[int, ...]
    num_classes: int
    task: TaskName = "classification"
    mipd_weight: float
    unimodal_weight: float
    contrastive_weight: float = 1.0
    ceb_weight: float = 0.0
    num_permutations: int = 32
    strategy: Strategy = "greedy"
    temperature: float = 0.5
    batch_size: int = 32
    optimizer_name: Literal["Adam", "AdamW"] = "Adam"
    learning_rate: float = 1e-4
    weight_decay: float = 1e-4
    lr_warmup_steps: int = 780
    clip_norm: float | None = None
    pretrained: bool = True
    defaults: tuple[str, ...] = ()
    note: str = ""

    def loss(self, **overrides: Any) -> MCRLoss:
        """The regularizer; `overrides` are options of `MCRLoss`."""
        names = (
            *("latent_dims", "num_classes", "mipd_weight", "contrastive_weight", "ceb_weight"),
            *("num_permutations", "strategy", "temperature"),
        )
        options = {name: getattr(self, name) for name in names}
        options |= {"scheme": "uniform", "divergence": DIVERGENCE_OF[self.task]}
        return MCRLoss(**options | overrides)

    def objective(self, **overrides: Any) -> MCRObjective:
        """Algorithm 1; `overrides` are options of `MCRObjective` and of `MCRLoss`.

        Regression compares rows by their labels, as the published code does.
        """
        options: dict[str, Any] = {"unimodal_weight": self.unimodal_weight, "task": self.task}
        if self.task == "regression":
            options |= {"regression_loss": "l1", "share_labels": True}
        options |= {name: overrides.pop(name) for name in OPTIONS if name in overrides}
        return MCRObjective(self.loss(**overrides), **options)

    def optimizer(self, parameters: Iterable[Any], **overrides: Any) -> torch.optim.Optimizer:
        """Adam or AdamW over parameters or groups of them; do not forget those of the objective."""
        options: dict[str, Any] = {"lr": self.learning_rate, "weight_decay": self.weight_decay}
        if self.optimizer_name == "Adam":
            options["eps"] = 1e-7  # as in the published code
        return getattr(torch.optim, self.optimizer_name)(parameters, **options | overrides)


_LEFT_OUT = ("batch_size", "learning_rate", "weight_decay")


def _sentiment(data: str, modalities: int, defaults: tuple[str, ...], **settings: Any) -> Recipe:
    """Regression on features of text, video and maybe audio."""
    return Recipe(
        data=data,
        encoders="Transformer d40",
        latent_dims=(40,) * modalities,
        num_classes=1,
        task="regression",
        defaults=defaults,
        **settings,
    )


PUBLISHED: Mapping[str, Recipe] = MappingProxyType(
    {
        "crema_d/resnet18": Recipe(
            data="CREMA-D",
            encoders="ResNet18 d512",
            latent_dims=(512, 512),
            num_classes=6,
            mipd_weight=0.1,
            unimodal_weight=0.01,
            note="the released README has lambda_M = 0.01 where the run script has 0.1",
        ),
        "crema_d/wav2vec2_conformer": Recipe(
            data="CREMA-D",
            encoders="Wav2Vec2 + face conformer d512",
            latent_dims=(512, 512),
            num_classes=6,
            mipd_weight=0.1,
            unimodal_weight=1.0,
            ceb_weight=1.0,
            batch_size=8,
            learning_rate=5e-5,
            weight_decay=5e-6,
            pretrained=False,
        ),
        "ave/resnet18": Recipe(
            data="AVE",
            encoders="ResNet18 d512",
            latent_dims=(512, 512),
            num_classes=28,
            mipd_weight=0.01,
            unimodal_weight=0.01,
        ),
        "ave/hubert_vivit": Recipe(
            data="AVE",
            encoders="HuBERT + ViViT d768",
            latent_dims=(768, 768),
            num_classes=28,
            mipd_weight=0.01,
            unimodal_weight=1.0,
            ceb_weight=1.0,
            batch_size=8,
            learning_rate=1e-5,
            lr_warmup_steps=1500,
        ),
        "ucf101/resnet18": Recipe(
            data="UCF101 (51 classes, fold 1)",
            encoders="ResNet18 d512",
            latent_dims=(512, 512),
            num_classes=51,
            mipd_weight=0.001,
            unimodal_weight=0.1,
        ),
        "mosei_vt/transformer": _sentiment(
            "MOSEI V-T", 2, _LEFT_OUT, mipd_weight=0.01, unimodal_weight=0.1, ceb_weight=1.0
        ),
        "mosei_vta/transformer": _sentiment(
            "MOSEI V-T-A", 3, _LEFT_OUT, mipd_weight=0.001, unimodal_weight=0.001, ceb_weight=1.0
        ),
        "mosi_vt/transformer": _sentiment(
            "MOSI V-T",
            2,
            ("batch_size", "weight_decay"),
            mipd_weight=0.001,
            unimodal_weight=0.001,
            pretrained=False,
        ),
        "mosi_vta/transformer": _sentiment(
            "MOSI V-T-A",
            3,
            ("batch_size", "weight_decay"),
            mipd_weight=0.01,
            unimodal_weight=0.01,
            pretrained=False,
        ),
        "something_something_v2/swin3d_t": Recipe(
            data="Something-Something v2, video + flow",
            encoders="Swin3D-T d768",
            latent_dims=(768, 768),
            num_classes=174,
            mipd_weight=0.1,
            unimodal_weight=1.0,
            ceb_weight=1.0,
            num_permutations=16,
            batch_size=16,
            optimizer_name="AdamW",
            learning_rate=1e-5,
            weight_decay=0.02,
            lr_warmup_steps=31655,
            clip_norm=5.0,
            defaults=("batch_size", "optimizer_name", "weight_decay"),
        ),
    }
)
