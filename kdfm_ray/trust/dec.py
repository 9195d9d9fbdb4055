"""Deep embedded clustering: DEC (Xie et al. 2016, arXiv 1511.06335) and IDEC (Guo et al. 2017).

A small autoencoder learns a latent space of the embeddings, k-means gives the first centroids, and
then encoder and centroids move together so that soft assignments Q follow their own sharpened
target P:

    q_ij = (1 + |z_i - m_j|^2)^-1 / sum_j' (1 + |z_i - m_j'|^2)^-1             DEC, equation 1
    p_ij = (q_ij^2 / f_j) / sum_j' (q_ij'^2 / f_j'),   f_j = sum_i q_ij         DEC, equation 3
    loss = KL(P || Q)                                                           DEC, equation 2
    loss = mean squared reconstruction error + gamma * KL(P || Q)               IDEC, equation 2

From the papers: the formulas, full-set targets every 140 steps of 256 points, tol 0.1 %, gamma 0.1.
Ours: few hidden layers (embeddings are already features), Adam throughout, and that the stop rule
asks for two targets to be trained on before it may end the run.

Legend: n points, d embedding size, l latent size, k clusters.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from kdfm_ray.trust.kmeans import check_points, fit_kmeans
from kdfm_ray.types import Emit

MAX_FLOATS = 2**22  # of the [rows, k, l] differences: bounds the memory of a full-set pass
MIN_PRETRAIN_STEPS = 1_000
PROGRESS_EVERY = 200  # steps of pretraining
SMALL_STEP = 2**25  # multiplications of one layer; below, two threads cost more than they give


def soft_assign(z: Float[Tensor, "n l"], centroids: Float[Tensor, "k l"]) -> Float[Tensor, "n k"]:
    """q: Student's t kernel with one degree of freedom, normalized over clusters (DEC, eq. 1)."""
    # differences, not |z|^2 - 2 z.m + |m|^2: that form cancels badly in float32 near a centroid
    kernel = 1 / (1 + (z[:, None] - centroids).square().sum(2))
    return kernel / kernel.sum(1, keepdim=True)


