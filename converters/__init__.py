"""Importers and exporters. The folder stands beside the package, which holds it by a link: one name for one module."""

if __name__ != "dfine_jax.converters":
    raise ImportError(f"import dfine_jax.converters, not {__name__}")
