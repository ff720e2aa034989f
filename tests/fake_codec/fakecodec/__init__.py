"""Codecs as a third party would write them: samples quantised, samples chosen, a network's states kept or rounded."""
