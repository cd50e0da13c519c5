"""The monitor: what it takes from a step, what it reads, what it says."""

import math
from collections import deque
from collections.abc import Callable, MutableMapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from mcr_fast import _checks as checks
from mcr_fast._checks.later import LateValues
from mcr_fast._watch import LEAST
from mcr_fast.monitor._gradients import Contrasted, write_products
from mcr_fast.monitor._hooks import Leaves, Norms, Watch
from mcr_fast.monitor._means import Means, Span
from mcr_fast.monitor._numbers import Numbers
from mcr_fast.monitor._rows import TERMS, kinds, per_modality
from mcr_fast.monitor._seen import (
    group_of,
    names_of,
    same_device,
    trains,
    write_hits,
)
from mcr_fast.monitor._story import Record, summary_of
from mcr_fast.ops._listen import Heard, listen

Average = Literal["window", "exponential"]
Log = Callable[[int, dict[str, float]], Any] | MutableMapping[str, float]
_OF_OUTPUT = ("loss", "mipd", "contrastive", "ceb", "logits", "divergences", "importance")


class MCRMonitor:
    """Running means of what the regularizer does to each modality: who starves, and since when.

    `update` after each forward, or `watch` once. Means stay on the device and nothing waits for
    it; every `every` updates they are fetched without waiting, kept in `history` and handed to
    `log`. `read` gives them at once as a flat dict of floats, `summary` in words, `plot` as a
    figure. What was not to be seen is NaN, never a guess. docs/monitor.md has each name's formula.

    Args:
        modalities: their names, in the order of the latents; or how many there are, then called
            ``"modality_0"`` and so on.
        every: updates from one record to the next; None: no records, read it yourself.
        log: where records go: a callable of (step, values), a dict to be updated, `CSVLog`,
            `TensorBoardLog`, `WandbLog`, or a list of these.
        window: how many of the last updates the means are of; None: `every`, or 50 without it.
        average: ``"window"``, each row of the window's batches counts the same, or
            ``"exponential"``, where a batch's weight falls by 1 - 1 / window an update.
        stride: accuracies and gradients are looked at in every so manieth update, the terms in
            each; 1: all in each.
        gradients: listen to the backward: norms of gradients, and the cosine.
        starves_below: the importance under which a modality starves.
        process_group: None: this process alone. A group of ``torch.distributed``, or ``"world"``
            for all processes if there are several by then: means over its ranks, weighted by their
            rows, in one all-reduce a record or read. All its ranks must update and read equally
            often, and the first one writes the log.

    Raises:
        ValueError, TypeError: bad names or options; in `update` what is no output of `MCRLoss`
            or does not fit the names.

    Example:
        >>> import torch, mcr_fast
        >>> mcr, fusion = mcr_fast.MCRLoss([4, 4], num_classes=3), torch.nn.Linear(8, 3)
        >>> monitor = mcr_fast.MCRMonitor(["image", "audio"], every=2)
        >>> latents = [torch.randn(6, 4, requires_grad=True) for _ in range(2)]
        >>> for _ in range(2):
        ...     out = mcr(latents, torch.arange(6) % 3, fusion=fusion)
        ...     monitor.update(out, torch.arange(6) % 3)
        ...     out.loss.backward()
        >>> values = monitor.read()
        >>> round(values["importance/image"] + values["importance/audio"], 6)
        1.0
    """

    def __init__(
        self,
        modalities: Sequence[str] | int,
        *,
        every: int | None = 50,
        log: Log | Sequence[Log] = (),
        window: int | None = None,
        average: Average = "window",
        stride: int = 4,
        gradients: bool = True,
        starves_below: float = LEAST,
        process_group: Any = None,
    ) -> None:
        self.modalities = names_of(modalities)
        self.every = None if every is None else checks.whole("every", every)
        window = self.every or 50 if window is None else checks.whole("window", window)
        checks.choice("average", average, get_args(Average))
        self.stride = checks.whole("stride", stride)
        if isinstance(process_group, str):
            checks.choice("process_group", process_group, ("world",))
        self.gradients, self.process_group = bool(gradients), process_group
        self.starves_below = checks.positive("starves_below", starves_below)
        one = callable(log) or isinstance(log, MutableMapping)
        self.logs: list[Any] = [log] if one else list(log)  # type: ignore[arg-type]
        for each in self.logs:
            if not callable(each) and not isinstance(each, MutableMapping):
                raise TypeError(f"log must hold callables of (step, values) or dicts, got {each!r}")
        self._kinds = kinds(self.modalities)
        self._means: dict[str, Means] = {}
        for name, kind in self._kinds.items():
            rows = window if name == "terms" else max(1, window // self.stride)
            decay = 1 - 1 / rows if average == "exponential" else None
            how = (len(kind.names), kind.derive, rows, decay)
            self._means[name] = Means(kind.parts, *how)
        self._numbers = Numbers()
        self.step = self.epoch = 0
        self.history: list[Record] = []
        self.epochs: list[Record] = []
        self._asked: deque[tuple[int, int, LateValues]] = deque()
        self._contrasted: Contrasted | None = None  # of the forward that runs
        self._leaves = Leaves()
        self._idle: list[LateValues] = []  # whose pinned memory serves again
        self._device = torch.device("cpu")
        self._form: tuple[Any, Any] = (None, None)  # of the last output

    @_disable_dynamo
    def update(
        self,
        out: Any,
        labels: Tensor | None = None,  # [N] or [N, C]
        unimodal_logits: Sequence[Tensor] | None = None,  # M tensors [N, C]
        *,
        latents: Sequence[Tensor] | None = None,  # M tensors
        present: Tensor | None = None,  # [N, M]
        candidates: int | None = None,
    ) -> None:
        """One step, after its forward and before its backward.

        Args:
            out: what `MCRLoss` or `MCRObjective` returned.
            labels: for accuracies. Classes [N], of which negative ones are left out; or, for
                several labels at once, booleans or integers [N, C].
            unimodal_logits: of each modality's own head, for its accuracy.
            latents: what the loss was given, for the norm of all that each encoder gets back.
            present: what the loss was given; rows without a modality do not count for it.
            candidates: rows among which L_Con finds a row's partner, N (of all ranks if the loss
                is over a process group), or the least number of present rows: for the bound on
                mutual information, which holds with instance labels (labels=None) alone.
        """
        if torch.is_inference_mode_enabled():  # what is made there cannot be written to elsewhere
            given: Any = {"latents": latents, "present": present, "candidates": candidates}
            with torch.inference_mode(False):
                return self.update(out, labels, unimodal_logits, **given)
        self._check(out)
        if not trains(out.divergences):
            return
        if labels is None and unimodal_logits is not None:
            raise ValueError("labels must be given with unimodal_logits, got None")
        with torch.no_grad():
            if unimodal_logits is None:
                unimodal_logits = getattr(out, "unimodal_logits", None)
            self._see_terms(out, unimodal_logits, candidates)
            if self.step % self.stride == 0 and labels is not None:
                row = self._means["hits"].next_row(out.divergences)
                write_hits(row, out.logits, labels, unimodal_logits, present)
        if latents is not None:
            self._leaves.release(latents)
        if self.step % self.stride == 0 and self.gradients:
            self._listen(out, latents)
        self.step += 1
        if self._asked:
            self._deliver(wait=False)
        if self.every is not None and self.step % self.every == 0:
            self._record()

    def _check(self, out: Any) -> None:
        form = type(out), out.divergences.device if type(out) is self._form[0] else None
        if form == self._form and len(out.importance) == len(self.modalities):
            return
        missing = [name for name in _OF_OUTPUT if not isinstance(getattr(out, name, None), Tensor)]
        if missing:
            raise TypeError(
                "out must be what MCRLoss or MCRObjective returned; "
                f"{type(out).__name__} has no tensor {', '.join(missing)}"
            )
        if len(out.importance) != len(self.modalities):
            raise ValueError(
                f"modalities must name the {len(out.importance)} modalities of out, got "
                f"{len(self.modalities)}: {', '.join(self.modalities)}"
            )
        self._form = type(out), out.divergences.device
        self._device = out.divergences.device

    def _see_terms(
        self, out: Any, unimodal_logits: Sequence[Tensor | None] | None, candidates: int | None
    ) -> None:
        like, rows, count = out.divergences, len(out.logits), len(self.modalities)
        terms = (out.mipd, out.contrastive, out.ceb)
        # without a gradient it may not have been computed, which its value tells once it is read
        there = [rows if term.requires_grad else -rows for term in terms]
        own, task, bound, logarithm = [0] * count, 0, 0, 0.0
        values = [out.loss, *terms]
        if hasattr(out, "task"):
            task = rows
            values.append(out.task)
            own = [0 if x is None else rows for x in unimodal_logits or own]
        else:
            values.append(self._numbers.one(0, like))
        if candidates is not None:
            logarithm = math.log(checks.whole("candidates", candidates))
            bound = there[1]
        weights = self._numbers.row((rows, *there, task, bound, *own), like)
        divergences = like if len(like) == count else like[:count]
        made = [weights, *values, self._numbers.one(logarithm, like), divergences]
        if task:
            made.append(out.unimodal)
        # one call, where a call each would cost more than all else here
        torch._foreach_copy_(self._means["terms"].next_row(like)[: len(made)], made)

    def _listen(self, out: Any, latents: Sequence[Tensor] | None) -> None:
        contrasted, self._contrasted = self._contrasted, None
        if out.mipd.requires_grad:
            absent = not out.contrastive.requires_grad
            listen(out.mipd, partial(self._hear, contrasted, absent))
        if latents is None:
            return
        if len(latents) != len(self.modalities):
            wanted = len(self.modalities)
            raise ValueError(f"latents must hold {wanted} modalities, got {len(latents)}")
        norms = Norms(self._means["norms"])
        for m, z in enumerate(latents):
            if z.requires_grad:
                self._leaves.keep(z, z.register_hook(partial(norms.hear, m)))

    def _hear(self, contrasted: Contrasted | None, absent: bool, heard: Heard) -> None:
        if contrasted is not None and heard.unit_grad_rows is None:
            contrasted.join(partial(self._write, absent, heard))
        else:
            self._write(absent, heard)

    def _write(self, absent: bool, heard: Heard, *contrasted: Tensor) -> None:
        row = self._means["products"].next_row(heard.unit_grad)
        write_products(row, self._numbers, heard, *contrasted, absent=absent)

    def watch(self, module: nn.Module, *, unimodal_logits: Any = None) -> Watch:
        """Update after every training forward of an `MCRLoss` or `MCRObjective`, by a hook.

        Labels, latents and candidates are those of the call. The hook sees no unimodal logits of
        an `MCRLoss`; `unimodal_logits` may be a callable that gives them. `remove()` of what
        comes back ends it.
        """
        return Watch(self, module, unimodal_logits)

    def read(self, span: Span = "recent") -> dict[str, float]:
        """The means of the last updates, or of the epoch so far; waits for the device, once.

        With a process group a collective: every rank must call it.
        """
        checks.choice("span", span, get_args(Span))
        return self._now(span, group_of(self.process_group))

    def _now(self, span: Span, group: Any) -> dict[str, float]:
        late = LateValues()
        late.ask(self._sums(span, group))
        return self._values(late.take(wait=True) or [])

    def end_epoch(self) -> dict[str, float]:
        """The epoch's means, also kept in `epochs`; then a new epoch begins.

        With a process group a collective, as `read`.
        """
        values = self.read("epoch")
        self.epochs.append({"step": self.step, "epoch": self.epoch, **values})
        for means in self._means.values():
            means.reset_epoch()
        self.epoch += 1
        return values

    def reset(self) -> None:
        """Forget everything but the options."""
        for means in self._means.values():
            means.reset()
        self.step = self.epoch = 0
        self._asked.clear()
        self.history, self.epochs = [], []

    def flush(self) -> None:
        """Wait for records that are on their way."""
        self._deliver(wait=True)

    def close(self) -> None:
        """Flush, and close the logs that can be closed."""
        self.flush()
        for log in self.logs:
            getattr(log, "close", lambda: None)()

    def summary(self) -> str:
        """In words: which modality starves, and since which step.

        Of the history; before its first record of the means of now, with a process group of this
        rank's rows alone, so that one rank may ask.
        """
        self.flush()
        return summary_of(self._told(), self.modalities, self.starves_below)

    def plot(self, path: Any = None) -> Any:
        """One figure of the history: who starves, and when that turned; needs matplotlib.

        Also written to `path`, if there is one. Before the first record it is of what `summary`
        tells then.
        """
        from mcr_fast.monitor._plot import figure_of

        self.flush()
        figure = figure_of(self._told(), self.modalities, self.starves_below)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure

    def _told(self) -> list[Record]:
        """The history, or this rank's means of now if there is none."""
        if self.history or self.step == 0:
            return self.history
        return [{"step": self.step, "epoch": self.epoch, **self._now("recent", None)}]

    def state_dict(self) -> dict[str, Any]:
        """Everything but the options and logs, on the CPU; waits for the device."""
        self.flush()
        means = {name: means.state_dict() for name, means in self._means.items()}
        kept = {
            "history": [dict(r) for r in self.history],
            "epochs": [dict(r) for r in self.epochs],
        }
        return {"step": self.step, "epoch": self.epoch, "means": means, **kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another monitor of the same modalities and window was."""
        for name, means in self._means.items():
            means.load_state_dict(state["means"][name])
        self._asked.clear()
        self.step, self.epoch = state["step"], state["epoch"]
        self.history = [dict(record) for record in state["history"]]
        self.epochs = [dict(record) for record in state["epochs"]]

    def _sums(self, span: Span, group: Any) -> Tensor:  # [2, G], of all ranks of a group
        device = self._device
        if group is not None:
            device = same_device(group, device)
        parts = [means.sums(span, device) for means in self._means.values()]
        made = torch.cat(parts, 1)
        if group is not None:
            torch.distributed.all_reduce(made, group=group)
        return made.flatten()

    def _values(self, numbers: Sequence[float]) -> dict[str, float]:
        names = [name for kind in self._kinds.values() for name in kind.names]
        half = len(names)
        means = {
            name: numbers[i] / numbers[half + i] if numbers[half + i] else math.nan
            for i, name in enumerate(names)
        }
        divergences = [means[name] for name in per_modality(("divergence",), self.modalities)]
        single = [max(d, 0.0) if d == d else d for d in divergences]  # NaN stays
        total = sum(single)
        shares = [d / total if total != 0 else 1 / len(single) for d in single]
        named = zip(per_modality(("importance",), self.modalities), shares, strict=True)
        terms = {name: means.pop(name) for name in TERMS}
        return {**terms, **dict(named), **means}

    def _record(self) -> None:
        late = self._idle.pop() if self._idle else LateValues()
        late.ask(self._sums("recent", group_of(self.process_group)))
        self._asked.append((self.step, self.epoch, late))
        self._deliver(wait=False)

    def _deliver(self, wait: bool) -> None:
        """Records that have arrived go into the history and the logs."""
        while self._asked:
            step, epoch, late = self._asked[0]
            numbers = late.take(wait)
            if numbers is None:
                return
            self._asked.popleft()
            self._idle.append(late)
            values = self._values(numbers)
            self.history.append({"step": step, "epoch": epoch, **values})
            group = group_of(self.process_group)
            if group is None or group.rank() == 0:
                for log in self.logs:
                    log.update(values) if isinstance(log, MutableMapping) else log(step, values)
