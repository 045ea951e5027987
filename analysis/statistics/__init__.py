"""DataFrame -> DataFrame: steps-to-target, pairs, intervals, scores. No words, no pictures."""
