"""Passes of tiny models for tests of pipelines, run whole and in stages."""

from __future__ import annotations

import contextlib

import numpy as np
import paddle

from llmctl import plugins
from llmctl.card.tiny import tiny_dims
from llmctl.infer.eager.generate import generate
from llmctl.infer.sampling import SamplingParams
from llmctl.nn.dropout import disable_dropout
from llmctl.nn.prefix import Prefix
from llmctl.nn.recompute import recompute_layers
from llmctl.parallel.collectives import TRAFFIC
from llmctl.parallel.cuts import cut
from llmctl.parallel.pipeline import Pipeline
from llmctl.parallel.stage import Stage
from llmctl.testing.tiny import random_model
from llmctl.train.agreement import Agreement
from llmctl.train.methods.dpo_reference import ReferenceModel
from llmctl.train.methods.evaluate import token_metrics
from llmctl.train.methods.loss import next_token_hidden, next_token_loss


def made(family, changes):
    """Plugin, dims and a model of random weights, in training."""
    plugin = plugins.load(family)
    dims = tiny_dims(plugin.card, changes)
    model = random_model(plugin, dims)
    disable_dropout(model)
    model.train()
    return plugin, dims, model


def batches_of(dims, count, seed=7):
    """Packed rows of unlike numbers and lengths."""
    rng, found = np.random.default_rng(seed), []
    for number in range(count):
        rows, length = 1 + number % 3, 8 + 2 * number
        ids = rng.integers(3, dims.vocab, (rows, length + 1))
        labels = ids[:, 1:].copy()
        labels[:, : number + 1] = -100
        half = length // 2
        if dims.get("gmask"):
            ids[:, [1, half + 1]], ids[:, [2, half + 2]] = dims.gmask, dims.bos
        places = np.concatenate([np.arange(half), np.arange(length - half)])
        ends = np.array([half] * half + [length] * (length - half))
        layout = {"position_ids": np.tile(places, (rows, 1)), "document_end": np.tile(ends, (rows, 1))}
        found.append({"input_ids": ids[:, :-1], "labels": labels, **layout})
    return found


def gradients(model):
    """Gradients by name; those that are absent are left out."""
    return {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}


def functions(model, batches, reference=None):
    """What is computed of each batch: hidden states and loss, of next tokens or of preferences over a reference."""
    if reference is None:
        return (lambda n: next_token_hidden(model, batches[n])), (
            lambda n, h: next_token_loss(model, batches[n], h).total
        )

    def hidden(number):
        return *reference.hidden(batches[number], True), *next_token_hidden(model, batches[number])

    def loss(number, found):
        before = next_token_loss(reference.model, batches[number], found[:1]).total.detach()
        return -paddle.nn.functional.log_sigmoid(
            (before - next_token_loss(model, batches[number], found[1:]).total) / 9
        )

    return hidden, loss


def freeze(model, dims, kind):
    """Leaves some parameters to be trained: of the last layer, or those of a prefix."""
    if kind == "frozen start":
        for name, parameter in model.named_parameters():
            parameter.stop_gradient = ".3." not in name
    if kind.startswith("prefix"):
        for parameter in model.parameters():
            parameter.stop_gradient = True
        paddle.seed(3)
        shape = (dims.layers, 2, 3, dims.kv_heads, dims.hidden // dims.heads)
        model.prefix = Prefix(shape, "float64", 5 * (kind == "prefix projection"))


class Reference(ReferenceModel):
    """A frozen model of other weights."""

    def __init__(self, family, changes, stage=None):
        _, _, self.model = made(family, changes)
        for parameter in self.model.parameters():
            parameter.set_value(parameter * 0.9)
            parameter.stop_gradient = True
        if stage is not None:
            stage.attach(self.model)
        super().__init__(lambda: contextlib.nullcontext(self.model))


def whole(family, changes, count, kind=""):
    """Losses and gradients of two steps in one process."""
    _, dims, model = made(family, changes)
    freeze(model, dims, kind)
    reference = Reference(family, changes) if kind == "reference" else None
    losses = []
    for seed, passes in ((7, count), (8, count - 1)):
        hidden, loss = functions(model, batches_of(dims, passes, seed), reference)
        for number in range(passes):
            total = loss(number, hidden(number))
            total.backward()
            losses.append(float(total))
    return losses, gradients(model)


def staged(mesh, family, changes, count, kind="", stages=(), chunks=1):
    """The same in the stages of a pipeline: losses (of the last stage), the gradients of this one, calls of ``done``."""
    plugin, dims, model = made(family, changes)
    cuts = cut(plugin.card, dims, mesh.pipeline.size, stages, chunks)
    stage = Stage(cuts, mesh.pipeline.rank)
    stage.attach(model)
    if kind == "recompute":
        recompute_layers(model, [f"llama.layers.{layer}" for layer in stage.held])
    freeze(model, dims, kind)
    if model.prefix is not None:
        model.prefix.keep(stage.held)
    reference = Reference(family, changes, stage) if kind == "reference" else None
    pipeline = Pipeline(stage, mesh.hybrid, mesh.pipeline)
    losses, done = [], []
    for seed, passes in ((7, count), (8, count - 1)):
        hidden, loss = functions(model, batches_of(dims, passes, seed), reference)

        def kept(number, found, loss=loss):
            total = loss(number, found)
            losses.append(float(total))
            return total

        pipeline.run(passes, hidden, kept, lambda: done.append(1))
    stage.sum_over_stages(dict(model.named_parameters()), mesh.pipeline, mesh.axis("ends"))
    return losses, gradients(model), len(done)


def answered(mesh, family, changes, stages=(), chunks=1):
    """Metrics and answers of a model in the stages of a pipeline, and bytes of messages; of a whole one without a mesh."""
    plugin, dims, model = made(family, changes)
    if mesh is not None:
        stage = Stage(cut(plugin.card, dims, mesh.pipeline.size, stages, chunks), mesh.pipeline.rank)
        stage.attach(model)
        Pipeline(stage, mesh.hybrid, mesh.pipeline)
        model.agreement = Agreement([], mesh.pipeline)
    model.eval()
    metrics = token_metrics(model, batches_of(dims, 3))
    TRAFFIC.clear()
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12], [4]]
    cached, again = (
        generate(model, prompts, SamplingParams(max_new_tokens=6), (), 0, use_cache=use) for use in (True, False)
    )
    return metrics, [row.ids for row in cached], [row.ids for row in again], dict(TRAFFIC.bytes)
