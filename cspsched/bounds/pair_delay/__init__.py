"""The certificate `pair-delay`: everybody alone, and how long each pair must hold each other up."""
