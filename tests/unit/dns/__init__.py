"""Tests of the DNS server. Its responses are read by dnspython, which it uses for host names only."""
