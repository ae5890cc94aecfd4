"""Whether a few of the good images look like another product than the rest: told by the features, before any score.

Every image is the mean of its features over the picture, each channel in units of its own robust spread. A minimum
spanning tree cut at one of its longest edges gives a group; it is another product if its members lie far from *every*
image of the rest, compared with what lies between two images of the rest. On eight real sets of one product each, and
on parts of them from 20 images up, that ratio came to 1.8 at most; of 2 to 25 % of any other of these sets put among
one, it was at least 1.98. Even mixtures are not told: lots and lights of one product lie as far apart.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from makel.training.features import FeatureCache

LEAST_IMAGES = 20
"""Below, chance alone sets a few images apart."""

_APART = 1.9
_LEAST_GROUP, _LEAST_SHARE = 2, 0.03
_CUTS = 15
_MOST_IMAGES = 2000
_LEAST_SPREAD = 0.05
"""A channel's spread is taken for at least this share of the largest, or one that is nearly constant would decide."""


def second_product(cache: FeatureCache) -> NDArray[np.int64]:
    """The images that look like another product than most, by their numbers in `cache.images`; none as a rule."""
    every = np.unique(cache.images)
    if len(every) > _MOST_IMAGES:
        every = np.sort(np.random.default_rng(0).choice(every, _MOST_IMAGES, replace=False))
    if len(every) < LEAST_IMAGES:
        return np.empty(0, np.int64)
    return every[apart(_means(cache, every))]


def apart(vectors: NDArray[np.floating]) -> NDArray[np.bool_]:
    """(n,) bool: the group that lies apart from the rest of (n, C) vectors, or all False."""
    n = len(vectors)
    distances = _distances(_in_spreads(vectors))
    parents, children, lengths = _spanning_tree(distances)
    found, most = np.zeros(n, bool), _APART
    for cut in np.argsort(-lengths, kind="stable")[:_CUTS]:
        group = np.zeros(n, bool)
        group[children[cut]] = True
        for parent, child in zip(parents[cut + 1 :], children[cut + 1 :], strict=True):
            group[child] = group[parent]  # a parent always comes first
        if 2 * group.sum() > n:
            group = ~group
        inside = group[parents] & group[children]
        inside[cut] = False
        # A group is one: what lies alone and takes a neighbour along is none.
        if group.sum() < max(_LEAST_GROUP, _LEAST_SHARE * n) or lengths[inside].max() > lengths[cut]:
            continue
        rest = distances[np.ix_(~group, ~group)]
        usual = float(np.median(rest[np.triu_indices(len(rest), 1)]))
        gap = float(np.median(distances[np.ix_(group, ~group)].min(axis=1)))
        if gap >= most * usual > 0:
            found, most = group, gap / usual
    return found


def _means(cache: FeatureCache, images: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n, C): the mean over the picture of the deepest features of each image, of its tiles and copies together."""
    wanted = np.flatnonzero(np.isin(cache.images, images))
    batches = (wanted[start : start + cache.batch_size] for start in range(0, len(wanted), cache.batch_size))
    means = np.concatenate([cache.batch(rows)[-1].mean(dim=(2, 3)).cpu().numpy() for rows in batches])
    place = np.searchsorted(images, cache.images[wanted])
    totals = np.zeros((len(images), means.shape[1]))
    np.add.at(totals, place, means)
    counts: NDArray[np.int64] = np.bincount(place, minlength=len(images))
    return np.asarray(totals / counts[:, None], np.float64)


def _in_spreads(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    centred = np.asarray(vectors, np.float64) - np.median(vectors, axis=0)
    spread = 1.4826 * np.median(np.abs(centred), axis=0)
    return np.asarray(centred / np.maximum(spread, max(_LEAST_SPREAD * float(spread.max()), 1e-9)), np.float64)


def _distances(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    squares = (vectors**2).sum(axis=1)
    found = squares[:, None] + squares[None] - 2 * vectors @ vectors.T
    return np.asarray(np.sqrt(np.maximum(found, 0)), np.float64)


def _spanning_tree(
    distances: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Parent, child and length of each edge, in the order in which Prim's algorithm finds them."""
    n = len(distances)
    nearest, parent_of, inside = distances[0].copy(), np.zeros(n, np.int64), np.zeros(n, bool)
    inside[0] = True
    edges = []
    for _ in range(n - 1):
        child = int(np.where(inside, np.inf, nearest).argmin())
        edges.append((int(parent_of[child]), child, float(nearest[child])))
        inside[child] = True
        closer = distances[child] < nearest
        nearest[closer], parent_of[closer] = distances[child][closer], child
    parents, children, lengths = zip(*edges, strict=True)
    return np.array(parents), np.array(children), np.array(lengths)
