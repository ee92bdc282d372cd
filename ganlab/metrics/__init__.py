"""Scores of a generator: pure maths on features, one metric per file.

To add one, write one Python file and one YAML file; nothing else is edited:

1. ``ganlab/metrics/mine.py``: a subclass of ``ganlab.metrics.base.Metric`` that names its values
   (``names = ("mine", "mine_std")``, the score first), says which direction is ``better``, how many fakes it
   wants (``n_fake``), what it can't work with (``check``), and computes them in ``__call__``, from features
   alone. Raise ``MetricError`` with the reason when there is no value; training records null and goes on.
2. ``configs/metric/mine.yaml``: first line ``# @package metric.scores``, then
   ``mine: {_target_: ganlab.metrics.mine.Mine}``.

Such a metric gets the features of all its fakes at once, so they are kept: name in ``keeps`` the ones it
wants. One that can sum while the images pass by is a ``Streamed`` with a ``Running`` form (``fid.py``).

A score of each class by itself, or one that needs the images, is a ``GroupMetric``: see ``base.py``.

``ganlab train metric=[is,fid,mine]`` then scores it, from the same feature pass as the others, under every
protocol. The extractor's suffix is added to the names by ``evaluate.py``.
"""
