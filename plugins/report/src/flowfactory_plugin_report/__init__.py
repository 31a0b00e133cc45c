"""A page about runs: `flowfactory report` writes it into a file, `flowfactory watch` serves it while a run goes on.

Folders of runs go in, through `flowfactory.read_runs`; a page, and figures for papers, come out. Never torch.
"""
