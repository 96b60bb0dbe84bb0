"""Adapters that offer ddfm_fast through the interfaces of other projects."""
