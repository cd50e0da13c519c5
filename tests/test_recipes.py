"""The recipes run, print what the docs show, and train on the gradient that they should."""

import json
import os
import re
import sys
import traceback
import types

import pytest
import torch
import torch.distributed as dist
from programs import ROOT, run_python
from ranks import found_by_rank_0
from torch import nn

import mcr_fast

pytest.importorskip("sklearn")
pytestmark = pytest.mark.process("beside")

RECIPES = ROOT / "examples/recipes"
PAGE = ROOT / "docs/recipes.md"
NUMBER = r"[\d.]+"
SIDES = [rf"{half} importance 0\.\d\d, alone {NUMBER}%" for half in ("left", "right")]
LINE = rf"epoch +\d+: loss {NUMBER}, task {NUMBER}; {'; '.join(SIDES)}; test accuracy {NUMBER}%"
LAST = rf"No modality starves at step \d+ \(importance: left {NUMBER} %, right {NUMBER} %\)\."
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def run(recipe, *arguments, launcher=(), **variables):
    """The lines of epochs that it prints."""
    script = str(RECIPES / recipe)
    printed = run_python(*launcher, script, *arguments, **variables).stdout.splitlines()
    check_lines(printed)
    return printed[:-1]


def check_lines(printed):
    """Epochs, and what the monitor says in the end."""
    *epochs, last = printed
    assert epochs
    assert all(re.fullmatch(LINE, line) for line in epochs), printed
    assert re.fullmatch(LAST, last), last


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.py")), ids=lambda path: path.name)
def test_a_recipe_is_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 120


@pytest.mark.parametrize("recipe", ["plain.py", "ddp.py", "accelerate_loop.py"])
def test_the_page_shows_what_a_recipe_prints(recipe):
    """The commands, and lines of the form that the tests below see."""
    page = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"```\n\$ (.*?)\n(.*?)```", page, re.DOTALL)
    shown = [lines for command, lines in blocks if recipe in command]
    assert shown
    for lines in shown:
        check_lines(lines.splitlines())


def test_plain_goes_on_from_its_checkpoint(tmp_path):
    file = tmp_path / "digits.pt"
    run("plain.py", "--epochs", "1", "--checkpoint", str(file), "--device", "cpu")
    state = torch.load(file, weights_only=True)
    assert state["model"]["objective._extra_state"].tolist() == [11, 11, 0]
    more = ("--epochs", "2", "--accumulate", "2")
    printed = run("plain.py", *more, "--checkpoint", str(file), "--device", "cpu")
    assert printed[0].startswith("epoch   2")
    state = torch.load(file, weights_only=True)
    assert state["model"]["objective._extra_state"].tolist() == [22, 22, 1]


@pytest.mark.slow
def test_ddp():
    assert len(run("ddp.py", "--epochs", "1", launcher=TORCHRUN, CUDA_VISIBLE_DEVICES="")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [(), TORCHRUN])
def test_accelerate(launcher):
    pytest.importorskip("accelerate")
    more = ("--cpu", "--accumulate", "2", "--mixed-precision", "bf16")
    assert len(run("accelerate_loop.py", "--epochs", "1", *more, launcher=launcher)) == 1


@pytest.mark.slow
def test_accelerate_with_a_published_configuration(tmp_path):
    pytest.importorskip("accelerate")
    section = {"l": 0.1, "num_samples": 8, "reg_by": "greedy", "contr_coeff": 1, "ending_epoch": 0}
    config = {"model": {"args": {"bias_infusion": section, "d_model": 512}}, "multil": 0.01}
    file = tmp_path / "MCR.json"
    file.write_text(json.dumps(config))
    run("accelerate_loop.py", "--epochs", "2", "--cpu", "--config", str(file))


def blocks():
    """The page's Python."""
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_page_reads_a_published_setting(capsys):
    exec(compile(blocks()[0], str(PAGE), "exec"), {})
    assert capsys.readouterr().out == "32 0.0001 True\n"


