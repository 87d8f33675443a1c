"""MLIR of compiled models; needs the ``mlir`` extra, which nothing else here imports."""
