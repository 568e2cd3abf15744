"""The laboratory: rules on real language models whose true success rates are known exactly at any time."""
