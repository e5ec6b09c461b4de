"""Scales and offsets of a layer's stages, searched on the inputs of the float model; kept where held-out inputs are better with them.

Shape suffixes: T tokens, I inputs of a stage, O outputs of all its linears.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.card.decoder_spec import DecoderSpec
from llmctl.infer.packed.linear import rounded
from llmctl.infer.quantize import folds
from llmctl.infer.quantize.block import Block
from llmctl.infer.quantize.folds import STAGES, Fold
from llmctl.infer.quantize.settings import PADDLESLIM, Settings
from llmctl.infer.quantize.streams import CALIBRATE, HOLD, Streams, chosen_rows
from llmctl.quant.methods import paddleslim, scale_search, shift, smooth
from llmctl.quant.methods.grids import fit
from llmctl.quant.methods.statistics import HeldRows, InputStatistics

Array = NDArray[Any]
Key = tuple[str, int]
"""Stage and expert."""

ROWS, HELD = 512, 512
"""Rows that scales are searched and checked on, at most."""

OUTPUTS = 1024
"""Outputs of a stage that are looked at, at most."""

FEW_ROWS = 16
ALPHAS = tuple(round(0.05 * number, 2) for number in range(4, 20))
"""Values of alpha that are tried for all inputs of a stage at once."""

PIECE_VALUES = tuple(value for value in smooth.candidates() if value >= 1 or round(100 * value) % 5 == 0)
"""What is tried for each piece of the inputs."""

WORTH = {"awq": 0.9, "gptq": 0.8, "ptq-a8w8": 1.0}
"""Method -> share of the loss below which scales are kept: small gains in one stage are none in the model, and GPTQ makes good by itself
what scales gain little by."""


@dataclass
class Seen:
    """Inputs of a stage."""

    statistics: InputStatistics
    rows: HeldRows = field(default_factory=lambda: HeldRows(ROWS))
    held: HeldRows = field(default_factory=lambda: HeldRows(HELD))


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        fold: The scales and offsets; None = none are better.
        choice: Values of alpha or ratios, in words.
        before: Loss on held-out rows without them, of the outputs' squares.
        after: The same with them.
        reason: Why there are none.
        as_factors: Whether the linears multiply their inputs, because nothing before them takes the scales.
        spread: The largest range of an input as a multiple of the median, without and with scales and offsets.
    """

    fold: Fold | None
    choice: str = ""
    before: float = float("nan")
    after: float = float("nan")
    reason: str = ""
    spread: tuple[float, float] = (1.0, 1.0)
    as_factors: bool = False


def search_layer(
    streams: Streams, index: int, block: Block, settings: Settings
) -> tuple[Block, dict[Key, Found], dict[str, Array]]:
    """The layer with the scales and offsets that were found, what was found for each stage, and what ``scan`` read of this layer.

    Raises:
        ValueError: Inputs are not finite.
    """
    graph, seen = streams.graph, dict[Key, Seen]()

    def see(stage: str, expert: int, x_TI: Array, role_T: Array) -> None:
        one = seen.setdefault((stage, expert), Seen(InputStatistics(x_TI.shape[1])))
        calibrate_TI = chosen_rows(x_TI, role_T == CALIBRATE)
        one.statistics.add(calibrate_TI)
        one.rows.add(calibrate_TI)
        one.held.add(chosen_rows(x_TI, role_T == HOLD))

    read = streams.scan(index, block, see)
    found: dict[Key, Found] = {}
    for key in sorted(seen, key=lambda key: (STAGES.index(key[0]), key[1])):
        found[key] = _search(graph, block, key, seen[key], settings)
    for (stage, expert), one in found.items():
        if one.fold is not None:
            block = refolded(graph, block, (stage, expert, one.fold, one.as_factors), read)
    return block, found, read


def refolded(graph: DecoderSpec, block: Block, folded: tuple[str, int, Fold, bool], read: dict[str, Array]) -> Block:
    """The layer with scales of a stage: from its name, its expert, the scales, and whether they are factors.

    What was read of the layer is scaled too, in place.
    """
    stage, expert, fold, as_factors = folded
    if as_factors:
        return folds.apply_as_factors(block, stage, fold, expert)
    if stage in read:
        fold.apply_to(read[stage])
    return folds.apply(graph, block, stage, fold, expert)


