"""The monitor in the trainers of Lightning and Hugging Face, which really train."""

import csv
import warnings

import pytest
import torch
from monitored import NAMES, C, D, Game
from torch import nn
from torch.utils.data import DataLoader, Dataset

import mcr_fast
from mcr_fast import MCRMonitor
from mcr_fast.monitor import CSVLog

ROWS, BATCH, EPOCHS = 24, 8, 2


class Rows(Dataset):
    def __len__(self):
        return ROWS

    def __getitem__(self, at):
        g = torch.Generator().manual_seed(at)
        return {"x": torch.randn(2, D, generator=g), "labels": at % C}


class Net(nn.Module):
    """What a Trainer trains: its forward returns the loss."""

    def __init__(self):
        super().__init__()
        self.game = nn.ModuleList([nn.Linear(D, D) for _ in range(2)])
        self.heads = nn.ModuleList([nn.Linear(D, C) for _ in range(2)])
        self.fusion = nn.Linear(2 * D, C)
        self.objective = mcr_fast.MCRObjective(mcr_fast.MCRLoss([D, D], C, num_permutations=3))

    def forward(self, x, labels):
        latents = [encode(x[:, m]) for m, encode in enumerate(self.game)]
        out = self.objective(latents, labels, fusion=self.fusion, unimodal_heads=self.heads)
        return {"loss": out.loss, "logits": out.logits}


def lightning_package(name):
    module = pytest.importorskip(name)
    return module


def lit(package):
    class Lit(package.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def training_step(self, batch, _):
            return self.net(**batch)["loss"]

        def validation_step(self, batch, _):
            self.net(**batch)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Lit()


@pytest.mark.parametrize("name", ["lightning.pytorch", "pytorch_lightning"])
def test_lightning(name, tmp_path):
    package = lightning_package(name)
    from mcr_fast.monitor.lightning import MCRCallback

    monitor = MCRMonitor(NAMES, every=2)
    logger = package.loggers.CSVLogger(tmp_path / "csv", flush_logs_every_n_steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = package.Trainer(
            max_epochs=EPOCHS,
            accelerator="cpu",
            logger=logger,
            callbacks=[MCRCallback(monitor)],
            default_root_dir=tmp_path,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1,
        )
        loader = DataLoader(Rows(), BATCH)
        model = lit(package)
        trainer.fit(model, loader, loader)
    assert monitor.step == EPOCHS * ROWS // BATCH  # no validation among them
    assert [record["epoch"] for record in monitor.epochs] == [0, 1]
    assert [record["step"] for record in monitor.history] == [2, 4, 6]
    last = monitor.history[-1]
    for kind in ("importance", "unimodal_accuracy", "grad_task", "grad_norm"):
        assert all(last[f"{kind}/{name}"] >= 0 for name in NAMES), kind
    with (tmp_path / "csv/lightning_logs/version_0/metrics.csv").open(newline="") as file:
        found = [row["mcr/importance/audio"] for row in csv.DictReader(file)]
    assert [float(x) for x in found if x] == pytest.approx(
        [record["importance/audio"] for record in monitor.history], rel=1e-4
    )
    assert not model.net.objective._forward_hooks

    again = MCRMonitor(NAMES, every=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=False)
    again.load_state_dict(state["callbacks"]["MCRCallback"])
    assert again.step > 0


def test_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from mcr_fast.monitor.huggingface import MCRTrainerCallback

    monitor = MCRMonitor(NAMES, every=2, log=CSVLog(tmp_path / "mcr.csv"))
    args = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=BATCH,
        num_train_epochs=EPOCHS,
        logging_steps=2,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    model = Net()
    callbacks = [MCRTrainerCallback(monitor)]
    trainer = transformers.Trainer(model, args, train_dataset=Rows(), callbacks=callbacks)
    trainer.train()
    monitor.close()
    assert monitor.step == EPOCHS * ROWS // BATCH
    assert len(monitor.epochs) == EPOCHS
    logged = [entry for entry in trainer.state.log_history if "mcr/importance/audio" in entry]
    assert [entry["mcr/step"] for entry in logged] == [2, 4, 6]
    assert logged[-1]["mcr/importance/audio"] == monitor.history[-1]["importance/audio"]
    assert (tmp_path / "mcr.csv").read_text().count("\n") == 4
    assert not model.objective._forward_hooks


def test_which_loss():
    from mcr_fast.monitor._trained import Watched, loss_of

    net = Net()
    assert loss_of(net) is net.objective
    assert loss_of(nn.ModuleList([Game().mcr])).latent_dims == (D, D)
    with pytest.raises(ValueError, match="loss must be given: ModuleList holds 2 modules"):
        loss_of(nn.ModuleList([Game().mcr, Game().mcr]))
    with pytest.raises(ValueError, match="loss must be given: Linear holds 0 modules"):
        loss_of(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="monitor must be an MCRMonitor"):
        Watched(net, None)
