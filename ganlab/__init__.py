"""ganlab: the lab bench for GAN-stabilisation research. Start reading at ``experiment.py``."""

__version__ = "0.1.0"
