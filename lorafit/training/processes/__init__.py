"""Several processes that train together: what they share, agree on, and how a failure ends all."""
