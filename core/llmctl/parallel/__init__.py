"""Training by several processes (ranks), one a device: the launcher, and what the ranks do together.

Every rank runs the same program on the same data. A step has the same rows and, but for rounding, the same numbers whatever the
number of ranks: its forward passes are shared out, and sums over all of them are divided by the items of the whole step. Ranks may
also share each layer (``regions``), the layers (``stage``) or experts (``experts``). Rank 0 alone prints and writes.

Paddle's own launcher is not used: it writes the whole environment, with secrets, into the log folder, answers Ctrl-C with
SIGTERM, and leaves the ranks running when it is killed.
"""
