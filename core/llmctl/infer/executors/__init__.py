"""Executors, which compute a batch of the engine: native kernels, paddle's operations, and a numpy reference.

``base`` is their interface. ``native`` runs a step in one call to ``llmctl_ops`` on a CPU, ``paddle`` runs it with
paddle's operations on a GPU or without kernels, ``reference`` is what both are tested against. Executors know the packed model and
positions only; families, requests and sampling are elsewhere.
"""
