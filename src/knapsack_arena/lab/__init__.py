"""The laboratory: rules on small language models whose true success rates are known exactly at any time."""
