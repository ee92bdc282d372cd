"""Scores of a generator, one metric per file.

To add one, write one Python file and one YAML file; nothing else is edited:

1. ``ganlab/metrics/mine.py``: a subclass of ``ganlab.metrics.base.Metric`` with the ``names`` of its values
   (``("mine", "mine_std")``, the score first), the ``better`` direction, what it ``needs``, the number of
   generated samples (``n_fake``), the counts it cannot work with (``check``), and an accumulator (``start``):
   one that keeps sums, as in ``fid.py``, or ``Collected`` if it needs all features at once, as in ``kid.py``.
   Raise ``MetricError`` with the reason if there is no value; training then records null and continues.
2. ``configs/metric/mine.yaml``: first line ``# @package metric.scores``, then
   ``mine: {_target_: ganlab.metrics.mine.Mine}``.

``ganlab train metric=[is,fid,mine]`` then computes it in the same pass as the others, under every protocol.
"""