def _search(graph: DecoderSpec, block: Block, key: Key, seen: Seen, settings: Settings) -> Found:
    stage, expert = key
    reason = folds.no_scale(graph, stage)
    if reason and not settings.factors:
        return Found(None, reason=reason)
    if min(len(seen.rows), len(seen.held)) < FEW_ROWS:
        return Found(None, reason=f"{seen.statistics.tokens} tokens")
    linears = block.up if stage == "up" else (block.down[expert],) if stage == "down" else (getattr(block, stage),)
    weight_IO = np.concatenate([linear.weight[:, :: max(1, _width(linears) // OUTPUTS)] for linear in linears], axis=1)
    search = _smooth if settings.method == "ptq-a8w8" else _awq
    allowed = settings.offsets and not reason and not folds.no_offset(graph, stage)
    pool_I = folds.pooled(graph, stage)
    if settings.backend == PADDLESLIM and (reason_of_slim := _not_by_paddleslim(pool_I, settings)):
        return Found(None, reason=reason_of_slim)
    found = search(_Stage(seen, weight_IO, pool_I), settings, allowed)
    return replace(
        found, as_factors=bool(reason), spread=(_spread(seen.statistics, None), _spread(seen.statistics, found.fold))
    )


def _not_by_paddleslim(pool_I: Array, settings: Settings) -> str:
    """Why PaddleSlim finds no scales of a stage; empty = it does."""
    if len(folds.first_of(pool_I)) < len(pool_I):
        return "PaddleSlim has no scale that several query heads share"
    if settings.method != "ptq-a8w8" and settings.group and len(pool_I) % settings.group:
        return f"PaddleSlim needs inputs ({len(pool_I)}) that are a multiple of the group ({settings.group})"
    return ""


def _spread(statistics: InputStatistics, fold: Fold | None) -> float:
    low_I, high_I = _range(statistics)
    if fold is not None:
        offset_I = 0 if fold.offset_I is None else fold.offset_I
        low_I, high_I = (low_I - offset_I) / fold.scale_I, (high_I - offset_I) / fold.scale_I
    largest_I = np.maximum(np.abs(low_I), np.abs(high_I))
    return float(largest_I.max() / (np.median(largest_I) or 1.0))


def _width(linears: Any) -> int:
    return sum(linear.weight.shape[1] for linear in linears)


class _Stage:
    """Inputs and joined weights of a stage; statistics are those of the inputs that share a scale."""

    def __init__(self, seen: Seen, weight_IO: Array, pool_I: Array) -> None:
        self.weight_IO, self.pool_I, self.statistics = weight_IO.astype(np.float32), pool_I, seen.statistics
        (self.rows_TI,), (self.held_TI,) = seen.rows.arrays(1), seen.held.arrays(1)
        self.count = int(pool_I.max()) + 1

    def largest(self, values_I: Array) -> Array:
        """The largest of each number of the pool."""
        pooled = np.zeros(self.count)
        np.maximum.at(pooled, self.pool_I, values_I)
        return pooled

    def largest_of(self, offset_I: Array | float) -> Array:
        """The largest magnitude of each input in all rows, without an offset."""
        return np.asarray(np.maximum(*(np.abs(bound - offset_I) for bound in _range(self.statistics))))

    def mean(self, values_I: Array) -> Array:
        """The mean of each number of the pool."""
        return np.bincount(self.pool_I, values_I, self.count) / np.bincount(self.pool_I, minlength=self.count)


def _awq(stage: _Stage, settings: Settings, offsets: bool) -> Found:
    weight_IO = stage.weight_IO
    magnitude = stage.mean(stage.statistics.mean_magnitude_I)
    share = stage.mean(scale_search.weight_share(weight_IO, settings.group))

    def loss_on(x_TI: Array) -> Callable[[Array], float]:
        total = float(((x_TI @ weight_IO) ** 2).sum()) or 1.0

        def loss(scale: Array) -> float:
            scale_I1 = scale[stage.pool_I].astype(np.float32)[:, None]
            grid = fit(weight_IO * scale_I1, settings.bits, settings.group, settings.form)
            off_IO = grid.values(grid.codes(weight_IO * scale_I1)) / scale_I1 - weight_IO
            return float(((x_TI @ off_IO) ** 2).sum()) / total

        return loss

    if settings.backend == PADDLESLIM:
        scale = paddleslim.awq_scale(stage.rows_TI, weight_IO, magnitude, settings.bits, settings.group)
        choice: str | None = "AWQSearch"
    else:
        scale, ratio, _, _ = scale_search.search(
            loss_on(stage.rows_TI), lambda value: scale_search.awq_scale(magnitude, share, value), stage.count
        )
        choice = None if ratio is None else f"ratio {ratio:g}"
    held = loss_on(stage.held_TI)
    before = held(np.ones(stage.count))
    if choice is None:
        return Found(None, before=before, after=before, reason="none is better")
    after = held(scale)
    if not after < WORTH[settings.method] * before:
        return Found(None, before=before, after=before, reason="none is better on held-out inputs")
    return Found(Fold(scale[stage.pool_I].astype(np.float32)), choice, before, after)


def _smooth(stage: _Stage, settings: Settings, offsets: bool) -> Found:
    """One value of alpha for all inputs with each of the offsets; then, with the best of these, one for each piece of the inputs."""
    rows, held = _Smoothing(stage, stage.rows_TI), _Smoothing(stage, stage.held_TI)
    before = held.loss(np.ones(stage.count), None)
    if settings.backend == PADDLESLIM:
        middle = [(", shifted by the middle", paddleslim.shift_offset(stage.rows_TI))] if offsets else []
        found = [rows.by_paddleslim(settings.pieces, *offset) for offset in [("", None), *middle]]
    else:
        found = [rows.search(1, ALPHAS, *offset) for offset in _offsets(stage, offsets)]
    best = min(found, key=lambda one: one.loss)
    if settings.pieces > 1 and settings.backend != PADDLESLIM:
        pieces = rows.search(min(settings.pieces, stage.count), PIECE_VALUES, best.name, best.offset)
        best = min(best, pieces, key=lambda one: one.loss)
    after = held.loss(best.scale, best.offset)
    total = float((held.wanted_TO**2).mean()) or 1.0
    if not after < WORTH[settings.method] * before:
        return Found(None, before=before / total, after=before / total, reason="none is better")
    # Scales that one range of all inputs needs may cost more in the weights than they gain where every 32 have their own.
    if not held.engine_loss(best.scale, best.offset) < held.engine_loss(np.ones(stage.count), None):
        reason = "none is better as the engine rounds inputs"
        return Found(None, before=before / total, after=before / total, reason=reason)
    offset_I = None if best.offset is None else best.offset[stage.pool_I].astype(np.float32)
    fold = Fold(best.scale[stage.pool_I].astype(np.float32), offset_I)
    return Found(fold, f"{best.chosen}{best.name}", before / total, after / total)


@dataclass(frozen=True)
class _Smoothed:
    """Scales and offsets of the numbers of a pool, with their loss."""

    loss: float
    chosen: str
    name: str
    scale: Array
    offset: Array | None


class _Smoothing:
    """Losses of a stage on some rows."""

    def __init__(self, stage: _Stage, x_TI: Array) -> None:
        self._stage, self._x_TI = stage, x_TI
        self.wanted_TO = x_TI @ stage.weight_IO
        self._weights = stage.largest(np.abs(stage.weight_IO).max(1))

    def loss(self, scale: Array, offset: Array | None) -> float:
        """Loss of scales and offsets; inputs are rounded by the range that all rows have, not only these."""
        stage = self._stage
        largest_I = stage.largest_of(0 if offset is None else offset[stage.pool_I])
        x_TI, wanted_TO = self._moved(offset)
        scale_I = scale[stage.pool_I].astype(np.float32)
        return smooth.w8a8_loss(x_TI, stage.weight_IO, scale_I, wanted_TO=wanted_TO, largest_I=largest_I)

    def engine_loss(self, scale: Array, offset: Array | None) -> float:
        """Loss of scales and offsets; inputs are rounded as the fused engine does, every 32 of a row by their own range."""
        x_TI, wanted_TO = self._moved(offset)
        scale_I = scale[self._stage.pool_I].astype(np.float32)
        weight_IO = self._stage.weight_IO * scale_I[:, None]
        grid = fit(weight_IO, 8, 0, "symmetric")
        found_TO = rounded(x_TI / scale_I) @ grid.values(grid.codes(weight_IO))
        return float(((wanted_TO - found_TO) ** 2).mean())

    def _moved(self, offset: Array | None) -> tuple[Array, Array]:
        """Inputs without an offset, and the outputs of these."""
        if offset is None:
            return self._x_TI, self.wanted_TO
        offset_I = offset[self._stage.pool_I].astype(np.float32)
        return self._x_TI - offset_I, self.wanted_TO - offset_I @ self._stage.weight_IO

    def search(self, pieces: int, tried: Sequence[float], name: str, offset: Array | None) -> _Smoothed:
        """The best scales for an offset."""
        stage = self._stage
        offset_I = 0 if offset is None else offset[stage.pool_I]
        largest = stage.largest(stage.largest_of(offset_I))
        scale, chosen = smooth.search(
            lambda scale: self.loss(scale, offset),
            lambda alpha: smooth.smooth_scale(largest, self._weights, alpha),
            smooth.pieces(largest, pieces),
            tried,
        )
        values = ", ".join(f"{value:g}" for value in chosen)
        return _Smoothed(self.loss(scale, offset), f"alpha {values}", name, scale, offset)

    def by_paddleslim(self, pieces: int, name: str, offset: Array | None) -> _Smoothed:
        """The scales that PaddleSlim finds for an offset; every input has a scale of its own."""
        x_TI = self._x_TI if offset is None else self._x_TI - offset.astype(np.float32)
        scale = paddleslim.piecewise_scale(x_TI, self._stage.weight_IO, np.abs(x_TI).max(0), pieces)
        return _Smoothed(self.loss(scale, offset), "PieceWiseSearch", name, scale, offset)


def _offsets(stage: _Stage, allowed: bool) -> list[tuple[str, Array | None]]:
    """Offsets to try, with what is said of them."""
    if not allowed:
        return [("", None)]
    low, high = _range(stage.statistics)
    middle = stage.mean(shift.midpoint(low, high))
    return [("", None), (", shifted by the mean", stage.mean(shift.moving_mean(stage.statistics.mean_batches))),
            (", shifted by the middle", middle)]  # fmt: skip


def _range(statistics: InputStatistics) -> tuple[Array, Array]:
    return statistics.low_I, statistics.high_I
