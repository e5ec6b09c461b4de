"""``llmctl serve``: an HTTP server for one model, by OpenAI's API and that of PaddleNLP's server.

``app`` puts the routes together, ``guard`` stands before them, ``server`` runs them until a signal. A body is checked by the
tables of ``fields``, becomes a ``job`` of prompts and parameters, and is answered by ``answers``, from which whole and streamed
answers are made alike. ``bridge`` is the only module that touches the engine, whose thread must never wait for the event loop.

Nothing here knows how a model is opened or computed: that is ``infer``.
"""
