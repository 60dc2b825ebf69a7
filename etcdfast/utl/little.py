"""Commands that say something and touch nothing."""

from etcdfast.version import CLUSTER_VERSION, __version__


def version(options, arguments):
    print(f"etcdfastutl version: {__version__}")
    print(f"API version: {'.'.join(CLUSTER_VERSION.split('.')[:2])}")


def defrag(options, arguments):
    print("Nothing to do: etcdfast's store gives the space of deleted keys back by itself, after each compaction.")
