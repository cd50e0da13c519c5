"""Hugging Face's Trainer, with the loss where it counts once.

    python examples/recipes/hf_trainer.py [--epochs 40] [--accumulate 1]

or torchrun for several processes.
"""

import argparse
import tempfile

import torch
from digits import BATCH, HALVES, TwoHalves, accuracy, load, make_objective
from torch.utils.data import Dataset, TensorDataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

import mcr_fast
from mcr_fast.monitor.huggingface import MCRTrainerCallback


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--accumulate", type=int, default=1, help="batches of one step")
    parser.add_argument("--bf16", action="store_true", help="mixed precision")
    return parser.parse_args()


class MCRTrainer(Trainer):
    """A Trainer for a model whose output has the objective's loss, a mean over the batch's rows.

    The loss is returned by `compute_loss`, not by `compute_loss_func`: what that gives counts as
    divided by all rows of a step already, and the Trainer multiplies it by the processes and
    divides it by nothing. Nor may the model be one that takes the number of items.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = False

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        out = model(**inputs)
        return (out.loss, {"logits": out.logits}) if return_outputs else out.loss


class Rows(Dataset):
    """Rows by name, as a Trainer takes them."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, at: int) -> dict[str, torch.Tensor]:
        return dict(zip(("left", "right", "labels"), self.data[at], strict=True))


class TellsEpoch(TrainerCallback):
    """For a window in epochs; and every process draws permutations of its own."""

    def on_train_begin(self, args, state, control, **_) -> None:
        torch.manual_seed(args.seed + args.process_index)

    def on_epoch_begin(self, args, state, control, model, **_) -> None:
        model.objective.set_epoch(int(state.epoch or 0))


def main() -> None:
    arguments = parse()
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        torch.set_num_threads(1)
    torch.manual_seed(0)
    train, test = load()
    model = TwoHalves(make_objective(warmup=100))
    monitor = mcr_fast.MCRMonitor(HALVES, every=20, process_group="world")
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            num_train_epochs=arguments.epochs,
            gradient_accumulation_steps=arguments.accumulate,
            bf16=arguments.bf16,
            use_cpu=not on_gpu,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_drop_last=True,
        )
        # of all processes together, as in the other recipes
        args.per_device_train_batch_size = BATCH // args.world_size
        callbacks = [MCRTrainerCallback(monitor), TellsEpoch()]
        trainer = MCRTrainer(model, args, train_dataset=Rows(train), callbacks=callbacks)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    if args.process_index == 0:
        for record in monitor.epochs[9::10] or monitor.epochs:
            sides = ", ".join(f"{name} {record[f'importance/{name}']:.2f}" for name in HALVES)
            print(f"epoch {record['epoch'] + 1:3}: loss {record['loss']:.3f}; importance: {sides}")
        print(f"test accuracy {accuracy(model, test):.1%}")
        print(monitor.summary())


if __name__ == "__main__":
    main()
