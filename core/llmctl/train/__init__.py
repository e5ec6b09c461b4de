"""Training: a loop that knows no method, and one module per method.

``trainer`` is a whole run of any method; ``loop`` runs steps over a ``task``. ``methods`` are supervised fine-tuning,
preference optimization and pretraining; ``trainable`` says what is trained and saved: all parameters, LoRA adapters or a
prefix; ``optim`` is the optimizer, with sharding (ZeRO); ``callbacks`` log metrics, save checkpoints, stop early. ``resume`` checks that a run may
be resumed, ``console`` and ``summary`` print.

With several ranks, ``place`` says which part of the model this one holds, ``passes`` in which order a step's forward and backward
passes run, and ``full_state`` gives rank 0 whole tensors to save.

An output folder holds::

    config.yaml                    the configuration of the run
    run.json                       versions, seed, metrics and samples before and after training, outcome
    report.html                    all of this folder on one page
    metrics.jsonl, curve.svg       a row per logged step and per evaluation; the learning curve
    best.json                      the best checkpoint and its metric
    checkpoints/step-000020/       a model or adapter folder, with optimizer.safetensors and trainer_state.json
    model/                         the final model: weights, configuration, tokenizer, chat template; or the adapter
    tensorboard/, wandb/ ...       the metrics again, if train.log_to asks for them
    nan_step.json                  only after a step whose loss or gradient was not finite: its examples
"""
