"""A user's module that cannot be imported."""

import no_such_module_at_all  # noqa: F401
