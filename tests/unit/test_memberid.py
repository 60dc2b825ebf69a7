"""Ids as real etcd 3.5.1 computed them."""

from etcdfast.formats.memberid import cluster_id, member_id


def test_ids_of_a_first_member():
    found = member_id(["http://127.0.0.1:23800"], "tok")
    assert (found, cluster_id([found])) == (2681083982177880140, 4413477065597753003)


def test_default_ids_are_the_well_known_ones():
    found = member_id(["http://localhost:2380"], "etcd-cluster")
    assert (f"{found:x}", f"{cluster_id([found]):x}") == ("8e9e05c52164694d", "cdf818194e3a8c32")


def test_order_of_urls_and_members_does_not_matter_but_time_does():
    urls = ["http://b:1", "http://a:1"]
    assert member_id(urls, "t") == member_id(urls[::-1], "t")
    assert member_id(urls, "t") != member_id(urls, "", 1_700_000_000) != member_id(urls, "", 1_700_000_001)
    assert cluster_id([1, 2]) == cluster_id([2, 1])
