"""Architectures, one file each: a pair of G and D.

To add one, write ``models/mine.py`` with a subclass of ``base.Architecture`` and
``configs/architecture/mine.yaml`` with its ``_target_``. The tests build and train every file of ``configs``.
"""
