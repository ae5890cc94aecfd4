"""Evidence for people who have to answer for a model: acceptance of a system by those who buy and run it."""
