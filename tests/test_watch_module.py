"""`MCRLoss` warns once of a modality that its fusion does not use, and stays what it was else."""

import copy
import pickle
import warnings

import pytest
import torch
from regularizer import LABELS, mcr, setting

from mcr_fast._watch import EVERY, PATIENCE

ENOUGH = EVERY * (PATIENCE + 1)


def setting_with_one_in_use(kind="linear"):
    """A fusion that reads the first modality only."""
    fusion, latents = setting(kind)
    with torch.no_grad():
        fusion.weight[:, latents[0].shape[1] :] = 0
    return fusion, latents


def warned(forward, times):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(times):
            forward()
    return [w for w in caught if "importance of modality" in str(w.message)]


def test_warns_once_from_the_line_that_calls():
    fusion, latents = setting_with_one_in_use()
    loss = mcr()

    def step():
        return loss(latents, LABELS, fusion=fusion)

    assert warned(step, ENOUGH - 1) == []
    (warning,) = warned(step, 1)
    assert "modality 1 (of 0..1" in str(warning.message)
    assert warning.filename == __file__
    assert warned(step, 2 * ENOUGH) == []


def test_is_silent_where_both_are_used():
    fusion, latents = setting()
    loss = mcr()
    assert warned(lambda: loss(latents, LABELS, fusion=fusion), ENOUGH) == []
    assert loss._watch._forwards == ENOUGH


@pytest.mark.parametrize("without", ["gradients", "leaves", "mipd"])
def test_counts_training_only(without):
    fusion, latents = setting_with_one_in_use()
    loss = mcr(mipd_weight=0.0) if without == "mipd" else mcr()
    if without == "leaves":
        fusion.requires_grad_(False)
        latents = [z.detach() for z in latents]
    with torch.set_grad_enabled(without != "gradients"):
        assert warned(lambda: loss(latents, LABELS, fusion=fusion), EVERY) == []
    assert loss._watch._forwards == 0


def test_module_is_copied_saved_and_loaded_as_before():
    fusion, latents = setting()
    loss = mcr(ceb_weight=1.0).double()
    for _ in range(EVERY):
        loss(latents, LABELS, fusion=fusion)
    assert [name for name, _ in loss.named_buffers()] == []
    for again in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert again._watch._forwards == EVERY
        assert again._watch is not loss._watch


def test_compiled_step_has_no_break_and_does_not_count():
    torch._dynamo.reset()  # other tests have compiled the same function
    fusion, latents = setting_with_one_in_use()
    loss = mcr(num_permutations="all")
    step = torch.compile(loss, fullgraph=True, backend="eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert warned(lambda: step(latents, LABELS, fusion=fusion), 2 * EVERY) == []
    assert loss._watch._forwards == 0
