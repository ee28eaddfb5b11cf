"""What others have published, as data: figures and weights, none of which are ours."""
