"""The descriptor pool of our protobuf modules.

Every etcd client brings modules for the same messages (`mvccpb.KeyValue` and so on), and the default
pool of the protobuf runtime refuses a second definition of a name. Ours live in a pool of their own,
so that etcdfast and any other etcd client can be loaded into one process. setup.py points the
generated modules here.
"""

from google.protobuf.descriptor_pool import DescriptorPool

POOL = DescriptorPool()
