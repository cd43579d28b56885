"""Easel serves block text-diffusion language models on Ray Serve and Kubernetes.

Nothing is imported here: `import easel` and `easel --help` stay light, and each layer is imported by the one above it
(see ARCHITECTURE.md, "Who may import whom").
"""

__version__ = "0.1.0"
