"""Architectures, one file each: a G and a D that go together.

A new one: ``nets/mine.py`` with a class under ``base.Architecture`` and ``configs/architecture/mine.yaml``
naming it by ``_target_``. Nothing else is edited; the tests build and train every file under ``configs/``.
"""
