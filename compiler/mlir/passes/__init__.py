"""Passes on MLIR modules, one file each; ``opt`` runs them by name."""
