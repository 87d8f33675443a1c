"""MLIR: the form in which compiled models are read, tested and exchanged. Needs the extra ``mlir``.

Nothing here is imported by ``import analogc``; torch_mlir is imported by the modules of this room
themselves, and every entry point asks ``extras.require`` for it first.
"""
