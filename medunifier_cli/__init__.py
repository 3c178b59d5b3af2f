"""`mu`: MedUnifier (CVPR 2025) as a command line. Reading order is data flow, see CONTRIBUTING.md."""

__version__ = "0.1.0"
