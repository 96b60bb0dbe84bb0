"""Benchmarks: ours against a transcription of the authors' path, as ratios within one run."""
