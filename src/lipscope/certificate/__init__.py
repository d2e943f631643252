"""Results and bundles: what was found, written so that a stranger can check it. See docs/certificate.md."""
