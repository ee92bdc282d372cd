"""YAML files and the command line to one checked tree, and the tree to an ``Experiment``."""
