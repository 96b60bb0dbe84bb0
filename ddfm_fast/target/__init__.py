"""The target of the variant ``saliency``: data terms that choose between the sources.

pyramid  smoothing, halving, doubling, and Laplacian pyramids
terms    where a source is salient, in conflict with the other, or featureless sky
choose   the fused luma in closed form
"""
