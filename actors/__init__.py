"""The Ray layer: one thin actor per role, their placement, and the protocols on top. No other package imports Ray."""
