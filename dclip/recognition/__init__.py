"""The short way: load or fit a model, ask it of photographs, keep it."""
