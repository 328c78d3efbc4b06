"""Ray: the only package that imports it. One thin actor per role, their placement, and the protocols on top of them."""
