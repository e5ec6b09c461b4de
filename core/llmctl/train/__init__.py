"""Training: a loop that knows no method, and one module per method that feeds it.

``run`` is a whole run of any method; ``loop`` runs steps over a ``task``; ``subject`` says what is trained and stored,
``full`` is every parameter, ``lora`` adapters; ``optimizer`` and ``schedules`` move the weights; ``checkpoints`` keeps
what was trained and continues it; ``journal``, ``record``, ``display`` and ``curve`` show it; ``evaluate`` measures it;
``sft`` is supervised fine-tuning; ``logs`` hands metrics to TensorBoard and VisualDL.

An output folder holds::

    config.yaml                    the configuration of the run
    run.json                       versions, seed, the metrics and samples before and after training, how it ended
    report.html                    all of this folder on one page
    metrics.jsonl, curve.svg       a line per logged step and per evaluation; the learning curve
    best.json                      which checkpoint is best, by what metric
    checkpoints/step-000020/       a folder of the model or adapter, with optimizer.safetensors and trainer_state.json
    model/                         the final model: weights, configuration, tokenizer, chat template; or its adapter
    tensorboard/, visualdl/        the metrics once more, if train.log_to says so
    nan_step.json                  only after a step whose loss or gradient was not finite: its examples
"""
