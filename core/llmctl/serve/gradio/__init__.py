"""``llmctl serve --gradio``: the page of PaddleNLP's server, made with Gradio, at ``/gradio``.

Gradio runs in a process of its own (``child`` starts and ends it, ``blocks`` is what it shows) and is reached only through the
server (``passing``), whose guard stands before it. It asks the server's own API, like any client, with the key that a person types.
"""

PATH = "/gradio"
"""Where the page is."""
