"""What a third party would write: codecs that quantise, choose samples, keep states or round them, and a learner."""
