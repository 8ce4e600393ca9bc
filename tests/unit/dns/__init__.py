"""Tests of the DNS server. What it sends is read by dnspython, which it uses for host names only."""
