"""The demo: a clinical challenge on real patients' data, as any user could set it up."""
