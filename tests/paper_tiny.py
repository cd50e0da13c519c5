"""Runs of examples/paper with tiny encoders and frames: what is around them is the same."""

import json

import torch
from torch import nn


def command(name, data, out, *more):
    always = ("--device", "cpu", "--workers", "0", "--batch-size", "4")
    return [name, "--data", str(data), "--out", str(out), *always, *more]


def trained(out, job, name="mosi-vt"):
    folder = out / name / "fold0-seed0" / job
    state = torch.load(folder / "last.pt", weights_only=True)
    return state, json.loads((folder / "results.json").read_text())


def shrink(monkeypatch):
    # here, so that this file can be imported where `paper` cannot
    from paper import images, models

    resized = images.resized
    monkeypatch.setattr(models, "encoder", tiny)
    monkeypatch.setattr(images, "resized", lambda image: resized(image, 16))


def tiny(run, width):
    """An encoder that draws, as dropout does, and has statistics, as batch norm has."""
    if run.regression:
        return nn.Sequential(Last(), nn.Linear(width, 40), nn.Dropout(0.5))
    return nn.Sequential(Pooled(), nn.Linear(width, 512), nn.BatchNorm1d(512))


class Last(nn.Module):
    def forward(self, x):
        return x[:, -1]


class Pooled(nn.Module):
    def forward(self, x):  # [N, (T,) C, h, w] -> [N, C]
        return x.mean((-2, -1)) if x.ndim == 4 else x.mean((1, 3, 4))
