"""HTML reports of training runs: one run (``report.html``) or several compared, self-contained, for any browser.

``folder`` reads the output folder of a run, ``page`` writes the page of one run, ``comparison`` that of several; ``chart``
draws SVG, ``markup`` holds the HTML that pages share, ``curve`` draws the learning curve as a file of its own. The files
are written by ``llmctl.train.callbacks``. Nothing here imports paddle or numpy: a report can be made on any machine.
"""
