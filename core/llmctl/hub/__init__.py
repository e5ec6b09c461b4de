"""Models by name: ``owner/name`` on the Hugging Face Hub or on ModelScope, downloaded into the cache of its library.

``name`` tells names from paths and imports nothing; ``find.model_folder`` gives the folder of either. ``files`` chooses what
of a repository is read, ``download`` fetches it through ``hugging_face`` or ``model_scope``, which call their libraries,
``origin`` tells from a folder which model it was downloaded from. Caches, endpoints, tokens and resuming are the libraries'.
"""
