"""The loop as apply/services.py sees it: proposals, ReadIndexes, answers.

`who` is an asker (longread.pxd) as bytes, all records of a call alike.
"""

from etcdfast._ext.applyloop cimport ApplyLoop


cdef class ServiceGate:
    cdef ApplyLoop loop
