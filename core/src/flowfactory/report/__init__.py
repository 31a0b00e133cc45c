"""A run to look at: one page with curves and samples.

Folders of runs go in, one offline HTML file comes out. Never torch.
"""
