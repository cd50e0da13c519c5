"""The recipes of Lightning, Fabric and Hugging Face: they run, and every part counts once."""

import os
import re
import sys
import tempfile
import traceback

import pytest
import torch
import torch.distributed as dist
from programs import ROOT
from ranks import found_by_rank_0
from test_recipes import ACCUMULATIONS, RECIPES, WORLDS, batch_of, build, moved, run_python

pytest.importorskip("sklearn")
pytestmark = pytest.mark.process("beside")

PAGE = ROOT / "docs/recipes-frameworks.md"
NUMBER, SHARE, PERCENT = r"[\d.]+", r"[01]\.\d\d", r"[\d.]+ ?%"
SHORT = [
    *([rf"epoch +\d+: loss {NUMBER}; importance: left {SHARE}, right {SHARE}"]),
    rf"test accuracy {PERCENT}",
]
SUMMARY = (
    r"(No modality starves at step \d+ \(importance: .*\)\.|Nothing was seen yet\.|.*starves.*)"
)
LINES = {
    "lightning_module.py": [*SHORT, SUMMARY],
    "fabric_loop.py": [rf"epoch +\d+: loss {NUMBER}, task .*; test accuracy {PERCENT}", SUMMARY],
    "hf_trainer.py": [*SHORT, SUMMARY],
}
NEEDS = {
    "lightning_module.py": ("lightning",),
    "fabric_loop.py": ("lightning",),
    "hf_trainer.py": ("transformers", "accelerate"),
}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def check_lines(recipe, lines):
    """Each is of one of the forms that the recipe prints, and none of these is missing."""
    forms = LINES[recipe]
    for line in lines:
        assert any(re.fullmatch(form, line) for form in forms), line
    for form in forms:
        assert any(re.fullmatch(form, line) for line in lines), form


def run(recipe, *arguments, launcher=()):
    for needed in NEEDS[recipe]:
        pytest.importorskip(needed)
    script = str(RECIPES / recipe)
    given = ("--epochs", "2", *arguments)
    printed = run_python(*launcher, script, *given, CUDA_VISIBLE_DEVICES="").stdout
    check_lines(recipe, printed.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("recipe", LINES)
def test_runs_with_accumulation(recipe):
    run(recipe, "--accumulate", "2", *(["--bf16"] if recipe == "hf_trainer.py" else []))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", LINES)
def test_runs_in_two_processes(recipe):
    by_itself = recipe != "hf_trainer.py"
    run(recipe, *(["--devices", "2"] if by_itself else []), launcher=() if by_itself else TORCHRUN)


@pytest.mark.parametrize("recipe", LINES)
def test_the_page_shows_what_a_recipe_prints(recipe):
    page = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"```\n\$ (.*?)\n(.*?)```", page, re.DOTALL)
    shown = [lines for command, lines in blocks if recipe in command]
    assert shown
    for lines in shown:
        check_lines(recipe, lines.splitlines())


# The gradient of one step, in float64: at 1 and 4 batches, in 1 and 2 processes.


def by_lightning(model, batches, rank, world):
    import lightning.pytorch as pl
    from lightning_module import DigitsModule

    class Descends(DigitsModule):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1.0)

    module = Descends(model.objective)
    module.model = model
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        accumulate_grad_batches=len(batches),
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))


def by_fabric(model, batches, rank, world):
    import fabric_loop
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=world, strategy="ddp" if world > 1 else "auto")
    fabric.launch()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    wrapped, optimizer = fabric.setup(model, optimizer)
    fabric_loop.step(fabric, wrapped, optimizer, batches)


def by_transformers(model, batches, rank, world):
    import hf_trainer
    from torch.utils.data import SequentialSampler
    from transformers import TrainingArguments

    class InOrder(hf_trainer.MCRTrainer):
        def _get_train_sampler(self, dataset=None):
            return SequentialSampler(self.train_dataset)

    # batches go round the processes
    every = [batch_of(r, index) for index in range(len(batches)) for r in range(world)]
    names = ("left", "right", "labels")
    rows = [dict(zip(names, row, strict=True)) for b in every for row in zip(*b, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            max_steps=1,
            per_device_train_batch_size=len(batches[0][2]),
            gradient_accumulation_steps=len(batches),
            max_grad_norm=0.0,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
        InOrder(model, args, train_dataset=rows, optimizers=(optimizer, schedule)).train()


WAYS = {
    "transformers": by_transformers,
    "lightning": by_lightning,
    "fabric": by_fabric,
}


def step_of(way, rank, world, accumulate):
    model = build()
    before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    WAYS[way](model, [batch_of(rank, index) for index in range(accumulate)], rank, world)
    return moved(model, before)


def worker(rank, world, port, queue):
    sys.path.insert(0, str(RECIPES))
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "test"}
    sizes = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "OMP_NUM_THREADS": 1}
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in (ranks | sizes | where).items()}
    torch.set_num_threads(1)
    try:
        cases = [(way, a) for way in WAYS for a in ACCUMULATIONS]
        found = {(world, *case): step_of(case[0], rank, world, case[1]) for case in cases}
    except Exception:
        queue.put(traceback.format_exc())  # at once, not after a timeout
        raise
    if rank == 0:
        queue.put(found)
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def steps():
    """The gradients of rank 0 by processes, framework and accumulation."""
    for needed in ("lightning", "transformers", "accelerate"):
        pytest.importorskip(needed)
    return found_by_rank_0(worker, WORLDS, limit=240)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("accumulate", ACCUMULATIONS)
@pytest.mark.parametrize("world", WORLDS)
def test_gradient_counts_every_part_once(way, accumulate, world, steps, monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    ours = torch.tensor(steps[world, way, accumulate], dtype=torch.float64)
    model, losses = build(), []
    for rank in range(world):
        losses += [model(*batch_of(rank, index)).loss for index in range(accumulate)]
    torch.stack(losses).mean().backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(ours, expected)
    assert (ours @ expected / expected.square().sum()).item() == pytest.approx(1.0, abs=1e-9)
