"""The picture that the variant ``saliency`` draws to: data terms that choose between the sources.

pyramid  smoothing, halving, doubling, and Laplacian pyramids
terms    where which source is salient, in conflict with the other, or featureless sky
choose   the fused luma in closed form
"""
