"""A run's folder explained on one page: ``report.html``, which needs nothing but a browser.

``folder`` reads what a run left, ``page`` writes the page of one run, ``comparison`` that of several; ``chart`` draws,
``markup`` holds what all pages share. Nothing here imports paddle or numpy, so that a report can be made anywhere.
"""
