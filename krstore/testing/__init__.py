"""The conformance suites: what every codec and every learner must do, krstore's own and third parties'.

In a codec's own tests::

    from krstore.testing import check_codec

    def test_conforms(tmp_path):
        check_codec("mycodec", tmp_path, settings={"iterations": 20})

A codec of a network's states goes through `check_snapshot_codec`, and a learner through `check_learner`.
"""

from krstore.arrays import ArraySource
from krstore.testing.learners import check_learner, example_dataset
from krstore.testing.samples import check_codec, example_source
from krstore.testing.snapshots import StateSource, check_snapshot_codec, example_states

__all__ = [
    "ArraySource",
    "StateSource",
    "check_codec",
    "check_learner",
    "check_snapshot_codec",
    "example_dataset",
    "example_source",
    "example_states",
]
