"""Settings of other simulators as targets. Public as ``analogc.interop``."""