def test_the_page_has_a_trainer_class(monkeypatch):
    """In a toolkit of the same form: a base class, a model that keeps its encoders' results."""

    class BaseTrainer:
        def __init__(self, fabric, max_epochs=1):
            self.fabric, self.current_epoch = fabric, 0

    toolkit = types.ModuleType("balancemm.trainer.base_trainer")
    toolkit.BaseTrainer = BaseTrainer
    for name in ("balancemm", "balancemm.trainer"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, toolkit.__name__, toolkit)
    names = {}
    exec(compile(blocks()[1], str(PAGE), "exec"), names)

    class Model(nn.Module):
        modalitys, device = ("audio", "visual"), "cpu"

        def __init__(self):
            super().__init__()
            self.encoders = nn.ModuleDict({name: nn.Linear(4, 4) for name in self.modalitys})
            self.fusion_module = nn.Module()
            self.fusion_module.fc_out = nn.Linear(8, 3)

        def forward(self, batch):
            results = {name: self.encoders[name](batch[name]) for name in self.modalitys}
            self.encoder_result = results

    settings = {"l": 0.1, "multil": 1, "contr_coeff": 1, "reg_by": "greedy", "base_para": {}}
    trainer, model = names["MCRTrainer"](None, settings, {"max_epochs": 3}), Model()
    batch = {name: torch.randn(6, 4) for name in Model.modalitys}
    loss = trainer.training_step(model, batch | {"label": torch.arange(6) % 3}, 0)
    assert loss.requires_grad
    assert all(p.grad.any() for p in model.parameters())
    assert trainer.objective.unimodal_weight == (1, 1)


# The gradient: at 1 and 4 batches a step, in 1 and 2 processes, that of the mean over all batches.
# accelerate starts the process group that the other recipe uses too.

WORLDS, ACCUMULATIONS = (1, 2), (1, 4)


def build(group=None, contrastive_weight=1.0):
    """A model whose loss draws nothing, so that any two runs of a batch agree."""
    from digits import LATENT, NUM_CLASSES, TwoHalves

    torch.manual_seed(0)
    options = {"num_permutations": "all", "mipd_weight": 1.0, "ceb_weight": 0.5}
    options |= {"contrastive_weight": contrastive_weight, "process_group": group}
    loss = mcr_fast.MCRLoss([LATENT] * 2, NUM_CLASSES, strategy="independent", **options)
    return TwoHalves(mcr_fast.MCRObjective(loss, unimodal_weight=2.0)).double()


def expected_gradient(world, accumulate):
    """Of the mean over batches: of their rows' losses, and of L_Con over all ranks' rows."""
    model, losses = build(contrastive_weight=0.0), []
    for index in range(accumulate):
        batches = [batch_of(rank, index) for rank in range(world)]
        losses += [model(*batch).loss / world for batch in batches]
        *halves, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        latents = [encode(x) for encode, x in zip(model.encoders, halves, strict=True)]
        losses.append(mcr_fast.functional.nt_xent(latents, labels))
    (torch.stack(losses).sum() / accumulate).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def batch_of(rank, index):
    generator = torch.Generator().manual_seed(10 * rank + index)
    halves = [torch.randn(8, 32, generator=generator, dtype=torch.float64) for _ in range(2)]
    return [*halves, torch.arange(8) % 3]


def moved(model, before):
    """The gradient of a step of plain descent with a rate of 1."""
    after = nn.utils.parameters_to_vector(model.parameters()).detach()
    return (before - after).tolist()


def step_of(way, rank, accumulate):
    """The gradient that one step of the recipe takes."""
    if way == "accelerate":
        import accelerate_loop
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    model = build(dist.group.WORLD)
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    batches = [batch_of(rank, index) for index in range(accumulate)]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    if way == "accelerate":
        wrapped, optimizer = accelerator.prepare(model, optimizer)
        for batch in batches:
            accelerate_loop.train_batch(accelerator, wrapped, optimizer, batch)
    else:
        import ddp

        wrapped = nn.parallel.DistributedDataParallel(model)
        ddp.step(wrapped, optimizer, batches, torch.device("cpu"))
    return moved(model, before)


def worker(rank, world, port, queue):
    sys.path.insert(0, str(RECIPES))
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    try:
        cases = [(way, a) for way in ("accelerate", "ddp") for a in ACCUMULATIONS]
        found = {(world, *case): step_of(case[0], rank, case[1]) for case in cases}
    except Exception:
        queue.put(traceback.format_exc())  # at once, not after a timeout
        raise
    if rank == 0:
        queue.put(found)
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def steps():
    """The gradients of rank 0 by processes, recipe and accumulation."""
    pytest.importorskip("accelerate")
    return found_by_rank_0(worker, WORLDS, limit=120)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["accelerate", "ddp"])
@pytest.mark.parametrize("accumulate", ACCUMULATIONS)
@pytest.mark.parametrize("world", WORLDS)
def test_gradient_counts_every_part_once(way, accumulate, world, steps, monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    ours = torch.tensor(steps[world, way, accumulate], dtype=torch.float64)
    expected = expected_gradient(world, accumulate)
    torch.testing.assert_close(ours, expected)
    assert (ours @ expected / expected.square().sum()).item() == pytest.approx(1.0, abs=1e-9)
