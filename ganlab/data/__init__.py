"""Images to train on, one dataset per file.

To add one: a file here with a subclass of ``base.Dataset`` and a YAML of its name under ``configs/dataset/``.
A small set makes its ``SampleSet`` in memory (``digits.py``). A large one hands its images to
``pack.pack`` one at a time, encoded (``folder.py``) or decoded in blocks (``cifar10.py``), and gets a
memory-mapped uint8 file back. No list, registry or trainer is edited.
"""
