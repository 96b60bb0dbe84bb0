"""The source model in front of the fusion: measure the defects of a source, then remove them.

noise_level  how noisy a luma plane is, and whether its noise grows with brightness
defects      stripes and dead pixels
denoise      noise removed by an evaluation of the prior
chroma       noise of color, smoothed along the fused luma
sources      all of this on a pair, with a report of what was found and done
"""
