"""The source model in front of the fusion: what spoils a source is measured, then removed.

noise_level  how noisy a luma plane is, and whether its noise grows with brightness
defects      stripes and dead pixels
denoise      noise taken out by an evaluation of the prior
chroma       noise of color, smoothed along the fused luma
sources      all of it on a pair, with a report of what was found and done
"""
