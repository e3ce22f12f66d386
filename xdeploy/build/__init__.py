"""Building: a bound program to a host library, a Linux program or a C firmware package."""
