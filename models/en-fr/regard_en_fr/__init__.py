"""The weights and the vocabulary of `regard translate`'s English-French model: data alone."""
