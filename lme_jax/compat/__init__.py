"""statsmodels' names: MixedLM, its packed parameters, optimisers and results."""
