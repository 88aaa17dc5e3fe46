"""The stages of DCLIP: extract, train, evaluate, sweep, run; one machine or a Ray cluster."""
