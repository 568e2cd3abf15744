"""Rules of other papers, one file each, under the protocols that our own rules implement."""
