"""Adapters that put ddfm_fast behind other projects' interfaces."""
