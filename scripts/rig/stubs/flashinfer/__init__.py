"""Empty stand-in: the server is started with SGLANG_IS_FLASHINFER_AVAILABLE=false; only the sampler imports names from here."""
__version__ = "0.6.14"
