"""The topics that ``ddfm-fast help`` shows: a Markdown file per topic."""
