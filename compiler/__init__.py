"""Compiler: what a user calls: compile, capture, the compiled model and its reports."""
