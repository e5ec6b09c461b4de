"""Which part of a model this rank holds, and how it computes with the ranks that hold the other parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import paddle

from llmctl.adapters.targets import module_of
from llmctl.card.sharding import Parallel, Segment, Split
from llmctl.checkpoint.build import CheckedModel
from llmctl.checkpoint.partial import WHOLE, Cut, seed_by_name
from llmctl.checkpoint.shards import merge
from llmctl.jobs.job import CheckedJob
from llmctl.nn.arrays import assign, to_numpy
from llmctl.nn.dropout import has_dropout
from llmctl.parallel import experts, regions
from llmctl.parallel.axis import Axis
from llmctl.parallel.collectives import all_gather, all_reduce, broadcast_array
from llmctl.parallel.cuts import cut as cut_layers
from llmctl.parallel.mesh import Mesh
from llmctl.parallel.pipeline import Pipeline
from llmctl.parallel.placement import Placement
from llmctl.parallel.ranks import ALONE, Ranks
from llmctl.parallel.stage import Stage
from llmctl.parallel.topology import DENSE, EXPERTS
from llmctl.train.agreement import Agreement
from llmctl.train.optim import slices
from llmctl.train.optim.units import Units, layers_in
from llmctl.train.passes import IN_TURN, Passes


@dataclass(frozen=True)
class Place:
    """The place of this rank in a run.

    Attributes:
        cut: How the parameters of the model are cut; those of adapters are added to it.
        tensor: The ranks that share each layer.
        alike: The axes of all ranks that have the same layers or parts of them.
        sequence: Whether they divide the tokens between regions too.
        expert: The ranks with different rows that share experts.
        stage: The layers that this rank has; None = all.
        passes: Runs the passes of a step through all layers.
        complete: Completes the gradients of what several stages have.
        sharing: The ranks of the run, where they share the weights of the model; else None.
        units: Paths of the layers that are whole one at a time.
        routed: Paths of the layers of experts.
        agreement: Of the ranks that compute a model together; None = this one computes alone.
    """

    cut: Cut
    tensor: Axis = ALONE.tensor
    alike: tuple[Axis, ...] = (ALONE.tensor,)
    sequence: bool = False
    expert: Axis = ALONE.axis("expert")
    stage: Stage | None = None
    passes: Passes = IN_TURN
    complete: Callable[[Mapping[str, Any]], None] | None = None
    sharing: Mesh | None = None
    units: tuple[str, ...] = ()
    routed: frozenset[str] = frozenset()
    agreement: Agreement | None = None

    @classmethod
    def of(cls, job: CheckedJob[Any], ranks: Ranks) -> Place:
        """The place of a rank in the run of a job."""
        parallel = Parallel(ranks.tensor.size, ranks.tensor.rank)
        cut = Cut.of(job.model.plugin, job.model.dims, parallel)
        expert = ranks.axis("expert")
        # Ranks with other experts have other layers.
        rows = () if expert.size > 1 else (ranks.axis("data"), ranks.axis("sharding"))
        place = cls(cut, ranks.tensor, (*rows, ranks.tensor), job.config.parallel.sequence, expert)
        if isinstance(ranks, Mesh) and ranks.sharding.size > 1 and job.config.parallel.sharding_stage == 3:
            tensors = job.model.plugin.card.expand(job.model.dims)
            routed = frozenset(tensor.name.rpartition(".")[0] for tensor in tensors if tensor.expert is not None)
            place = replace(place, sharing=ranks, units=tuple(regions.units_of(tensors)), routed=routed)
        alike = ranks.axis("expert" if place.sharing is None else "block"), ranks.tensor
        if any(axis.size > 1 for axis in (*alike, ranks.pipeline)):
            place = replace(place, agreement=Agreement(alike, ranks.pipeline))
        if ranks.pipeline.size == 1:
            return place
        stages, chunks = job.config.parallel.stages, job.config.parallel.chunks
        parts = cut_layers(job.model.plugin.card, job.model.dims, ranks.pipeline.size, stages, chunks)
        stage = Stage(parts, ranks.pipeline.rank)
        complete = partial(stage.sum_over_stages, stages=ranks.pipeline, ends=ranks.axis("ends"))
        return replace(place, stage=stage, passes=Pipeline(stage, ranks.hybrid, ranks.pipeline), complete=complete)

    def layer(self, model: CheckedModel, dtype: str, seed: int = 0) -> Any:
        """This rank's part of a model; arguments and errors as for ``CheckedModel.layer``."""
        layer = model.layer(dtype, self.cut, seed, self._prepare, done=self.keep)
        if self.stage is not None:
            layer.sum_stages = self.complete
        return layer

    def _prepare(self, layer: Any) -> None:
        """Drops the layers that other ranks have."""
        if self.stage is not None:
            self.stage.attach(layer)
        if self.expert.size > 1:
            experts.divide(layer, self.expert)

    def keep(self, name: str, weight: Any) -> None:
        """Frees the values of a weight that ranks share, of which this one keeps a slice."""
        if self.sharing is not None and name.startswith(tuple(f"{path}." for path in self.units)):
            kind = EXPERTS if self.expert.size > 1 and name.rpartition(".")[0] in self.routed else DENSE
            slices.keep(weight, self.sharing.axis(kind.slices))

    def shared_layers(self, layer: Any) -> dict[str, tuple[Any, Any]]:
        """Path -> layers of the units of this rank, whose weights ranks share, as of ``layers_in``."""
        return layers_in(layer, self.units)

    def freeze(self, layer: Any) -> None:
        """Makes a layer of ``layer`` one that is not trained; after ``connect``."""
        for parameter in layer.parameters():
            parameter.stop_gradient = True
        if self.sharing is not None:
            held = experts.held_by(layer) if self.expert.size > 1 else ()
            placement = Placement(
                self.sharing.topology, self.sharing.place, experts=dict.fromkeys(held, self.expert.rank)
            )
            Units({}, self.sharing, self.shared_layers(layer), placement)

    def connect(self, layer: Any, model: CheckedModel) -> None:
        """Makes a layer of ``layer`` compute with those of the other ranks; after adapters, and once."""
        if self.tensor.size > 1:
            regions.connect(layer, model.plugin.card, model.dims, self.cut, self.tensor, self.sequence)
        layer.agreement = self.agreement

    def notes(self, layer: Any) -> dict[str, str]:
        """What of a run is not as in one process, for ``run.json``."""
        sharing = self.tensor.size * self.expert.size * (1 if self.stage is None else self.stage.cuts.stages)
        if sharing == 1 or not has_dropout(layer):
            return {}
        return {"dropout": f"each of the {sharing} ranks that share the layers draws its own, unlike one process"}

    def cut_adapters(self, paths: Iterable[str]) -> None:
        """Cuts the matrices of adapters as the weights of their linears are: A with inputs, B and magnitudes with outputs."""
        splits = self.cut.splits
        rules = {module_of(name): rule for name, rule in splits.items()}
        for path in paths:
            rule = rules.get(path)
            if rule is not None and rule.axis == regions.ROWS:
                splits.update(dict.fromkeys((f"{path}.lora_A", f"{path}.initial_A"), rule))
            elif rule is not None:
                splits.update(dict.fromkeys((f"{path}.lora_B", f"{path}.initial_B"), rule))
                splits[f"{path}.lora_magnitude"] = replace(rule, axis=0)

    def totals(self, paths: Iterable[str]) -> dict[str, Callable[[Any], Any]]:
        """Path -> what completes sums over the inputs of a linear of which each rank has some."""
        cut = (path for path in paths if f"{path}.lora_A" in self.cut.splits)
        return dict.fromkeys(cut, lambda sums: all_reduce(sums, self.tensor))

    def cut_prefix(self, kv_heads: int, head_dim: int, layers: int) -> None:
        """Cuts the virtual tokens of a prefix by key-value heads."""
        degree = self.tensor.size
        if degree == 1:
            return
        replicas = max(1, degree // kv_heads)
        one, both = Segment(1, kv_heads, 1, replicas), Segment(2, kv_heads, head_dim, replicas)
        for layer in range(layers):
            self.cut.splits[f"prefix.pair_{layer}"] = Split(2, "kv_heads", (one,))
            self.cut.splits[f"prefix.out_weight_{layer}"] = Split(1, "kv_heads", (both,))
            self.cut.splits[f"prefix.out_bias_{layer}"] = Split(0, "kv_heads", (both,))

    def draw(self, name: str, parameter: Any, initializer: Callable[[Any], Any], seed: int) -> None:
        """Gives a parameter this rank's part of its initial values, which are drawn whole by name."""
        with paddle.LazyGuard():
            shape = list(self.cut.whole_shape(name, parameter.shape))
            whole = paddle.create_parameter(shape, parameter.dtype, default_initializer=initializer)
        seed_by_name(seed, name)
        whole.initialize()
        parameter.set_value(self.cut.part(name, whole.numpy()))

    def set(self, name: str, parameter: Any, whole: np.ndarray) -> None:
        """Gives a parameter this rank's part of whole values."""
        assign(parameter, self.cut.part(name, whole))

    def whole(self, name: str, parameter: Any) -> np.ndarray:
        """The whole values of a parameter, of which each rank has a part of the same size; all ranks call it."""
        rule = self.cut.splits.get(name)
        if rule is None:
            return to_numpy(parameter)
        parts = all_gather(paddle.to_tensor(to_numpy(parameter)).unsqueeze(0), self.tensor)
        return merge(list(parts.numpy()), rule)

    @property
    def copies(self) -> int:
        """How many ranks have the same layers or parts of them."""
        return math.prod(axis.size for axis in self.alike)

    @property
    def copy(self) -> int:
        """Which one of these ranks this is."""
        return int(np.ravel_multi_index([a.rank for a in self.alike], [a.size for a in self.alike]))

    def broadcast(self, array: np.ndarray | None, owner: int) -> np.ndarray:
        """The array of one of these ranks; what the others give is ignored."""
        places = np.unravel_index(owner, [axis.size for axis in self.alike])
        for number, axis in enumerate(self.alike, 1):
            later = zip(self.alike[number:], places[number:], strict=True)
            if all(other.rank == place for other, place in later):
                array = broadcast_array(array, axis, int(places[number - 1]))
        assert array is not None
        return array


HERE = Place(WHOLE)
"""The place of a process that trains alone."""
