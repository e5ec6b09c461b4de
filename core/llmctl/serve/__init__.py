"""``llmctl serve``: an HTTP server for one model, with the APIs of OpenAI, Anthropic and PaddleNLP's server.

``app`` puts the routes together, ``access.guard`` stands before them with API keys, ``server`` runs them until a signal. A body is checked by the
tables of ``apis.fields`` and becomes a ``service.Job`` of prompts and parameters, whose answers are made by ``answers``: whole and
streamed ones are alike, since both come from the same pieces. ``bridge`` is the only module that touches the engine, whose thread
must never wait for the event loop.

Nothing here knows how a model is opened or computed: that is ``infer``.
"""
