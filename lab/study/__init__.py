"""For every page its sweeps and measures: from parameters to runs, from runs to numbers that a claim is judged by."""
