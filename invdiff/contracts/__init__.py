"""What every operator, prior and sampler must keep, as checks that say how to mend what they find."""
