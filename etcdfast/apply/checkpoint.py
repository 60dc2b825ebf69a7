"""A second folder with the store as its files have it: hard links, no copy of data, and no call of RocksDB.

RocksDB's own checkpoint flushes and holds the interpreter lock meanwhile: 30 ms with a few megabytes in memory.
This one rests on what a crash rests on: the manifest names the files that make up the store, and a prefix of it
is a state that the store was in. So a copy of the manifest and links to the files it names are a store, as of
the last flush.

    link_files(store, folder)    # while the flush is under way: what exists now cannot be deleted any more
    link_manifest(store, folder) # when it is done: the state of this moment
"""

import os
import shutil

# The only way a file that the manifest names is missing is that it was made and compacted away between the two
# steps; opening the folder finds that out, and whoever asked tries again.
_SMALL = ("IDENTITY", "rocksdict-config.json")


def link_files(store, folder):
    """Make `folder`, with links to the data files there are. Errors: OSError."""
    os.mkdir(folder, 0o700)
    _link_new(store, folder)


def link_manifest(store, folder):
    """Have `folder` be what the store's files are now. Errors: OSError."""
    with open(os.path.join(store, "CURRENT"), "rb") as file:
        current = file.read()
    manifest = current.decode().strip()
    # It may grow while it is copied: a record cut off at the end is passed over, as after a crash.
    shutil.copyfile(os.path.join(store, manifest), os.path.join(folder, manifest))
    _link_new(store, folder)
    for name in _SMALL:
        shutil.copyfile(os.path.join(store, name), os.path.join(folder, name))
    with open(os.path.join(folder, "CURRENT"), "wb") as file:
        file.write(current)


def _link_new(store, folder):
    have = set(os.listdir(folder))
    for name in os.listdir(store):
        if name.endswith(".sst") and name not in have:
            try:
                os.link(os.path.join(store, name), os.path.join(folder, name))
            except FileNotFoundError:
                pass  # compacted away since it was listed
