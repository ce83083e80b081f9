"""The certificate `pair-delay`: each request alone, and how long each pair must hold each other up."""
