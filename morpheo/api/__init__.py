"""The HTTP services: `morpheo.api.compute` takes orders, `morpheo.api.storage` keeps artifacts."""
