"""Two codecs as a third party would write them: one that quantises all samples, one that keeps some."""
