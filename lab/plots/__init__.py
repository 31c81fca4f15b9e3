"""For every page its figures: from measured arrays to a matplotlib figure; the page gives caption and alt text."""
