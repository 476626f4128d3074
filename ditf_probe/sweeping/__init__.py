"""Many runs of one configuration: which ones, how they are run and resumed, and one table of what they found."""