def target_distribution(q: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """p: q squared, weighed down by the soft size of each cluster, normalized (DEC, eq. 3).

    ``q`` must be the whole set: the frequencies f are its column sums. Dividing by them is what
    makes DEC prefer clusters of equal size.
    """
    weight = q.square() / q.sum(0)
    return weight / weight.sum(1, keepdim=True)


def kl_divergence(p: Float[Tensor, "n k"], q: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """KL(P || Q) in nats per point: DEC's equation 2 divided by n, so that batches compare."""
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(1).mean()


class DeepClusters(nn.Module):
    """Encoder, mirrored decoder and centroids. Its weights depend on ``seed`` alone."""

    def __init__(self, d: int, hidden: Sequence[int], latent: int, k: int, seed: int) -> None:
        super().__init__()
        self.encoder = _mlp([d, *hidden, latent])
        self.decoder = _mlp([latent, *reversed(hidden), d])
        self.centroids = nn.Parameter(torch.zeros(k, latent))
        generator = torch.Generator().manual_seed(seed)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
                nn.init.zeros_(layer.bias)

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n l"]:
        return self.encoder(x)

    @torch.no_grad()
    def soft_assign(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """q of any number of points, in batches that fit in memory."""
        rows = max(1, MAX_FLOATS // self.centroids.numel())
        return torch.cat(
            [soft_assign(self.encoder(part), self.centroids) for part in x.split(rows)]
        )

    def assign(self, x: Float[np.ndarray, "n d"]) -> Int64[np.ndarray, " n"]:
        """The most likely cluster of every point, which is that of the nearest centroid."""
        points = torch.tensor(x, dtype=torch.float32, device=self.centroids.device)
        return self.soft_assign(points).argmax(1).cpu().numpy()


def _mlp(sizes: list[int]) -> nn.Sequential:
    """Linear layers with ReLU between them, not yet initialized."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        # the usual constructor would draw from, and so change, torch's global generator
        layers += [nn.utils.skip_init(nn.Linear, inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@dataclass(frozen=True)
class DecResult:
    """What DEC made of a set, with its start beside it so that the two can be compared.

    Attributes:
        assignments: cluster of every point at the end.
        start_assignments: cluster of every point by k-means in the pretrained latent space.
        latent: the points in the final latent space.
        clusters: the final model; ``clusters.assign(x)`` places further points.
        start: the model as it was right after k-means.
        history: one entry per full-set update: ``step``, ``changed`` (share of assignments since
            the last update), ``kl`` (of the new target), ``kl_before`` and ``kl_after`` (of the
            last target, before and after training on it; ``None`` in the first entry).
        iterations: steps of joint optimization.
        stopped_by: ``tol``, ``max_iter`` or ``diverged`` (then the final model is the start).
        moved: relative change of norm of ``encoder`` and ``centroids``.
        seconds: of ``pretrain``, ``kmeans`` and ``joint``.
    """

    assignments: Int64[np.ndarray, " n"]
    start_assignments: Int64[np.ndarray, " n"]
    latent: Float32[np.ndarray, "n l"]
    clusters: DeepClusters
    start: DeepClusters
    history: list[dict[str, Any]]
    iterations: int
    stopped_by: str
    moved: dict[str, float]
    seconds: dict[str, float]


def fit_dec(
    x: Float[np.ndarray, "n d"],
    k: int,
    *,
    seed: int,
    latent_dim: int = 10,
    hidden_dims: Sequence[int] = (256,),
    pretrain_epochs: int = 10,
    update_interval: int = 140,
    batch_size: int = 256,
    tol: float = 1e-3,
    max_iter: int = 8_000,
    learning_rate: float = 1e-3,
    kmeans_restarts: int = 10,
    gamma: float | None = None,
    gpu: bool = False,
    device: str = "cpu",
    emit: Emit | None = None,
) -> DecResult:
    """Cluster ``x`` by DEC, or by IDEC where ``gamma`` is given.

    Args:
        x: points with a mean square of about 1 per feature; the kernel's width is 1, so scale
            matters (``clusterers.Scaler`` sees to it).
        latent_dim: size of the latent space; 10 in both papers.
        hidden_dims: widths of the encoder's hidden layers; the decoder mirrors them.
        pretrain_epochs: passes over ``x`` by reconstruction alone, at least 1,000 steps in all,
            for an epoch of a small set is only a few.
        update_interval: steps between two targets P of the whole set.
        batch_size: points of one step.
        tol: stop when a smaller share of the assignments changed between two updates.
        max_iter: most steps of the joint part; at least two intervals.
        learning_rate: Adam's, for both parts.
        kmeans_restarts: see ``fit_kmeans``.
        gamma: IDEC's weight of the clustering loss beside the reconstruction; ``None``: DEC.
        gpu: k-means on the GPU, as in ``fit_kmeans``.
        device: torch device of the networks.
        emit: called with ``phase`` (``pretrain`` or ``cluster``), ``step`` and ``total`` (of both
            phases together; the run may stop earlier) and, in the second phase, ``changed``.
    """
    check_points(len(x), k)
    if not 1 <= update_interval <= max_iter // 2:
        raise ValueError(
            f"max_iter = {max_iter} leaves no room for two targets of update_interval = "
            f"{update_interval} steps: raise max_iter to {2 * max(1, update_interval)} or more"
        )
    points = torch.tensor(x, dtype=torch.float32, device=device)
    model = DeepClusters(x.shape[1], hidden_dims, latent_dim, k, seed).to(device)
    batches = _batches(len(x), batch_size, seed, points.device)
    pretrain_steps = pretrain_epochs * max(1, len(x) // batch_size)
    if pretrain_epochs:
        pretrain_steps = max(pretrain_steps, MIN_PRETRAIN_STEPS)

    def progress(phase: str, step: int, **more: float) -> None:
        if emit:
            emit({"phase": phase, "step": step, "total": pretrain_steps + max_iter} | more)

    small = batch_size * x.shape[1] * max(hidden_dims, default=latent_dim) < SMALL_STEP
    with _threads(1 if small else torch.get_num_threads()):
        clock = [time.perf_counter()]
        _pretrain(model, points, batches, pretrain_steps, learning_rate, progress)
        clock.append(time.perf_counter())
        z = model.encode(points).cpu().numpy()
        centroids, _ = fit_kmeans(z, k, seed=seed, restarts=kmeans_restarts, gpu=gpu)
        model.centroids.data.copy_(torch.from_numpy(centroids))
        start = copy.deepcopy(model)
        clock.append(time.perf_counter())
        history, stopped_by = _refine(
            model,
            points,
            batches,
            update_interval=update_interval,
            tol=tol,
            max_iter=max_iter,
            learning_rate=learning_rate,
            gamma=gamma,
            progress=lambda step, changed: progress(
                "cluster", pretrain_steps + step, changed=changed
            ),
        )
        clock.append(time.perf_counter())
        if stopped_by == "diverged":
            model = start
        return DecResult(
            assignments=model.assign(x),
            start_assignments=start.assign(x),
            latent=model.encode(points).cpu().numpy(),
            clusters=model,
            start=start,
            history=history,
            iterations=int(history[-1]["step"]),
            stopped_by=stopped_by,
            moved={
                "encoder": _moved(start.encoder.parameters(), model.encoder.parameters()),
                "centroids": _moved(iter([start.centroids]), iter([model.centroids])),
            },
            seconds=dict(
                zip(("pretrain", "kmeans", "joint"), np.diff(clock).tolist(), strict=True)
            ),
        )


def _pretrain(
    model: DeepClusters,
    points: Float[Tensor, "n d"],
    batches: Iterator[Int64[Tensor, " b"]],
    steps: int,
    learning_rate: float,
    progress: Callable[[str, int], None],
) -> None:
    """Reconstruction alone, by Adam."""
    weights = [*model.encoder.parameters(), *model.decoder.parameters()]
    optimizer = torch.optim.Adam(weights, lr=learning_rate, fused=True)
    for step in range(1, steps + 1):
        batch = points[next(batches)]
        optimizer.zero_grad()
        nn.functional.mse_loss(model.decoder(model.encoder(batch)), batch).backward()
        optimizer.step()
        if step % PROGRESS_EVERY == 0:
            progress("pretrain", step)


def _refine(
    model: DeepClusters,
    points: Float[Tensor, "n d"],
    batches: Iterator[Int64[Tensor, " b"]],
    *,
    update_interval: int,
    tol: float,
    max_iter: int,
    learning_rate: float,
    gamma: float | None,
    progress: Callable[[int, float], None],
) -> tuple[list[dict[str, Any]], str]:
    """Encoder and centroids (and IDEC's decoder) move together; returns history and stop reason."""
    weights = [*model.encoder.parameters(), model.centroids]
    if gamma is not None:
        weights += model.decoder.parameters()
    optimizer = torch.optim.Adam(weights, lr=learning_rate, fused=True)

    q = model.soft_assign(points)
    p = target_distribution(q)
    history = [_entry(0, 0.0, q, p)]
    for step in range(1, max_iter + 1):
        index = next(batches)
        batch = points[index]
        z = model.encoder(batch)
        loss = kl_divergence(p[index], soft_assign(z, model.centroids))
        if gamma is not None:
            loss = nn.functional.mse_loss(model.decoder(z), batch) + gamma * loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % update_interval and step < max_iter:
            continue

        last, old_q, old_p = q.argmax(1), q, p
        q = model.soft_assign(points)
        p = target_distribution(q)
        changed = (q.argmax(1) != last).float().mean().item()
        history.append(_entry(step, changed, q, p, old_q, old_p))
        progress(step, changed)
        if history[-1]["kl"] is None:
            return history, "diverged"
        if changed < tol and step >= 2 * update_interval:
            return history, "tol"
    return history, "max_iter"


def _entry(
    step: int,
    changed: float,
    q: Float[Tensor, "n k"],
    p: Float[Tensor, "n k"],
    old_q: Float[Tensor, "n k"] | None = None,
    old_p: Float[Tensor, "n k"] | None = None,
) -> dict[str, Any]:
    before = after = None
    if old_p is not None and old_q is not None:
        before, after = _nats(old_p, old_q), _nats(old_p, q)
    kl = _nats(p, q)
    return {"step": step, "changed": changed, "kl": kl, "kl_before": before, "kl_after": after}


def _nats(p: Float[Tensor, "n k"], q: Float[Tensor, "n k"]) -> float | None:
    """KL as a number that JSON knows: ``None`` where it is not finite."""
    kl = kl_divergence(p, q).item()
    return kl if math.isfinite(kl) else None


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Torch's CPU threads within a block. A step here is a millisecond of small matrices: with two
    threads it was three times as expensive on a busy two-core machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _batches(n: int, size: int, seed: int, device: torch.device) -> Iterator[Int64[Tensor, " b"]]:
    """Slices of one permutation after another, without end; a short last slice is left out."""
    generator = torch.Generator().manual_seed(seed + 1)  # + 1: not the stream of the weights
    size = min(size, n)
    while True:
        order = torch.randperm(n, generator=generator).to(device)
        for low in range(0, n - size + 1, size):
            yield order[low : low + size]


def _moved(start: Iterator[Tensor], end: Iterator[Tensor]) -> float:
    a, b = (nn.utils.parameters_to_vector(side).detach() for side in (start, end))
    return float((b - a).norm() / a.norm())
