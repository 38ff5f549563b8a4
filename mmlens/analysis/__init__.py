"""One file, one idea: an analysis takes a model and inputs and returns one frozen result."""
