"""Forecast each prompt's success rate, and update the forecast with outcomes."""
